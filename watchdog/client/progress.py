"""Show the progress of a call on a terminal, and with --live the log of the script."""

from __future__ import annotations

from typing import Any

from ..logs.formats import JsonFormat
from ..logs.progress import ProgressBar, progress_text
from ..logs.sink import LogWriter
from ..logs.text import printable, printable_lines

_FLUSH_S = 1.0
_COLORS = {"debug": "\x1b[2m", "warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}
_RESET = "\x1b[0m"


class PlainFormat(JsonFormat):
    """The form of the only event that :class:`LogWriter` itself logs."""

    def event(self, level: str, fields: dict[str, Any], *, age_s: float = 0.0) -> bytes:
        """Return the line that reports dropped lines."""
        return f"({fields.get('count')} lines of the log are missing here, because they were not read)\n".encode()


class Display:
    """Shows one call.

    Args:
        has_status: whether there is a line for progress below the log: stderr is a terminal, and this is the only call.
        has_colors: whether lines of the log have the colour of their level.
        label: what to write before each line of the log; "" if this is the only call.
    """

    def __init__(self, sink: LogWriter, *, has_status: bool, has_colors: bool, label: str = "") -> None:
        self._sink = sink
        self._bar = ProgressBar(sink) if has_status else None
        self._has_colors = has_colors
        self._label = f"{printable(label)}: " if label else ""

    def begin(self, verb: str, size_bytes: int | None) -> None:
        """Begin the progress bar of a transfer."""
        if self._bar is not None:
            self._bar.begin(verb, 1, size_bytes)

    def moved(self, count: int) -> None:
        """Note that bytes of the transfer were sent or received."""
        if self._bar is not None:
            self._bar.moved(count)

    def status(self, text: str, fraction: float | None = None) -> None:
        """Show a text in place of the progress bar. ``fraction``: how much of the work is done, from 0 to 1."""
        if self._bar is None:
            return
        self._sink.show_status(text if fraction is None else progress_text(fraction, text))

    def end(self) -> None:
        """Remove the line for progress. Then the answer can be written to the same terminal."""
        if self._bar is not None:
            self.status("")
            self._bar = None
            self._sink.flush(_FLUSH_S)

    def is_written(self) -> bool:
        """Wait until all lines are written. Return false if that takes too long."""
        return self._sink.flush(_FLUSH_S)

    def log(self, level: str, text: str) -> bool:
        """Show a line of the script, or a whole traceback. If nobody reads stderr, drop it and return false."""
        shown = printable_lines(text).replace("\n", f"\n{self._label}")
        color = _COLORS.get(level, "") if self._has_colors else ""
        return self._sink.put(f"{color}{self._label}{shown}{_RESET if color else ''}\n".encode())

    def note(self, text: str) -> None:
        """Show a line of this program."""
        self._sink.put_own(f"{self._label}{printable_lines(text)}\n".encode())
