"""Logs: this program's own events, and a script's output lines as events with a level.

::

    log.info(...)  ───┐
    logging, warnings ├─> one JSON object or one line of text ─> Sink: bounded buffer ─> thread ─> stderr
    ScriptLog.feed ───┘

Nothing here waits for whoever reads stderr. A reader that stalls fills the pipe, then the sink's buffer; from
then on script lines are dropped and counted, and one WARNING event tells how many once there is room again. The lines
of one call are also dropped and counted if they are over ``max_log_rate``.

A script's lines do not pass through structlog: a feed is taken apart and encoded as a whole, in about a
microsecond a line, because it happens on the event loop.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import re
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol

import msgspec
import structlog
from structlog.typing import EventDict, FilteringBoundLogger

from . import java_trace
from .log_rate import LogRate

_BUFFER_BYTES = 4 * 1024 * 1024
_WRITE_BYTES = 256 * 1024
# After a write, the time in which more is gathered.
_PAUSE_S = 0.01
_LINE_BYTES = 64 * 1024
# Lines encoded before the buffer is looked at again: 32,768 two-byte lines in a feed make 6 MiB of events.
_SLICE = 512
_PROGRESS_INTERVAL_S = 1.0
# The longest silence inside a traceback, and after a line that only looks like the first one of a Java stack trace.
_TRACEBACK_PAUSE_S = 1.0
_FIRST_LINE_PAUSE_S = 0.1
_ERASE_LINE = b"\r\x1b[K"  # to the line's begin, and erase it (ECMA-48, CR and EL)

_NAMES = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
    logging.CRITICAL: "critical",
}


def configure(*, level: str, format: str, stream_fd: int = 2) -> Sink:  # noqa: A002
    """Send this program's events, those of :mod:`logging` and Python's warnings to one new sink.

    Args:
        level: ``NOTSET``, ``DEBUG``, ``INFO``, ``WARNING``, ``ERROR`` or ``CRITICAL``; what is below
            is dropped.
        format: ``json``, ``console``, or ``auto``: console if the descriptor is a terminal.
        stream_fd: where to; it is never closed.

    Raises:
        ValueError: another level or format; ``config`` lets none through.
    """
    number = {"NOTSET": 0} | {name.upper(): number for number, name in _NAMES.items()}
    if level not in number:
        raise ValueError(f"log level {level!r}: one of {', '.join(number)} is accepted")
    if format not in ("auto", "json", "console"):
        raise ValueError(f"log format {format!r}: auto, json or console is accepted")
    is_terminal = os.isatty(stream_fd)
    form: _Form = _Json()
    if format == "console" or (format == "auto" and is_terminal):
        form = _Console(colors=is_terminal and not os.environ.get("NO_COLOR"))
    sink = Sink(stream_fd, form, level=number[level])

    structlog.configure(
        processors=[structlog.processors.format_exc_info, sink.render],
        wrapper_class=structlog.make_filtering_bound_logger(number[level]),
        logger_factory=lambda name="watchdog": _SinkLogger(sink, name),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Handler(sink)]
    root.setLevel(number[level])
    logging.captureWarnings(True)
    return sink


def get(name: str) -> FilteringBoundLogger:
    """The logger of one module: ``log.info("listening", port=8080)``. May be made before configure()."""
    logger: FilteringBoundLogger = structlog.get_logger(name)
    return logger


def printable(text: str) -> str:
    r"""Text that does nothing to a terminal: control characters and what was not UTF-8, as ``\x1b``."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), _unicode(text))


