"""Turn the output lines of a script into log events."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Literal, Protocol

from ..system.pattern import pattern
from . import java_trace
from .formats import origin_of
from .level import LEVEL_NAMES, LINE_BYTES, SHORT_LINE, classify, classify_again, may_show_level
from .log_rate import LogRate
from .observer import Observer
from .sink import LogWriter
from .text import decode
from .traceback import Traceback

# Lines that are encoded before the next check for room. One feed may have 32,768 lines of two bytes, which make 6 MiB
# of events.
_SLICE = 512
_PROGRESS_INTERVAL_S = 1.0


class Timer(Protocol):
    """The object that ``call_later`` returns."""

    def cancel(self) -> None: ...


class ScriptLog:
    """The events of one stream of one invocation.

    A carriage return starts the line again, as in a progress bar. The current state of such a line is logged at most
    once a second, and at the end of the line. A line over 64 KiB is cut, and its event has ``truncated`` and
    ``line_bytes``. A Python traceback or a Java stack trace is one event, with all exceptions that it chains. It ends
    before the first line that is not part of it, at the end of the stream, or after a second of silence. A line that
    only looks like the first one of a Java stack trace is held back for a tenth of a second. The timestamp of a trace,
    or of a line that was held back, is the time of its first line. All binary data is one event at the end.

    Args:
        call_id: None if the lines belong to no call: a worker prints them while it loads or waits.
        rate: the room of the call in the log. Lines without room are dropped and counted.
        observer: gets each line that is logged.
        clock: returns seconds that never decrease.
        call_later: calls a function after a number of seconds, like the method of an event loop. Without it, a line or
            traceback that is held back is logged with the next feed.
    """

    def __init__(
        self,
        sink: LogWriter,
        *,
        stream: Literal["stdout", "stderr"],
        call_id: str | None,
        rate: LogRate | None = None,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        call_later: Callable[[float, Callable[[], None]], Timer] | None = None,
    ) -> None:
        self._clock = clock
        self._call_later = call_later
        self._timer: Timer | None = None  # runs while a traceback waits for more lines
        self._sink = sink
        self._rate = rate or LogRate(0)
        self._observer = observer
        self._stream = stream
        self._call_id = call_id
        self._levels: list[int] = []  # the levels of the lines that wait for the end of this feed
        self._texts: list[str] = []
        self._line = bytearray()  # the unfinished line since its last carriage return
        self._line_bytes = 0
        self._state = (b"", 0)  # the text before that carriage return, and its whole length
        self._logged_state = b""
        self._progress_s: float | None = None  # when this line began to be a progress bar, or was last logged
        self._traceback = Traceback()
        self._waiting_since_s: float | None = None  # when the feed with the first line of the traceback ended
        self._fed_s = 0.0
        self._binary_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take output of the script, which may be cut at any byte. Raise nothing. 64 KiB take milliseconds."""
        now_s = self._clock()
        if self._traceback and now_s - self._fed_s > self._traceback.pause_s:
            self._end_traceback()
        self._fed_s = now_s
        end = data.rfind(b"\n")
        start = 0
        if end >= 0 and (self._sink.is_full or not self._rate.has_room()):
            self._drop(data.count(b"\n"), end + 1)
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
        """Take binary data. Only its size is logged, when the stream has ended."""
        self._end_unfinished()
        self._binary_bytes += len(data)

    def close(self) -> None:
        """Log what is unfinished, because the stream has ended."""
        self._end_unfinished()
        if self._binary_bytes:
            self._log_event(logging.INFO, f"{self._binary_bytes:,} bytes of binary data on {self._stream}")
        self._report_dropped()

    def _wait_for_more(self, now_s: float) -> None:
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        if self._timer is None and self._call_later is not None:
            self._timer = self._call_later(self._traceback.pause_s, self._end_after_silence)

    def _end_after_silence(self) -> None:
        """End the traceback if nothing came for long enough. Otherwise check again later."""
        self._timer = None
        assert self._call_later is not None
        left_s = self._fed_s + self._traceback.pause_s - self._clock()
        if left_s > 0:
            self._timer = self._call_later(left_s, self._end_after_silence)
        else:
            self._end_traceback()
            self._send()

    def _end_unfinished(self) -> None:
        if self._line or self._state[1]:
            self._end_line()
        self._end_traceback()
        self._send()

    def _take_lines(self, block: bytes, now_s: float) -> None:
        """Take whole lines. The block has no line end after the last one."""
        if len(block) > LINE_BYTES:
            for piece in block.split(b"\n"):
                self._grow(piece, now_s)
                self._end_line()
            return
        if b"\r" in block:
            block = _LAST_BLANKS.sub(b"", _OVERWRITTEN.sub(b"", block))
        self._take_text(decode(block))

    def _take_text(self, text: str) -> None:
        """Take the text of one or more whole lines."""
        if self._traceback or may_show_level(text):
            for line in text.split("\n"):
                self._take(line)
        elif self._sink.level <= logging.INFO:
            lines = list(filter(str.strip, text.split("\n")))
            self._texts += lines
            self._levels += [logging.INFO] * len(lines)

    def _grow(self, piece: bytes, now_s: float) -> None:
        """Extend the unfinished line."""
        before, carriage_return, piece = piece.rpartition(b"\r")
        if carriage_return:
            shown = before.rstrip()
            if shown and b"\r" in before[: len(shown)]:
                shown = before[shown.rfind(b"\r") + 1 :].partition(b"\r")[0]
                self._state = (shown[:LINE_BYTES], len(shown))
            elif shown or self._line.strip():
                # The text before the first carriage return belongs to the line that this piece continues.
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
                self._log_line()

    def _extend(self, piece: bytes) -> None:
        self._line += piece[: max(0, LINE_BYTES - len(self._line))]
        self._line_bytes += len(piece)

    def _end_line(self) -> None:
        self._log_line()
        self._line.clear()
        self._line_bytes = 0
        self._state = (b"", 0)
        self._logged_state = b""
        self._progress_s = None

    def _log_line(self) -> None:
        """Log the line as a terminal shows it now, unless this state is already logged."""
        shown, size_bytes = self._state
        if self._line.strip():
            shown, size_bytes = bytes(self._line), self._line_bytes
        if shown and shown == self._logged_state:
            return
        self._logged_state = shown if self._progress_s is not None else b""
        text = decode(shown)
        if size_bytes <= LINE_BYTES:
            self._take_text(text)
        elif not self._traceback.takes(text):
            self._end_traceback()
            self._log_event(classify(text) or logging.INFO, text, truncated=True, line_bytes=size_bytes)

    def _take(self, line: str) -> None:
        """Take one whole line, as a part of a traceback or as an event of its own."""
        if self._traceback:
            if self._traceback.takes(line):
                return
            self._end_traceback()
        if not line or line.isspace():
            return
        if (line[0] in "T " or java_trace.may_begin(line)) and self._traceback.starts(line):
            return
        level = (classify_again(line) if len(line) < SHORT_LINE else classify(line)) or logging.INFO
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
            if size_bytes > LINE_BYTES:
                self._log_event(level, text, age_s, truncated=True, line_bytes=size_bytes)
            elif self._sink.level <= level:
                self._levels.append(level)
                self._texts.append(text)
                if age_s:  # the lines of this feed come after the traceback, and are newer
                    self._send(age_s)

    def _log_event(self, level: int, text: str, age_s: float = 0.0, **more: object) -> None:
        """Log one event by itself, with fields that lines do not have."""
        if level >= self._sink.level:
            self._send()
            if not self._rate.has_room():
                self._lose_for_rate(1, len(text))
                return
            self._report_dropped()
            if self._observer is not None:
                self._observer.log_lines(self._stream, (level,), (text,))
            fields = {"event": text, **origin_of(self._call_id), "stream": self._stream, **self._fields_of_call()}
            event = self._sink.form.event(LEVEL_NAMES[level], fields | more, age_s=age_s)
            self._rate.spend(len(event))
            self._sink.put(event)

    def _send(self, age_s: float = 0.0) -> None:
        levels, texts = self._levels, self._texts
        if not texts:
            return
        self._levels, self._texts = [], []
        for at in range(0, len(texts), _SLICE):
            if self._sink.is_full:
                self._lose_for_sink(len(texts) - at)
                return
            if not self._rate.has_room():
                self._lose_for_rate(len(texts) - at, sum(map(len, texts[at:])))
                return
            self._report_dropped()
            ahead = slice(at, at + _SLICE)
            if self._observer is not None:
                self._observer.log_lines(self._stream, levels[ahead], texts[ahead])
            lines = self._sink.form.script_lines(levels[ahead], texts[ahead], self._stream, self._call_id, age_s=age_s)
            self._rate.spend(len(lines))
            self._sink.put(lines, min(_SLICE, len(texts) - at))

    def _fields_of_call(self) -> dict[str, str]:
        return {} if self._call_id is None else {"call_id": self._call_id}

    def _report_dropped(self) -> None:
        """Log how many lines of the call were dropped. The next line that has room comes after this event."""
        lines, size_bytes = self._rate.dropped()
        if lines and self._sink.level <= logging.WARNING:
            fields = {
                "event": "script's log lines dropped",
                "logger": "logs",
                **self._fields_of_call(),
                "count": lines,
                "bytes": size_bytes,
                "reason": f"the call logged over {self._rate.bytes_per_s} bytes in a second (max_log_rate)",
            }
            self._sink.put_own(self._sink.form.event("warning", fields))

    def _lose_for_sink(self, lines: int) -> None:
        self._sink.lose(lines)
        if self._observer is not None:
            self._observer.lines_dropped(lines)

    def _lose_for_rate(self, lines: int, size_bytes: int) -> None:
        self._rate.drop(lines, size_bytes)
        if self._observer is not None:
            self._observer.lines_dropped(lines)

    def _drop(self, lines: int, size_bytes: int) -> None:
        """Drop whole lines unread, because there is no room for them and reading takes time."""
        self._end_traceback()
        self._send()
        if self._sink.is_full:
            self._lose_for_sink(lines)
        else:
            self._lose_for_rate(lines, size_bytes)
        self._line.clear()
        self._line_bytes = 0
        self._state = (b"", 0)
        self._logged_state = b""
        self._progress_s = None


# A terminal does not show text that is overwritten after a carriage return. This pattern finds such text in whole
# lines. ScriptLog._grow removes such text from an unfinished line.
_OVERWRITTEN = pattern(rb"(?m)^[^\n]*\r(?=[^\n\r]*\S)")
_LAST_BLANKS = pattern(rb"(?m)\r[^\S\n]*$")
