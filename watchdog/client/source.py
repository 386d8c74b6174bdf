"""One input that is sent: a file, or stdin.

The length of a body must be known before it is sent, and a call that the service refuses for now is sent again. So an
input that can be read only once (stdin, a pipe) is first copied to a temporary file without a name.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable, Mapping

import pybase64

from ..errors import FileUnreadable
from ..logs.text import printable
from ..system.nameless_file import open_nameless, write_all
from ..system.standard_input import read_some

# A multiple of 3, so that the pieces of base64 can follow each other without padding.
_PIECE_BYTES = 192 * 1024


class Source:
    """An input, open for reading. Use it as a context.

    ``label``: the name of the input in messages. ``name``: the name of the file; None for stdin.
    """

    def __init__(self, label: str, name: str | None, fd: int, size_bytes: int) -> None:
        self.label = label
        self.name = name
        self.size_bytes = size_bytes
        # The reason why the input could not be sent. The HTTP client would hide it behind an error of its own.
        self.error: FileUnreadable | None = None
        self._fd = fd

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def body_bytes(self, *, is_base64: bool) -> int:
        """Return the length of the body."""
        return (self.size_bytes + 2) // 3 * 4 if is_base64 else self.size_bytes

    async def body(self, sent: Callable[[int], None], *, is_base64: bool) -> AsyncIterator[bytes]:
        """Yield the body. Call ``sent`` with the number of input bytes in each piece after the piece was taken."""
        at = 0
        while at < self.size_bytes:
            piece = self._read(at)
            at += len(piece)
            yield pybase64.b64encode(piece) if is_base64 else piece
            sent(len(piece))

    def _read(self, at: int) -> bytes:
        wanted = min(_PIECE_BYTES, self.size_bytes - at)
        try:
            piece = os.pread(self._fd, wanted, at)
            while len(piece) < wanted and (more := os.pread(self._fd, wanted - len(piece), at + len(piece))):
                piece += more
            if len(piece) == wanted:
                return piece
            self.error = FileUnreadable(
                f"the file {printable(self.label)} became shorter while it was sent; send it again"
            )
        except OSError as error:
            self.error = FileUnreadable(f"the file {printable(self.label)} cannot be read: {error.strerror}")
        raise self.error


async def open_source(path: str, environ: Mapping[str, str]) -> Source:
    """Open a file for sending. ``-`` means stdin.

    Raises:
        FileUnreadable: the file cannot be read, or the temporary copy of a pipe cannot be written.
    """
    label, name = ("stdin", None) if path == "-" else (os.path.basename(path), os.path.basename(path))
    try:
        # Without O_NONBLOCK, the whole process would wait until somebody opens a named pipe for writing.
        fd = os.dup(0) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise FileUnreadable(f"the file {printable(path)} cannot be read: {error.strerror}") from None
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise FileUnreadable(f"{printable(path)} is a directory; give the files in it")
        if stat.S_ISREG(status.st_mode) and path != "-" and (status.st_size or _is_empty(fd)):
            return Source(label, name, fd, status.st_size)
        if path != "-":
            if stat.S_ISFIFO(status.st_mode):
                await _until_written(fd)
            os.set_blocking(fd, True)
        copy, size_bytes = await _copied(fd, path, environ)
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    # A pipe that a shell made (`<(command)`) has a number as its name, which is of no use to the script.
    return Source(label, None if path.startswith(("/dev/fd/", "/proc/")) else name, copy, size_bytes)


def _is_empty(fd: int) -> bool:
    """Return whether a file of size 0 is empty. Some files with content have size 0 (/proc, network file systems)."""
    try:
        return not os.pread(fd, 1, 0)
    except OSError:  # the copy of this file fails with the same error, and reports it
        return False


async def _until_written(fd: int) -> None:
    """Wait until a pipe has bytes, or its writer has closed it. Before it has a writer, a read would return nothing."""
    loop = asyncio.get_running_loop()
    is_written = asyncio.Event()
    loop.add_reader(fd, is_written.set)
    try:
        await is_written.wait()
    finally:
        loop.remove_reader(fd)


async def _copied(fd: int, path: str, environ: Mapping[str, str]) -> tuple[int, int]:
    """Copy all that can be read to a file without a name. Return its descriptor and its size in bytes."""
    directory, shown = environ.get("TMPDIR") or "/tmp", printable(path)
    try:
        copy = open_nameless(directory)
    except OSError as error:
        why = f"{shown} must be copied to {directory} before it is sent, which fails: {error.strerror}; set TMPDIR"
        raise FileUnreadable(why) from None
    size_bytes = 0
    try:
        while True:
            try:
                piece = await read_some(fd)
            except OSError as error:
                raise FileUnreadable(f"{shown} cannot be read: {error.strerror}") from None
            if not piece:
                return copy, size_bytes
            try:
                write_all(copy, piece)
            except OSError as error:
                why = f"{shown} cannot be copied to {directory}: {error.strerror}; free space there, or set TMPDIR"
                raise FileUnreadable(why) from None
            size_bytes += len(piece)
    except BaseException:
        os.close(copy)
        raise