class Sink:
    """A bounded buffer before a descriptor, and the thread that empties it.

    ``level``: events below this number are not wanted. ``is_full``: script lines are lost until half of the
    buffer is free again, so that a flood leaves few gaps, each followed by the event that counts them. This
    program's own few events have as much room again.
    """

    def __init__(
        self,
        fd: int,
        form: _Form | None = None,
        *,
        level: int = logging.INFO,
        limit_bytes: int = _BUFFER_BYTES,
    ) -> None:
        self.level = level
        self.form = form or _Json()
        self.is_full = False
        self._fd = fd
        self._limit_bytes = limit_bytes
        self._queue: deque[tuple[bytes, int]] = deque()
        self._pending_bytes = 0  # queued, or being written
        self._lost = 0
        self._status = b""
        self._is_status_shown = False
        self._reader_is_gone = False
        self._closing = False
        self._is_hurried = False
        self._is_waiting = False
        self._thread: threading.Thread | None = None
        # Its lock is reentrant: a destructor may warn, and so come here, while this very thread holds it.
        self._changed = threading.Condition()

    def render(self, logger: _SinkLogger, level: str, fields: EventDict) -> bytes:
        """The last structlog processor: one event as the bytes of its line."""
        return self.form.event(level, {"logger": logger.name, **fields})

    def put(self, data: bytes, events: int = 1) -> None:
        """Take script lines that are ready to be written, or count them as lost."""
        with self._changed:
            if self._pending_bytes >= self._limit_bytes:
                self.is_full = True
            if self.is_full:
                self._lost += events
            else:
                self._append(data, events)

    def put_own(self, data: bytes) -> None:
        """Take an event of this program."""
        with self._changed:
            if self._pending_bytes < 2 * self._limit_bytes:
                self._append(data, 1)
            else:
                self._lost += 1

    def show_status(self, text: str) -> None:
        """Keep a line of text, such as a progress bar, below the events on a terminal; "" takes it away.

        It goes the events' way, so that neither is written into the other.
        """
        with self._changed:
            self._status = printable(text).encode()
            self._append(_ERASE_LINE, 0)

    def lose(self, events: int) -> None:
        """Count script lines that were not even made into events because ``is_full``."""
        with self._changed:
            self._lost += events
            if not self.is_full:  # the writer has made room since the caller looked
                self._tell_lost()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all is written; False if that took too long."""
        with self._changed:
            self._is_hurried = True
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self._pending_bytes, timeout_s)
            finally:
                self._is_hurried = False

    def close(self, timeout_s: float) -> bool:
        """Write what is left and end the thread; False, and the thread is left behind, if that took too long.

        A later event starts a new thread.
        """
        with self._changed:
            thread = self._thread
            self._closing = True
            self._changed.notify_all()
        if thread is not None:
            thread.join(timeout_s)
        return thread is None or not thread.is_alive()

    def _append(self, data: bytes, events: int) -> None:
        if self._reader_is_gone or not data:
            return
        self._queue.append((data, events))
        self._pending_bytes += len(data)
        if self._thread is None:
            self._closing = False
            # A daemon: a reader that never reads must not keep the process from ending.
            self._thread = threading.Thread(target=self._write_all, name="log-writer", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:
                # No thread may be made now (a limit of processes, the interpreter's end); the next event tries again.
                self._thread = None
        elif self._is_waiting or self._pending_bytes >= _WRITE_BYTES:
            self._changed.notify_all()

    def _tell_lost(self) -> None:
        if self._lost:
            lost, self._lost = self._lost, 0
            fields = {"event": "log lines dropped", "logger": "logs", "count": lost}
            self._append(self.form.event("warning", fields), 1)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    if self._closing:
                        self._thread = None
                        return
                    self._is_waiting = True
                    self._changed.wait()
                    self._is_waiting = False
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
            written = self._write(b"".join(batch))
            with self._changed:
                self._pending_bytes -= size_bytes
                if not written:
                    self._lost += events
                if self._reader_is_gone:
                    self._queue.clear()
                    self._pending_bytes = 0
                    self.is_full = False
                elif self.is_full and self._pending_bytes < self._limit_bytes // 2:
                    self.is_full = False
                    self._tell_lost()
                elif written and self._lost and not self.is_full:
                    self._tell_lost()
                if not self._pending_bytes:
                    self._changed.notify_all()
                # Else each event would wake this thread, which then disputes the interpreter's lock with the loop.
                self._changed.wait_for(self._cannot_wait, _PAUSE_S)

    def _cannot_wait(self) -> bool:
        return self._closing or self._is_hurried or self._pending_bytes >= _WRITE_BYTES

    def _write(self, data: bytes) -> bool:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                # Another process that shares the descriptor has made it non-blocking.
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
            except OSError as error:
                # Anything else (a full disk) may be over by the next event.
                self._reader_is_gone = error.errno in (errno.EPIPE, errno.EBADF)
                return False
        return True


class _SinkLogger:
    """What structlog hands the rendered bytes to."""

    def __init__(self, sink: Sink, name: str) -> None:
        self.name = name
        self.debug = self.info = self.warning = self.error = self.critical = sink.put_own


class _Handler(logging.Handler):
    """Events of :mod:`logging` (asyncio, aiohttp, warnings), in the same form and to the same sink."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:  # the caller's format string does not fit its arguments
            text = f"{record.msg!r} {record.args!r}"
        fields: dict[str, Any] = {"event": text.strip(), "logger": record.name}
        if record.exc_info and record.exc_info[0]:
            fields["exception"] = logging.Formatter().formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = record.stack_info
        level = max((number for number in _NAMES if number <= record.levelno), default=logging.DEBUG)
        self._sink.put_own(self._sink.form.event(_NAMES[level], fields))


