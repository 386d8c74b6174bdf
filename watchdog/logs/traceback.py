"""Join the lines of a Python or Java traceback into one event."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..system.pattern import pattern
from . import java_trace
from .level import LINE_BYTES, classify

# The longest silence inside a traceback, and after a line that only looks like the first one of a Java stack trace.
_TRACEBACK_PAUSE_S = 1.0
_FIRST_LINE_PAUSE_S = 0.1


class Traceback:
    """The lines of one Python traceback, or of one Java stack trace (``java_trace.py``).

    The object is false if it has no lines. Python marks the beginning of a traceback, but not its end. After the line
    of the exception, a blank line and one of two sentences may lead to another traceback. All lines of an exception
    group are indented.
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
        """Return the seconds of silence after which the traceback is complete."""
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
        """Return whether a traceback begins with this line. If so, keep the line."""
        self._is_java = False
        if _SYNTAX_ERROR.match(line):
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
        """Keep this line if it belongs to the traceback. Return whether it does."""
        if not line.strip():
            line = ""  # a blank line that came in two pieces is empty, too
        if not self._lines or not self._next(line):
            return False
        self._keep(line)
        return True

    def end(self) -> tuple[str, int]:
        """Return the text of the traceback, and forget its lines.

        The text has at most 64 KiB. If the text was cut, the second value is the whole length in bytes, else 0.
        """
        text = "\n".join(self._lines).rstrip()
        whole_bytes = self._size_bytes if self._size_bytes > self._kept_bytes else 0
        self._lines = []
        self._kept_bytes = self._size_bytes = 0
        return text, whole_bytes

    def _keep(self, line: str) -> None:
        data = line.encode()
        self._size_bytes += len(data) + 1
        room_bytes = LINE_BYTES - self._kept_bytes
        if len(data) < room_bytes:
            self._lines.append(line)
            self._kept_bytes += len(data) + 1
        elif room_bytes > 0:
            self._lines.append(data[: room_bytes - 1].decode("utf-8", "ignore"))
            self._kept_bytes = LINE_BYTES

    def _header(self, line: str) -> bool:
        if line.startswith(_GROUP):
            self._next = self._after_exception
        elif line.startswith(_TRACEBACK):
            self._next = self._frame
        else:
            return False
        return True

    def _frame(self, line: str) -> bool:
        if line[:1] in ("", " ", "\t") or line.startswith("> File "):  # loguru prints "> File" and blank lines
            return True
        self._next = self._after_exception
        return _EXCEPTION.match(line) is not None

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
_SYNTAX_ERROR = pattern(r'  File "[^"]+", line \d+$')  # a traceback that begins with this line has no header
_EXCEPTION = pattern(r"[A-Za-z_][\w.<>]*(?::|$)")
