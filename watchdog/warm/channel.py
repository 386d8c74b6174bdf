"""The two pipes between the server and a worker: descriptor 3 for calls, and descriptor 4 for answers."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
import termios
from collections.abc import Callable

from .protocol import Answer, AnswerLines, ProtocolError

_FIRST_DESCRIPTOR = 5  # larger than 3 and 4, which the worker gets
_READ_BYTES = 4096
_MOST_READS = 16  # enough for a full pipe (64 KiB); a limit for a worker that writes faster than the server reads
_NOTHING = bytes(4)  # a C int of the value 0


class Channel:
    """The server's ends of the two pipes.

    Args:
        take: is called with each answer of the worker.
        report_fault: is called with a text if the worker writes something wrong. Then no more answers are taken.
        report_closed: is called with a text if the worker has closed one of its ends, or has exited.
        after_reading: is called by the event loop after these three, when no other task runs.

    Attributes:
        descriptors: the worker's ends, for 3 and 4. Close them with :meth:`close_descriptors` when it has started.
        cut_line: a text if the worker has closed its end within a line; else None.

    Raises:
        OSError: no descriptor is free, or this user watches too many descriptors.
    """

    def __init__(
        self,
        take: Callable[[Answer], None],
        report_fault: Callable[[str], None],
        report_closed: Callable[[str], None],
        after_reading: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._take = take
        self._report_fault = report_fault
        self._report_closed = report_closed
        self._after_reading = after_reading
        self._lines = AnswerLines()
        self._unsent = b""
        self._calls_fd = self._answers_fd = -1
        self.descriptors: list[int] = []
        self.cut_line: str | None = None
        ends: list[int] = []
        try:
            for _ in range(2):
                ends += os.pipe()
            for fd in (ends[0], ends[3]):
                self.descriptors.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_DESCRIPTOR))
                os.close(fd)
                ends.remove(fd)
            self._loop.add_reader(ends[1], self._readable)
        except OSError:
            self.close_descriptors()
            for fd in ends:
                os.close(fd)
            raise
        self._calls_fd, self._answers_fd = ends
        os.set_blocking(self._calls_fd, False)
        os.set_blocking(self._answers_fd, False)

    def fileno(self) -> int:
        """Return the descriptor from which answers are read; -1 if it is closed."""
        return self._answers_fd

    def send(self, line: bytes) -> None:
        """Send a call. The worker must have read the previous call."""
        self._unsent = line
        self._write()

    @property
    def untaken_bytes(self) -> int:
        """The number of bytes of the last call that the worker has not read yet."""
        if self._calls_fd < 0:
            return 0
        waiting = fcntl.ioctl(self._calls_fd, termios.FIONREAD, _NOTHING)
        return int.from_bytes(waiting, sys.byteorder) + len(self._unsent)

    def read(self) -> None:
        """Take the answers that the worker has written so far. Stop after some of them if it writes without a pause."""
        for _ in range(_MOST_READS):
            if self._answers_fd < 0:
                return
            try:
                data = os.read(self._answers_fd, _READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                self._close_answers()
                if (error := self._lines.end()) is not None:
                    self.cut_line = str(error)
                self._report_closed(self.cut_line or "the worker closed fd 4, to which it must write answers")
                return
            for answer in self._lines.feed(data):
                if isinstance(answer, ProtocolError):
                    self._close_answers()
                    self._report_fault(str(answer))
                else:
                    self._take(answer)
            if len(data) < _READ_BYTES:
                return

    def end_calls(self) -> None:
        """Close the pipe of calls, so that the worker reads end-of-file."""
        if self._calls_fd >= 0:
            self._loop.remove_writer(self._calls_fd)
            os.close(self._calls_fd)
            self._calls_fd = -1

    def close_descriptors(self) -> None:
        """Close the worker's ends in this process.

        While they are open here, the server cannot notice that the worker has closed them.
        """
        while self.descriptors:
            os.close(self.descriptors.pop())

    def close(self) -> None:
        """Close both pipes."""
        self.close_descriptors()
        self.end_calls()
        self._close_answers()

    def _readable(self) -> None:
        self.read()
        self._after_reading()

    def _write(self) -> None:
        self._loop.remove_writer(self._calls_fd)
        try:
            self._unsent = self._unsent[os.write(self._calls_fd, self._unsent) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._report_closed("the worker closed fd 3, from which it must read calls")
            return
        if self._unsent:  # the call is longer than the room in the pipe
            self._loop.add_writer(self._calls_fd, self._write)

    def _close_answers(self) -> None:
        if self._answers_fd >= 0:
            self._loop.remove_reader(self._answers_fd)
            os.close(self._answers_fd)
            self._answers_fd = -1
