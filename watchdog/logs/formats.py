"""Format log events as JSON, or as text for people."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from .level import LEVEL_NAMES
from .text import as_plain, as_text, as_unicode, printable, printable_lines


class JsonFormat:
    """One object per line, with its keys in this order: timestamp, level, event, logger, then the rest."""

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder(enc_hook=str)

    def event(self, level: str, fields: dict[str, Any], *, age_s: float = 0.0) -> bytes:
        # These four keys come first.
        record: dict[str, Any] = {"timestamp": "", "level": "", "event": "", "logger": None, **fields}
        record["timestamp"], record["level"] = _time_before(age_s), level  # no field replaces these two
        try:
            return self._encoder.encode(record) + b"\n"
        except Exception:  # such as lone surrogates of a file name, integers over 64 bits, a repr that raises
            return self._encoder.encode({key: as_plain(value) for key, value in record.items()}) + b"\n"

    def script_lines(
        self, levels: list[int], texts: list[str], stream: str, call_id: str | None, *, age_s: float = 0.0
    ) -> bytes:
        came = _time_before(age_s)
        heads = {
            level: f'{{"timestamp":"{came}","level":"{LEVEL_NAMES[level]}","event":'.encode() for level in set(levels)
        }
        origin = origin_of(call_id) | {"stream": stream}
        if call_id is not None:
            origin["call_id"] = as_unicode(call_id)
        tail = self._encoder.encode(origin)
        tail = b"," + tail[1:] + b"\n"
        # One JSON string per line. Line ends inside a string are escaped, so each line end here ends a string.
        strings = self._encoder.encode_lines(texts)
        if len(heads) == 1:
            (head,) = heads.values()
            return head + strings[:-1].replace(b"\n", tail + head) + tail
        pairs = zip(levels, strings.split(b"\n"), strict=False)  # the last piece is empty
        return b"".join([heads[level] + string + tail for level, string in pairs])


class ConsoleFormat:
    """Text for people."""

    def __init__(self, *, colors: bool) -> None:
        import structlog.dev  # its import takes a tenth of the time of a start, and JSON does not need it

        self._render = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
        self._dim, self._reset = ("\x1b[2m", "\x1b[0m") if colors else ("", "")
        shades = {"debug": "\x1b[32m", "info": "\x1b[32m", "warning": "\x1b[33m"} if colors else {}
        shade = "\x1b[31m" if colors else ""
        self._badges = {
            number: f"[{shades.get(name, shade)}{name:<9}{self._reset}]" for number, name in LEVEL_NAMES.items()
        }

    def event(self, level: str, fields: dict[str, Any], *, age_s: float = 0.0) -> bytes:
        # Callers choose some names and ids, which must not reach the terminal as control sequences.
        shown = {
            key: printable_lines(value) if isinstance(value, str) else printable(as_text(value))
            for key, value in fields.items()
        }
        shown |= {"timestamp": _clock_time_before(age_s), "level": level}
        return (str(self._render(None, level, shown)) + "\n").encode()

    def script_lines(
        self, levels: list[int], texts: list[str], stream: str, call_id: str | None, *, age_s: float = 0.0
    ) -> bytes:
        head = f"{self._dim}{_clock_time_before(age_s)}{self._reset} "
        tail = f"  {self._dim}{stream} {'worker' if call_id is None else printable(call_id)}{self._reset}\n"
        return "".join(
            [f"{head}{self._badges[level]} {printable(text)}{tail}" for level, text in zip(levels, texts, strict=True)]
        ).encode()


LogFormat = JsonFormat | ConsoleFormat


def origin_of(call_id: str | None) -> dict[str, str]:
    """Return the field that shows where a line is from: a script in a call, or a worker that is not in a call."""
    return {"logger": "worker" if call_id is None else "script"}


def time_in(later_s: float) -> str:
    """Return the time ``later_s`` seconds from now, as the log writes times."""
    return _time_before(-later_s)


def _time_before(age_s: float) -> str:
    time_ = datetime.now(UTC) - timedelta(seconds=age_s) if age_s else datetime.now(UTC)
    return time_.isoformat(timespec="microseconds")[:-6] + "Z"


def _clock_time_before(age_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(time.time() - age_s))
