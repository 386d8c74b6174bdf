"""Format log events as JSON. The format for people is in ``console.py``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import msgspec

from .level import LEVEL_NAMES
from .text import as_plain, as_unicode


class LogFormat(Protocol):
    """A form of the log.

    ``is_for_people``: the log also shows when a call waits and starts, and the names of its files.
    """

    @property
    def is_for_people(self) -> bool: ...

    def event(self, level: str, fields: dict[str, Any], *, age_s: float = 0.0) -> bytes:
        """Return an event of this program. ``age_s``: the event happened so many seconds ago."""

    def script_lines(
        self, levels: list[int], texts: list[str], stream: str, call_id: str | None, *, age_s: float = 0.0
    ) -> bytes:
        """Return lines of a script as events. ``call_id``: None if a worker printed the lines between calls."""


class JsonFormat:
    """One object per line, with its keys in this order: timestamp, level, event, logger, then the rest."""

    is_for_people = False

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder(enc_hook=str)

    def event(self, level: str, fields: dict[str, Any], *, age_s: float = 0.0) -> bytes:
        # These four keys come first.
        record: dict[str, Any] = {"timestamp": "", "level": "", "event": "", "logger": None, **fields}
        record["timestamp"], record["level"] = _time_before(age_s), level  # no field replaces these two
        try:
            return self._encoder.encode(record) + b"\n"
        except Exception:  # for example a lone surrogate in a name, an integer over 64 bits, a repr that fails
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


def origin_of(call_id: str | None) -> dict[str, str]:
    """Return the field that shows where a line is from: a script in a call, or a worker that is not in a call."""
    return {"logger": "worker" if call_id is None else "script"}


def time_in(later_s: float) -> str:
    """Return the time ``later_s`` seconds from now, as the log writes times."""
    return _time_before(-later_s)


def _time_before(age_s: float) -> str:
    time_ = datetime.now(UTC) - timedelta(seconds=age_s) if age_s else datetime.now(UTC)
    return time_.isoformat(timespec="microseconds")[:-6] + "Z"