# ---- Forms ----


class _Json:
    """One object a line, keys in this order: timestamp, level, event, logger, then the rest."""

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder(enc_hook=str)

    def event(self, level: str, fields: dict[str, Any], *, age_s: float = 0.0) -> bytes:
        record = {
            "timestamp": _time_before(age_s),
            "level": level,
            "event": fields.pop("event", ""),
            "logger": fields.pop("logger", None),
        }
        record |= {key: value for key, value in fields.items() if key not in record}
        try:
            return self._encoder.encode(record) + b"\n"
        except Exception:  # lone surrogates of a file name, integers over 64 bits, whatever a repr raises
            return self._encoder.encode({key: _plain(value) for key, value in record.items()}) + b"\n"

    def script_lines(
        self, levels: list[int], texts: list[str], stream: str, call_id: str, *, age_s: float = 0.0
    ) -> bytes:
        came = _time_before(age_s)
        heads = {level: f'{{"timestamp":"{came}","level":"{_NAMES[level]}","event":'.encode() for level in set(levels)}
        tail = self._encoder.encode({"logger": "script", "stream": stream, "call_id": _unicode(call_id)})
        tail = b"," + tail[1:] + b"\n"
        # One JSON string a line; a line end inside of a string is escaped, so each one here ends a string.
        strings = self._encoder.encode_lines(texts)
        if len(heads) == 1:
            (head,) = heads.values()
            return head + strings[:-1].replace(b"\n", tail + head) + tail
        pairs = zip(levels, strings.split(b"\n"), strict=False)  # the last piece is empty
        return b"".join([heads[level] + string + tail for level, string in pairs])


class _Console:
    """Text for people."""

    def __init__(self, *, colors: bool) -> None:
        self._render = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
        self._dim, self._reset = ("\x1b[2m", "\x1b[0m") if colors else ("", "")
        shades = {"debug": "\x1b[32m", "info": "\x1b[32m", "warning": "\x1b[33m"} if colors else {}
        shade = "\x1b[31m" if colors else ""
        self._badges = {number: f"[{shades.get(name, shade)}{name:<9}{self._reset}]" for number, name in _NAMES.items()}

    def event(self, level: str, fields: dict[str, Any], *, age_s: float = 0.0) -> bytes:
        # A caller chooses names and ids in here: they must not reach the terminal as control sequences.
        shown = {
            key: _printable_lines(value) if isinstance(value, str) else printable(_text(value))
            for key, value in fields.items()
        }
        shown |= {"timestamp": _clock_time_before(age_s), "level": level}
        return (str(self._render(None, level, shown)) + "\n").encode()

    def script_lines(
        self, levels: list[int], texts: list[str], stream: str, call_id: str, *, age_s: float = 0.0
    ) -> bytes:
        head = f"{self._dim}{_clock_time_before(age_s)}{self._reset} "
        tail = f"  {self._dim}{stream} {printable(call_id)}{self._reset}\n"
        return "".join(
            [f"{head}{self._badges[level]} {printable(text)}{tail}" for level, text in zip(levels, texts, strict=True)]
        ).encode()


_Form = _Json | _Console


def time_in(later_s: float) -> str:
    """Return the time ``later_s`` seconds from now, as the log writes times."""
    return _time_before(-later_s)


def _time_before(age_s: float) -> str:
    time_ = datetime.now(UTC) - timedelta(seconds=age_s) if age_s else datetime.now(UTC)
    return time_.isoformat(timespec="microseconds")[:-6] + "Z"


def _clock_time_before(age_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(time.time() - age_s))


def _plain(value: object) -> Any:
    if isinstance(value, int | float | None):
        return value if not isinstance(value, int) or abs(value) < 2**63 else str(value)
    return _unicode(_text(value))


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__} that has no text>"


def _unicode(text: str) -> str:
    """Bytes that were not UTF-8, which Python keeps as lone surrogates in names, as escapes."""
    return text if text.isascii() else text.translate(_NOT_UTF8).encode("utf-8", "backslashreplace").decode()


def _printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


_UNPRINTABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


# ---- A script's output ----


class Timer(Protocol):
    """What ``call_later`` returns."""

    def cancel(self) -> None: ...


