"""Format log events as text for people at a terminal.

::

    12:37:30  listening on http://localhost:8080, runs script.sh (2 calls at a time, 20 may wait)
    12:37:34  6668c6e9  start  photo.jpg 1.1 kB
    12:37:34  6668c6e9  | a line that the script printed
    12:37:34  6668c6e9  ok  0.02 s  photo.jpg 1.1 kB -> gray.jpg 585 B

Callers and scripts choose some names, ids and texts. The control characters in them never reach the terminal.
"""

from __future__ import annotations

import time
from typing import Any

from . import readable
from .console_events import worded
from .level import LEVEL_NAMES
from .text import as_text, printable, printable_lines

_ID_COLUMNS = 8
_MOST_CALLS = 100
_RESET = "\x1b[0m"
_DIM = "\x1b[2m"
_GREEN = "\x1b[32m"
_COLORS = {"debug": _DIM, "warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[1;31m"}


class ConsoleFormat:
    """Text for people. Each line of a text is a line on the terminal, and lines of one call are aligned."""

    is_for_people = True

    def __init__(self, *, colors: bool) -> None:
        self._has_colors = colors
        # The reasons that events of a call have shown, by call id.
        self._said: dict[str, list[str]] = {}

    def event(self, level: str, fields: dict[str, Any], *, age_s: float = 0.0) -> bytes:
        if "stream" in fields:
            return self._long_line(level, fields, age_s)
        call_id = fields.get("call_id")
        text = worded(level, fields, is_reason_said=call_id is not None and self._is_said(str(call_id), fields))
        lead = self._colored(text.lead, _GREEN if text.is_good else _COLORS.get(level, ""))
        origin = None if call_id is None else readable.call_id(printable(as_text(call_id)))
        head, indent = self._margins(origin, age_s)
        return (head + (lead + text.rest).replace("\n", indent) + "\n").encode()

    def script_lines(
        self, levels: list[int], texts: list[str], stream: str, call_id: str | None, *, age_s: float = 0.0
    ) -> bytes:
        head, indent = self._margins(_origin(call_id), age_s)
        lines = [
            f"{head}{self._script_text(LEVEL_NAMES[level], text, indent)}\n"
            for level, text in zip(levels, texts, strict=True)
        ]
        return "".join(lines).encode()

    def _long_line(self, level: str, fields: dict[str, Any], age_s: float) -> bytes:
        """Return a line of a script that has an event of its own, for example because the line was cut."""
        head, indent = self._margins(_origin(fields.get("call_id")), age_s)
        text = self._script_text(level, as_text(fields["event"]), indent)
        if fields.get("truncated"):
            text += f"{indent}  (cut: {readable.size(fields['line_bytes'])} in all)"
        return f"{head}{text}\n".encode()

    def _script_text(self, level: str, text: str, indent: str) -> str:
        """Return a text as the script printed it. The text and its colour show the level, so no level is added."""
        color = _COLORS.get(level, "")
        return "| " + f"{indent}| ".join(self._colored(line, color) for line in printable_lines(text).split("\n"))

    def _margins(self, origin: str | None, age_s: float) -> tuple[str, str]:
        """Return the text before the first line, and the text between lines, which aligns the further lines."""
        clock = time.strftime("%H:%M:%S", time.localtime(time.time() - age_s))
        shown = "" if origin is None else f"{origin:<{_ID_COLUMNS}}  "
        return self._colored(f"{clock}  {shown}", _DIM), "\n" + " " * len(f"{clock}  {shown}")

    def _colored(self, text: str, color: str) -> str:
        return f"{color}{text}{_RESET}" if self._has_colors and color and text else text

    def _is_said(self, call_id: str, fields: dict[str, Any]) -> bool:
        """Return whether an earlier event of a call had the reason of this event, and note the reason."""
        reason = fields.get("reason")
        if fields["event"] == "invocation ended":
            return reason in self._said.pop(call_id, ())
        if reason is None:
            return False
        said = self._said.setdefault(call_id, [])
        if reason in said:
            return True
        said.append(reason)
        while len(self._said) > _MOST_CALLS:
            self._said.pop(next(iter(self._said)), None)
        return False


def _origin(call_id: str | None) -> str:
    """Return where a script's line is from: its call, or a worker that is not in a call."""
    return "worker" if call_id is None else readable.call_id(printable(call_id))
