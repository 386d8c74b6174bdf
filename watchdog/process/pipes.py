"""Make the pipes of a command, read its output from them, and write its input."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import sys
import termios
from collections.abc import AsyncIterator, Callable

from .watch import Watch

# If the bytes are short log lines, a larger piece would block the event loop for too long.
READ_BYTES = 32 * 1024
_NOTHING = bytes(4)  # a C int of the value 0
Consumer = Callable[[bytes], "asyncio.Future[None] | None"]


class Pipe:
    """The pipe of a command's stdout or stderr.

    Each command gets new pipes. A command can change the size, owner, mode, flags, signals and locks of its pipe. These
    changes stay as long as the pipe is open, and a check of all of them takes as many system calls as a new pipe.

    This process keeps the writing end open, too, so it never reads an end of file. An end of file is not needed: a
    command has ended when its process exits, not when its streams end.
    """

    def __init__(self, watch: Watch, consume: Consumer) -> None:
        self._watch = watch
        self._consume = consume
        self._reading_fd, self.writing_fd = os.pipe()
        self._name = ""
        self._is_read = False
        self._pause: asyncio.Future[None] | None = None
        self.taken_bytes = 0
        self._is_closed = False
        try:
            watch.watch(self._reading_fd, self._readable)
        except OSError:  # this user watches too many descriptors (epoll(7), max_user_watches)
            os.close(self._reading_fd)
            os.close(self.writing_fd)
            raise

    @property
    def name(self) -> str:
        """The name of both ends of the pipe in /proc; "" if the pipe is closed. Any thread may read it."""
        if not self._name:
            try:
                inode = os.fstat(self.writing_fd).st_ino
            except OSError:
                return ""
            if self._is_closed:  # closed meanwhile: the descriptor may already belong to another file
                return ""
            self._name = f"pipe:[{inode}]"
        return self._name

    def fileno(self) -> int:
        """Return the descriptor of the reading end."""
        return self._reading_fd

    async def finish(self) -> None:
        """Read what is in the pipe now. A hidden process that still writes must not delay the call."""
        until_bytes = self.taken_bytes + self._waiting_bytes()
        while not self._take(until_bytes):
            assert self._pause is not None
            await asyncio.wait([self._pause])

    def drain(self) -> bool:
        """Read what is in the pipe now. Return False if the consumer wants a pause before the rest."""
        if self._is_closed:  # the supervisor has read all of it before
            return self._pause is None
        if fcntl.ioctl(self._reading_fd, termios.FIONREAD, _NOTHING) == _NOTHING:
            return self._pause is None
        return self._take(self.taken_bytes + self._waiting_bytes())

    @property
    def written_bytes(self) -> int:
        """The number of bytes ever written into the pipe, read or not."""
        return self.taken_bytes + self._waiting_bytes()

    @property
    def is_paused(self) -> bool:
        """Whether the consumer has paused the stream: a process that writes may be waiting until the pipe has room."""
        return self._pause is not None

    def _take(self, until_bytes: int) -> bool:
        while self._pause is None and self.taken_bytes < until_bytes and self._read():
            pass
        return self._pause is None

    def _waiting_bytes(self) -> int:
        if self._is_closed:
            return 0
        return int.from_bytes(fcntl.ioctl(self._reading_fd, termios.FIONREAD, _NOTHING), sys.byteorder)

    def close(self) -> None:
        self._is_closed = True
        self._watch.close_watched(self._reading_fd)
        os.close(self.writing_fd)

    def _readable(self) -> None:
        self._read()

    def _read(self) -> bool:
        """Read one piece. Return False if the pipe is empty, because another process has read from it."""
        if not self._is_read:
            # Another process may read from the pipe first. Then the server must not wait for bytes. Most scripts print
            # nothing, so the pipe becomes non-blocking only now.
            self._is_read = True
            os.set_blocking(self._reading_fd, False)
        try:
            data = os.read(self._reading_fd, READ_BYTES)
        except BlockingIOError:
            return False
        self.taken_bytes += len(data)
        pause = self._consume(data)
        if pause is not None:
            self._pause = pause
            self._watch.forget(self._reading_fd)
            pause.add_done_callback(self._resume)
        return True

    def _resume(self, pause: asyncio.Future[None]) -> None:
        self._pause = None
        if not self._is_closed:
            self._watch.watch(self._reading_fd, self._readable)


class Feed:
    """The writing end of the command's stdin, and the task that writes into it.

    ``error``: the exception that the source raised while the command still read its stdin.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, source: AsyncIterator[bytes]) -> None:
        self._loop = loop
        self._fd = fd
        self._source = source
        self._task: asyncio.Task[None] | None = None
        self.error: BaseException | None = None
        os.set_blocking(fd, False)

    @property
    def is_awaited(self) -> bool:
        """Whether a process may be waiting for input: it has read all bytes so far, more will come, stdin is open."""
        if self._fd < 0 or self._task is None or self._task.done():
            return False
        waiting = int.from_bytes(fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4)), sys.byteorder)
        poll = select.poll()
        poll.register(self._fd, 0)
        return waiting == 0 and not poll.poll(0)  # POLLERR: the pipe has no reader

    def start(self, *, if_broken: Callable[[], None]) -> None:
        """Begin to write. ``if_broken`` is called once if the source raises an exception."""
        self._task = asyncio.ensure_future(self._write_all(if_broken))

    async def stop(self) -> None:
        """Stop writing."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1

    async def _write_all(self, if_broken: Callable[[], None]) -> None:
        try:
            async for piece in self._source:
                rest = memoryview(piece)
                while rest:
                    try:
                        rest = rest[os.write(self._fd, rest) :]
                    except BlockingIOError:
                        await self._until_writable()
                    except BrokenPipeError:
                        return
        except Exception as error:
            # Do not close stdin: the command would treat the input so far as the complete input.
            self.error = error
            if_broken()
        else:
            self.close()

    async def _until_writable(self) -> None:
        writable = self._loop.create_future()
        self._loop.add_writer(self._fd, set_done, writable)
        try:
            await writable
        finally:
            self._loop.remove_writer(self._fd)


def set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