class ScriptLog:
    """One stream of one invocation, as events.

    A carriage return starts the line again: of a progress bar, the last state is logged, at most once a second
    and at the end of its line. A line over 64 KiB keeps its beginning, with ``truncated`` and ``line_bytes``.
    A Python traceback or a Java stack trace is one event, whatever it chains; it is complete with the first line that
    is not part of it, at the end of the stream, or when the stream was silent for a second. A line that only looks like
    the first one of a Java stack trace waits for a tenth of a second. Both have the time at which their first line
    came. Binary data is one event at the end.

    Args:
        rate: how much of the log the call may have; what is over it is dropped and counted.
        clock: seconds that only grow.
        call_later: calls a function after so many seconds, as an event loop does. Without it, what has waited is
            logged with the next feed.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        stream: Literal["stdout", "stderr"],
        call_id: str,
        rate: LogRate | None = None,
        clock: Callable[[], float] = time.monotonic,
        call_later: Callable[[float, Callable[[], None]], Timer] | None = None,
    ) -> None:
        self._clock = clock
        self._call_later = call_later
        self._timer: Timer | None = None  # runs while a traceback waits for more
        self._sink = sink
        self._rate = rate or LogRate(0)
        self._stream = stream
        self._call_id = call_id
        self._levels: list[int] = []  # of the lines that wait for the end of this feed
        self._texts: list[str] = []
        self._line = bytearray()  # the unfinished line since its last carriage return
        self._line_bytes = 0
        self._state = (b"", 0)  # what stood before that carriage return, and its whole length
        self._told_state = b""
        self._progress_s: float | None = None  # when this line began to be a progress bar, or was last told
        self._traceback = _Traceback()
        self._waiting_since_s: float | None = None  # when the feed ended that began the traceback
        self._fed_s = 0.0
        self._binary_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take what the script wrote, cut anywhere. Never raises; takes milliseconds for 64 KiB."""
        now_s = self._clock()
        if self._traceback and now_s - self._fed_s > self._traceback.pause_s:
            self._end_traceback()
        self._fed_s = now_s
        end = data.rfind(b"\n")
        start = 0
        if end >= 0 and (self._sink.is_full or not self._rate.has_room()):
            self._lose(data.count(b"\n"), end + 1)
            start = end + 1
        elif end >= 0:
            if self._line or self._state[1]:
                start = data.find(b"\n") + 1
                self._grow(data[: start - 1], now_s)
                self._end_line()
            if start <= end:
                self._take_lines(data[start:end], now_s)
            start = end + 1
        if start < len(data):
            self._grow(data[start:], now_s)
        self._send()
        if self._traceback:
            self._wait_for_more(now_s)

    def leave_out(self, data: bytes) -> None:
        """Take binary data: only its size is logged, when the stream has ended."""
        self._end_unfinished()
        self._binary_bytes += len(data)

    def close(self) -> None:
        """The stream has ended: tell what is unfinished."""
        self._end_unfinished()
        if self._binary_bytes:
            self._tell(logging.INFO, f"{self._binary_bytes:,} bytes of binary data on {self._stream}")
        self._report_dropped()

    def _wait_for_more(self, now_s: float) -> None:
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        if self._timer is None and self._call_later is not None:
            self._timer = self._call_later(self._traceback.pause_s, self._look_for_silence)

    def _look_for_silence(self) -> None:
        """End the traceback if nothing more came for long enough; else look again later."""
        self._timer = None
        assert self._call_later is not None
        left_s = self._fed_s + self._traceback.pause_s - self._clock()
        if left_s > 0:
            self._timer = self._call_later(left_s, self._look_for_silence)
        else:
            self._end_traceback()
            self._send()

    def _end_unfinished(self) -> None:
        if self._line or self._state[1]:
            self._end_line()
        self._end_traceback()
        self._send()

    def _take_lines(self, block: bytes, now_s: float) -> None:
        """Whole lines, without the last one's end."""
        if len(block) > _LINE_BYTES:
            for piece in block.split(b"\n"):
                self._grow(piece, now_s)
                self._end_line()
            return
        if b"\r" in block:
            block = _LAST_BLANKS.sub(b"", _OVERWRITTEN.sub(b"", block))
        text = _decode(block)
        if self._traceback or _may_show_level(text):
            for line in text.split("\n"):
                self._take(line)
        elif self._sink.level <= logging.INFO:
            lines = list(filter(str.strip, text.split("\n")))
            self._texts += lines
            self._levels += [logging.INFO] * len(lines)

    def _grow(self, piece: bytes, now_s: float) -> None:
        """Go on with the unfinished line."""
        before, carriage_return, piece = piece.rpartition(b"\r")
        if carriage_return:
            shown = before.rstrip()
            if shown and b"\r" in before[: len(shown)]:
                shown = before[shown.rfind(b"\r") + 1 :].partition(b"\r")[0]
                self._state = (shown[:_LINE_BYTES], len(shown))
            elif shown or self._line.strip():
                # The first carriage return ends what had come before.
                first = before.partition(b"\r")[0]
                self._extend(first)
                self._state = (bytes(self._line), self._line_bytes)
            self._line.clear()
            self._line_bytes = 0
        self._extend(piece)
        if carriage_return:
            if self._progress_s is None:
                self._progress_s = now_s
            elif now_s - self._progress_s >= _PROGRESS_INTERVAL_S:
                self._progress_s = now_s
                self._tell_line()

    def _extend(self, piece: bytes) -> None:
        self._line += piece[: max(0, _LINE_BYTES - len(self._line))]
        self._line_bytes += len(piece)

    def _end_line(self) -> None:
        self._tell_line()
        self._line.clear()
        self._line_bytes = 0
        self._state = (b"", 0)
        self._told_state = b""
        self._progress_s = None

    def _tell_line(self) -> None:
        """Tell the line as a terminal shows it now, unless it was told so already."""
        shown, size_bytes = self._state
        if self._line.strip():
            shown, size_bytes = bytes(self._line), self._line_bytes
        if shown and shown == self._told_state:
            return
        self._told_state = shown if self._progress_s is not None else b""
        text = _decode(shown)
        if size_bytes <= _LINE_BYTES:
            self._take(text)
        elif not self._traceback.takes(text):
            self._end_traceback()
            self._tell(classify(text) or logging.INFO, text, truncated=True, line_bytes=size_bytes)

    def _take(self, line: str) -> None:
        """One whole line: part of a traceback, or an event of its own."""
        if self._traceback:
            if self._traceback.takes(line):
                return
            self._end_traceback()
        if not line or line.isspace():
            return
        if (line[0] in "T " or java_trace.may_begin(line)) and self._traceback.starts(line):
            return
        level = (_classify_again(line) if len(line) < _SHORT else classify(line)) or logging.INFO
        if level >= self._sink.level:
            self._levels.append(level)
            self._texts.append(line)

    def _end_traceback(self) -> None:
        if self._traceback:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            level = self._traceback.level
            text, size_bytes = self._traceback.end()
            since_s, self._waiting_since_s = self._waiting_since_s, None
            age_s = 0.0 if since_s is None else self._clock() - since_s
            if size_bytes > _LINE_BYTES:
                self._tell(level, text, age_s, truncated=True, line_bytes=size_bytes)
            elif self._sink.level <= level:
                self._levels.append(level)
                self._texts.append(text)
                if age_s:  # the lines of this feed come after it, and are newer
                    self._send(age_s)

    def _tell(self, level: int, text: str, age_s: float = 0.0, **more: object) -> None:
        """An event with more than a text."""
        if level >= self._sink.level:
            self._send()
            if not self._rate.has_room():
                self._rate.drop(1, len(text))
                return
            self._report_dropped()
            fields = {"event": text, "logger": "script", "stream": self._stream, "call_id": self._call_id}
            event = self._sink.form.event(_NAMES[level], fields | more, age_s=age_s)
            self._rate.spend(len(event))
            self._sink.put(event)

    def _send(self, age_s: float = 0.0) -> None:
        levels, texts = self._levels, self._texts
        if not texts:
            return
        self._levels, self._texts = [], []
        for at in range(0, len(texts), _SLICE):
            if self._sink.is_full:
                self._sink.lose(len(texts) - at)
                return
            if not self._rate.has_room():
                self._rate.drop(len(texts) - at, sum(map(len, texts[at:])))
                return
            self._report_dropped()
            ahead = slice(at, at + _SLICE)
            lines = self._sink.form.script_lines(levels[ahead], texts[ahead], self._stream, self._call_id, age_s=age_s)
            self._rate.spend(len(lines))
            self._sink.put(lines, min(_SLICE, len(texts) - at))

    def _report_dropped(self) -> None:
        """Log how many lines of the call found no room, before the next line that has room."""
        lines, size_bytes = self._rate.dropped()
        if lines and self._sink.level <= logging.WARNING:
            fields = {
                "event": "script's log lines dropped",
                "logger": "logs",
                "call_id": self._call_id,
                "count": lines,
                "bytes": size_bytes,
                "reason": f"the call logged over {self._rate.bytes_per_s} bytes in a second (max_log_rate)",
            }
            self._sink.put_own(self._sink.form.event("warning", fields))

    def _lose(self, lines: int, size_bytes: int) -> None:
        """Drop whole lines unseen: there is no room, and to look at them would only cost time."""
        self._end_traceback()
        self._send()
        if self._sink.is_full:
            self._sink.lose(lines)
        else:
            self._rate.drop(lines, size_bytes)
        self._line.clear()
        self._line_bytes = 0
        self._state = (b"", 0)
        self._told_state = b""
        self._progress_s = None


