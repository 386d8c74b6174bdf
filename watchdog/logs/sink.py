"""Hold log lines in a bounded buffer until a thread has written them."""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
from collections import deque

from .formats import JsonFormat, LogFormat
from .text import fitted, printable

_BUFFER_BYTES = 4 * 1024 * 1024
_WRITE_BYTES = 256 * 1024
# The pause after a write, in which more lines are collected for the next one. A pause of 10 ms took four times as much
# processor time.
_PAUSE_S = 0.05
_USUAL_COLUMNS = 80  # the width of a terminal that does not report its size
_ERASE_LINE = b"\r\x1b[K"  # go to the beginning of the line and erase it (ECMA-48, CR and EL)


class LogWriter:
    """A bounded buffer before a descriptor, and the thread that empties it.

    ``level``: events below this number are not logged. ``is_full``: script lines are dropped until half of the buffer
    is free again. So the log has few gaps, even if a script prints very many lines. After each gap an event has the
    number of dropped lines. This program's own events are few. For them the buffer is twice as large.
    """

    def __init__(
        self,
        fd: int,
        form: LogFormat | None = None,
        *,
        level: int = logging.INFO,
        limit_bytes: int = _BUFFER_BYTES,
    ) -> None:
        self.level = level
        self.form = form or JsonFormat()
        self.is_full = False
        self._fd = fd
        self._limit_bytes = limit_bytes
        self._queue: deque[tuple[bytes, int]] = deque()
        self._pending_bytes = 0  # the bytes that are queued or being written
        self._lost = 0
        self._status = b""
        self._is_status_shown = False
        self._reader_is_gone = False
        self._is_line_cut = False
        self._closing = False
        self._is_hurried = False
        self._is_waiting = False
        self._thread: threading.Thread | None = None
        # The lock is reentrant, because a destructor may log a warning while the same thread holds the lock.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    def put(self, data: bytes, events: int = 1) -> bool:
        """Take script lines that are ready to be written, and return true. If there is no room, count them as lost."""
        with self._lock:
            if self._pending_bytes >= self._limit_bytes:
                self.is_full = True
            if self.is_full:
                self._lost += events
            else:
                self._append(data, events)
            return not self.is_full

    def put_own(self, data: bytes) -> None:
        """Take an event of this program."""
        with self._lock:
            if self._pending_bytes < 2 * self._limit_bytes:
                self._append(data, 1)
            else:
                self._lost += 1

    def show_status(self, text: str) -> None:
        """Keep a line of text, such as a progress bar, below the events on a terminal. An empty text removes the line.

        The same thread writes the line and the events, so that they do not mix. A text that is wider than the terminal
        is cut, because only one line can be erased.
        """
        shown = fitted(printable(text), self._columns() - 1) if text else ""
        with self._lock:
            self._status = shown.encode()
            self._append(_ERASE_LINE, 0)

    def lose(self, events: int) -> None:
        """Count script lines that were dropped before they became events, because ``is_full`` was true."""
        with self._lock:
            self._lost += events
            if not self.is_full:  # the writer has made room since the caller checked
                self._report_lost()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all is written. Return False if that took too long."""
        with self._lock:
            self._is_hurried = True
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self._pending_bytes, timeout_s)
            finally:
                self._is_hurried = False

    def close(self, timeout_s: float) -> bool:
        """Write what is left and end the thread.

        If the thread does not end in time, return False and leave it running. A later event starts a new thread.
        """
        with self._lock:
            thread = self._thread
            self._closing = True
            self._changed.notify_all()
        if thread is not None:
            thread.join(timeout_s)
        return thread is None or not thread.is_alive()

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._fd).columns or _USUAL_COLUMNS
        except OSError:  # the terminal is gone
            return _USUAL_COLUMNS

    def _append(self, data: bytes, events: int) -> None:
        if self._reader_is_gone or not data:
            return
        self._queue.append((data, events))
        self._pending_bytes += len(data)
        if self._thread is None:
            self._closing = False
            # A daemon thread, so that the process can end although nobody reads its log.
            self._thread = threading.Thread(target=self._write_all, name="log-writer", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:
                # No thread can start now (a limit of processes, the interpreter's end). The next event tries again.
                self._thread = None
        elif self._is_waiting or self._pending_bytes >= _WRITE_BYTES:
            self._changed.notify_all()

    def _report_lost(self) -> None:
        if self._lost:
            lost, self._lost = self._lost, 0
            fields = {"event": "log lines dropped", "logger": "logs", "count": lost}
            self._append(self.form.event("warning", fields), 1)

    def _write_all(self) -> None:
        while True:
            with self._lock:
                while not self._queue:
                    if self._closing:
                        self._thread = None
                        return
                    self._is_waiting = True
                    self._changed.wait()
                    self._is_waiting = False
                batch, events, size_bytes = self._next_batch()
            written = self._write(batch)
            del batch  # the thread may now wait for a long time
            with self._lock:
                self._pending_bytes -= size_bytes
                if not written:
                    self._lost += events
                if self._reader_is_gone:
                    self._queue.clear()
                    self._pending_bytes = 0
                    self.is_full = False
                elif self.is_full and self._pending_bytes < self._limit_bytes // 2:
                    self.is_full = False
                    self._report_lost()
                elif written and self._lost and not self.is_full:
                    self._report_lost()
                if not self._pending_bytes:
                    self._changed.notify_all()
                # Without a pause, each event would wake this thread, and both threads would compete for the GIL.
                self._changed.wait_for(self._cannot_wait, _PAUSE_S)

    def _next_batch(self) -> tuple[bytes, int, int]:
        """Return the bytes to write next, the number of their events, and the size of these events."""
        batch, events, size_bytes = [], 0, 0
        while self._queue and size_bytes < _WRITE_BYTES:
            data, count = self._queue.popleft()
            batch.append(data)
            events += count
            size_bytes += len(data)
        if self._is_status_shown:
            batch.insert(0, _ERASE_LINE)
        batch.append(self._status)
        self._is_status_shown = bool(self._status)
        return b"".join(batch), events, size_bytes

    def _cannot_wait(self) -> bool:
        return self._closing or self._is_hurried or self._pending_bytes >= _WRITE_BYTES

    def _write(self, data: bytes) -> bool:
        # A full disk may have cut a line off. The next line must not be glued to it.
        rest = memoryview(b"\n" + data if self._is_line_cut else data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                # Another process that shares the descriptor has made it non-blocking.
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
            except OSError as error:
                # Any other error, such as a full disk, may be over at the next event.
                self._reader_is_gone = error.errno in (errno.EPIPE, errno.EBADF)
                self._is_line_cut = self._is_line_cut or len(rest) < len(data)
                return False
        self._is_line_cut = False
        return True
