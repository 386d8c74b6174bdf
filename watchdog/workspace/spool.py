"""Keep what the script of a call prints until it is known whether this is the answer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Protocol

from ..errors import OutputUnreadable
from ..system.nameless_file import open_nameless, write_all
from ..system.threads import OUTPUTS

_IN_MEMORY_BYTES = 64 * 1024
TAIL_BYTES = 4096


class Tail:
    """The last 4 KiB of a stream."""

    def __init__(self) -> None:
        self._data = b""

    def take(self, data: bytes) -> None:
        self._data = (self._data + data[-TAIL_BYTES:])[-TAIL_BYTES:]

    def text(self) -> str:
        """Return the tail as text. Bytes that are not UTF-8 are replaced; an incomplete first character is removed."""
        data = self._data
        if len(data) == TAIL_BYTES:
            while data and 0x80 <= data[0] < 0xC0:
                data = data[1:]
        return data.decode("utf-8", "replace")


class Spool:
    """Keeps the stdout of a call: up to 64 KiB in memory, more in a file. So memory does not grow with the stream.

    If a call has several runs, all of them share one spool, so they need one descriptor at most.

    Args:
        directory: any directory of the file system on which the file is created. The file is created when it is
            needed. It has no name, so no other script can read or change it.
        max_bytes: the most bytes that are kept; 0 means no limit.

    Attributes:
        overflowed: the stream had more than ``max_bytes``.
        error: the error if the file cannot be written; then nothing more is kept. The stream is still read, so that
            its writer does not block.
    """

    def __init__(self, directory: str, max_bytes: int = 0) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._memory: list[bytes] = []
        self._fd = -1
        self.size_bytes = 0
        self.overflowed = False
        self.error: OSError | None = None

    def take(self, data: bytes) -> asyncio.Future[None] | None:
        """Keep the next bytes. If this returns a future, call this again only when the future is done."""
        if self._max_bytes and self.size_bytes + len(data) > self._max_bytes:
            self.overflowed = True
        if self.overflowed or self.error is not None:
            return None
        self.size_bytes += len(data)
        self._memory.append(data)
        if self._fd < 0 and self.size_bytes <= _IN_MEMORY_BYTES:
            return None
        pieces, self._memory = self._memory, []
        try:
            return asyncio.get_running_loop().run_in_executor(OUTPUTS, self._write, pieces)
        except RuntimeError:  # no thread can be started now
            self._write(pieces)
            return None

    def pieces(self, piece_bytes: int) -> Iterator[bytes]:
        """Yield all bytes that were kept, in pieces of at most ``piece_bytes``.

        Raises:
            OutputUnreadable: the file cannot be read.
        """
        if self._fd < 0:
            data = b"".join(self._memory)
            yield from (data[at : at + piece_bytes] for at in range(0, len(data), piece_bytes))
            return
        at = 0
        while at < self.size_bytes:
            try:
                piece = os.pread(self._fd, min(piece_bytes, self.size_bytes - at), at)
            except OSError as error:
                raise OutputUnreadable(f"the script's stdout cannot be read back: {error.strerror}") from error
            if not piece:
                raise OutputUnreadable("the file with the script's stdout was truncated while it was sent")
            at += len(piece)
            yield piece

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _write(self, pieces: list[bytes]) -> None:
        try:
            if self._fd < 0:
                self._fd = open_nameless(self._directory)
            for piece in pieces:
                write_all(self._fd, piece)
        except OSError as error:
            self.error = error


class KeptStream(Protocol):
    """A stream that has ended and whose bytes are kept."""

    @property
    def size_bytes(self) -> int: ...

    def pieces(self, piece_bytes: int) -> Iterator[bytes]:
        """Yield all bytes in pieces of at most ``piece_bytes``. If there are many bytes, a thread calls this."""