class _Traceback:
    """The lines of one Python traceback, or of one Java stack trace (``java_trace.py``); false while there are none.

    Python tells where a traceback begins but not where it ends: after the line of the exception, a blank line
    and one of two sentences lead to a further one. An exception group is indented as a whole.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._kept_bytes = 0
        self._size_bytes = 0
        self._next: Callable[[str], bool] = self._frame
        self._is_java = False
        self._has_frames = False

    def __bool__(self) -> bool:
        return bool(self._lines)

    @property
    def pause_s(self) -> float:
        """The silence after which it is complete."""
        return _FIRST_LINE_PAUSE_S if self._is_java and not self._has_frames else _TRACEBACK_PAUSE_S

    @property
    def level(self) -> int:
        """Return the level of the whole trace: the level that a Java trace's first line shows, else ERROR.

        A line that only looks like the first line of a Java trace has its own level.
        """
        if not self._is_java:
            return logging.ERROR
        return classify(self._lines[0]) or (logging.ERROR if self._has_frames else logging.INFO)

    def starts(self, line: str) -> bool:
        """Begin with this line, if it begins a traceback."""
        self._is_java = False
        if _SYNTAX_ERROR(line):
            self._next = self._frame
        elif self._header(line):
            pass
        elif java_trace.may_begin(line) and java_trace.begins(line):
            self._is_java = True
            self._has_frames = java_trace.is_frame(line)
            self._next = self._java_frame if self._has_frames else self._java_message
        else:
            return False
        self._keep(line)
        return True

    def takes(self, line: str) -> bool:
        """Go on with this line, if the traceback does."""
        if not line.strip():
            line = ""  # as it comes when it was cut
        if not self._lines or not self._next(line):
            return False
        self._keep(line)
        return True

    def end(self) -> tuple[str, int]:
        """Its text, at most 64 KiB, and its whole length in bytes; there is none afterwards."""
        text = "\n".join(self._lines).rstrip()
        whole_bytes = self._size_bytes if self._size_bytes > self._kept_bytes else 0
        self._lines = []
        self._kept_bytes = self._size_bytes = 0
        return text, whole_bytes

    def _keep(self, line: str) -> None:
        data = line.encode()
        self._size_bytes += len(data) + 1
        room_bytes = _LINE_BYTES - self._kept_bytes
        if len(data) < room_bytes:
            self._lines.append(line)
            self._kept_bytes += len(data) + 1
        elif room_bytes > 0:
            self._lines.append(data[: room_bytes - 1].decode("utf-8", "ignore"))
            self._kept_bytes = _LINE_BYTES

    def _header(self, line: str) -> bool:
        if line.startswith(_GROUP):
            self._next = self._after_exception
        elif line.startswith(_TRACEBACK):
            self._next = self._frame
        else:
            return False
        return True

    def _frame(self, line: str) -> bool:
        if line[:1] in ("", " ", "\t") or line.startswith("> File "):  # "> File" and blank lines: loguru
            return True
        self._next = self._after_exception
        return _EXCEPTION(line) is not None

    def _after_exception(self, line: str) -> bool:
        if not line.strip():
            self._next = self._after_blank
            return True
        return line[0] in " \t"

    def _after_blank(self, line: str) -> bool:
        if line.strip() in _CHAINS:
            self._next = self._after_chain
            return True
        return not line.strip()

    def _java_message(self, line: str) -> bool:
        if java_trace.is_frame(line):
            self._has_frames = True
            self._next = self._java_frame
        return java_trace.goes_on(line, in_message=True)

    def _java_frame(self, line: str) -> bool:
        if java_trace.is_further(line):
            self._next = self._java_message
        return java_trace.goes_on(line, in_message=False)

    def _after_chain(self, line: str) -> bool:
        return not line.strip() or self._header(line)


_TRACEBACK = "Traceback (most recent call last):"
_GROUP = "  + Exception Group " + _TRACEBACK
_CHAINS = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
_SYNTAX_ERROR = re.compile(r'  File "[^"]+", line \d+$').match  # has no header of its own
_EXCEPTION = re.compile(r"[A-Za-z_][\w.<>]*(?::|$)").match
# What whole lines leave visible of their carriage returns, as ScriptLog._grow finds it for an unfinished line.
_OVERWRITTEN = re.compile(rb"(?m)^[^\n]*\r(?=[^\n\r]*\S)")
_LAST_BLANKS = re.compile(rb"(?m)\r[^\S\n]*$")
_ESCAPE_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\))")


# What is not UTF-8, as the error handler "backslashreplace" has it, which takes a microsecond for each byte.
_NOT_UTF8 = {0xDC00 + byte: f"\\x{byte:02x}" for byte in range(0x80, 0x100)}


def _decode(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("utf-8", "surrogateescape").translate(_NOT_UTF8)
    return _ESCAPE_SEQUENCE.sub("", text) if "\x1b" in text else text


# ---- The level that a line shows ----

_WORDS = {
    logging.DEBUG: "TRACE VERBOSE DEBUG DBG",
    logging.INFO: "INFO INFORMATION NOTICE SUCCESS DEFAULT",
    logging.WARNING: "WARNING WARN",
    logging.ERROR: "ERROR ERR SEVERE",
    logging.CRITICAL: "CRITICAL CRIT FATAL ALERT EMERGENCY EMERG PANIC",
}
_LEVELS = {word: level for level, words in _WORDS.items() for word in words.split()}
_SYSLOG = (50, 50, 50, 40, 30, 20, 20, 10)  # emerg, alert, crit, err, warning, notice, info, debug
_LETTERS = {"D": 10, "I": 20, "W": 30, "E": 40, "F": 50}

# Longer words first: WARN must not win over WARNING.
_UPPER = "(?:" + "|".join(sorted(_LEVELS, key=len, reverse=True)) + ")"
# As classes, "[Ee][Rr][Rr]", which are tried faster than the flag "(?i:".
_ANY = re.sub("([A-Z])", lambda match: f"[{match[1]}{match[1].lower()}]", _UPPER)
# After the word of a level stands the end of the line, a space or a sign: "ERROR.log" shows none.
_END = r"(?=[\s:|\]>!]|$)"
# A number or a switch alone after the colon is a measure or a setting: "error: 0.031", "Debug: False".
_COLON = r":(?=\s|$)(?!\s*(?:[-+]?\d[\d.,e+-]*\s*%?|(?i:true|false|yes|no|on|off|none|null))\s*$)"
_NAME = r"[\w.$/@#<>-]++"
_TIME = (
    r"(?=[\[\dMTWFSJADNO])(?=[^:]{2,32}+(?<=\d\d):\d\d)"
    r"(?>(?:\[?(?:\d[\d/:.,TZ+-]*+|(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun|Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\b"
    r"|[AP]M\b|UTC\b|[+-]\d{4}\b)[,:\]|]*+[ \t]*+)+)[|:\s-]*+"
)
_BRACKETS = r"(?:\[[^\[\]]*+\]|\([^()]*+\))[\s:|-]*+"
_NAMED = rf"{_NAME}(?:\[\d+\])?(?::(?!:)\s*|\s*\|\s*|\s+-\s+|:[\w<>]+:\d+\s+-\s+)"
_IN_BRACKETS = rf"\[\s*(?:[\w.]+:)?({_ANY})\s*\]"

# A row for each way to show a level, tried in this order; the first group that matched is the level.
_SHOWN_BY_WORD = re.compile(
    "|".join(
        (
            # ERROR: x, ERROR x, WARNING:root:x, INFO     x, [warning] x, <error> x, Error: x
            rf"({_UPPER}){_END}|[\[<(]\s*({_ANY})\s*[\]>)]|({_ANY}){_COLON}",
            # error[E0425]: x, Warning message:, Error in f(): x, fatal error: x, Fatal Python error: x
            r"(error)\[\w+\]:|(?:During startup - )?(Warning) messages?:|(Error) in .+:|([Ff]atal)(?: \w+)? error: ",
            # npm error x, npm ERR! x, npm warn x
            r"npm (?i:(warn|err)(?:or)?\b)",
            # A time, then names, numbers and brackets, and the level among them.
            (
                rf"{_TIME}(?:{_BRACKETS}|{_NAMED}){{0,3}}?"
                rf"(?:(?!(?:no|not|an?|any|without)\b){_NAME}(?:\[\d+\])?:?\s+)?(?:{_BRACKETS}|{_NAMED}){{0,2}}?"
                rf"(?:{_IN_BRACKETS}|({_UPPER}){_END}|({_ANY})(?::(?:\s|$)|\t|\s*\|))"
            ),
            # [main] ERROR x, (MainThread) ERROR: x, (node:12) Warning: x, 8 [main] WARN x (milliseconds)
            rf"(?:\d++\s+)?(?:{_BRACKETS}){{1,4}}?(?:({_UPPER}){_END}|({_ANY}){_COLON}|{_IN_BRACKETS})",
            # name: ERROR: x, name - ERROR - x, main.c:3:5: warning: x, cc1: fatal error: x
            (
                rf"[\w.$/@#<>+-]++(?::\d+){{0,2}}(?::\s*|\s*\|\s*|\s+-\s+)"
                rf"(?:({_UPPER})(?:(?=\s*[:|\]])|\s+-\s|$)|([Ff]atal) error: |({_ANY}){_COLON})"
            ),
            # level=error msg="x"
            (
                r'(?:[\w.@-]+=(?:"(?>(?:[^"\\]|\\.)*)"|[^\s"]*+)\s+){0,8}'
                rf'(?:level|lvl|severity)="?({_ANY})"?(?=[\s,]|$)'
            ),
        )
    )
).match
# Where no word of a level stands alone, or one that means a level there only (java.util.logging's FINE).
_OTHERS = (
    (re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception)(?:: |$)|Traceback \(most recent").match, logging.ERROR),
    (re.compile(r"Exception (?:in thread|ignored (?:in|while))\b").match, logging.ERROR),
    (re.compile(r"\S+:\d+: \w*Warning: ").match, logging.WARNING),
    (re.compile(r"FINE(?:R|ST)?: ").match, logging.DEBUG),
)
_PRIORITY = re.compile(r"<(\d{1,3})>").match
# glog, absl and klog; TensorFlow's "2026-11-24 22:59:41.377: W tensorflow/"; apt's "E: ".
_LETTER = re.compile(r"(?:([DIWEF])\d{4} \d\d:\d\d:\d\d|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: ([IWEF]) |([WE]): )").match
_SHOWN_WITHIN = 300
_LEVEL_IN_JSON = re.compile(r'"(?:level|severity|levelname|lvl)"\s*:\s*"(\w+)"').search

# Text in which nothing of these occurs shows no level but INFO. A look at 64 KiB costs less than a
# millisecond; one at each of its lines may cost twenty.
_TELLING_WORD = re.compile("trace|verbose|debug|dbg|fine|warn|err|severe|crit|fatal|alert|emerg|panic|exception").search
_TELLING_START = re.compile(
    r'(?m)^(?:[DIWEF]\d{4} |<\d|\{|\tat |[WE]: |  File "|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IWEF] )'
).search


def _may_show_level(text: str) -> bool:
    return bool(_TELLING_WORD(text.lower()) or _TELLING_START(text))


# A flood of short lines repeats itself.
_SHORT = 32
_classify_again = functools.lru_cache(maxsize=512)(lambda line: classify(line))


class _Shown(msgspec.Struct):
    """Where JSON loggers put the level."""

    level: Any = None
    severity: Any = None
    levelname: Any = None
    lvl: Any = None
    ecs: Any = msgspec.field(default=None, name="log.level")


_shown = msgspec.json.Decoder(_Shown)


def classify(line: str) -> int | None:
    """The level that a line shows, as a number of :mod:`logging`; None if it shows none."""
    if line.startswith("{"):
        return _json_level(line)
    line = line[:_SHOWN_WITHIN]
    if match := _PRIORITY(line):
        return _SYSLOG[int(match[1]) & 7]
    if match := _LETTER(line):
        return _LETTERS[match[match.lastindex or 1]]
    if match := _SHOWN_BY_WORD(line):
        return _LEVELS[match[match.lastindex or 1].upper()]
    for matches, level in _OTHERS:
        if matches(line):
            return level
    return None


def _json_level(line: str) -> int | None:
    with contextlib.suppress(msgspec.DecodeError, ValueError, RecursionError):
        shown = _shown.decode(line)
        for value in (shown.level, shown.severity, shown.levelname, shown.lvl, shown.ecs):
            level = _value_level(value)
            if level is not None:
                return level
        return None
    # One that was cut is no JSON any more, but the level stands near the beginning as a rule.
    match = _LEVEL_IN_JSON(line[:_SHOWN_WITHIN]) if len(line) >= _LINE_BYTES // 4 else None
    return _LEVELS.get(match[1].upper()) if match else None


def _value_level(value: object) -> int | None:
    """A word, a syslog severity (0 to 7), or a number of pino and bunyan (10 trace to 60 fatal)."""
    if isinstance(value, str):
        return _LEVELS.get(value.strip().upper()) or (_value_level(int(value)) if value.isdecimal() else None)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    if 0 <= value <= 7:
        return _SYSLOG[value]
    if 10 <= value <= 69:
        return max(10, min(value // 10 * 10 - 10, 50))
    return None
