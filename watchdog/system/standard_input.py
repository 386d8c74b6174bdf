"""Read stdin, or a file that may be a pipe, as the bytes arrive."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading

_READ_BYTES = 256 * 1024


async def read_some(fd: int) -> bytes:
    """Return the next bytes as soon as there are any; b"" at the end of the file.

    The read runs in a thread of its own, because it may never return. When the process ends, it does not wait for
    this thread.

    Raises:
        OSError: the file cannot be read.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()

    def finish(piece: bytes, error: OSError | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(piece)
        else:
            done.set_exception(error)

    def read() -> None:
        piece, failed = b"", None
        try:
            piece = os.read(fd, _READ_BYTES)
        except OSError as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish, piece, failed)

    threading.Thread(target=read, name="read-input", daemon=True).start()
    return await done
