"""Write sizes, times and call ids in a short form for people."""

from __future__ import annotations

from ..system.pattern import pattern

_UNITS = ("kB", "MB", "GB", "TB")
# The ids that the server makes (32 hexadecimal digits), and UUIDs. Their first digits are enough to distinguish calls.
_GENERATED_ID = pattern(r"[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SHORT_ID = 8


def size(count: int) -> str:
    """Return a number of bytes with two or three digits: ``585 B``, ``1.1 kB``, ``52 MB``."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in _UNITS:
        value /= 1000
        if value < 999.5 or unit == _UNITS[-1]:
            break
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"


def seconds(time_s: float) -> str:
    """Return a duration, rounded: ``0.02 s``, ``12.3 s``, ``2 min 5 s``, ``1 h 2 min``."""
    if time_s < 0.005:
        return "<0.01 s"
    if time_s < 9.995:
        return f"{time_s:.2f} s"
    if time_s < 59.95:
        return f"{time_s:.1f} s"
    minutes, rest_s = divmod(round(time_s), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s"
    return f"{minutes // 60} h {minutes % 60} min"


def call_id(text: str) -> str:
    """Return the first eight digits of an id that a program made. Return any other id whole."""
    return text[:_SHORT_ID] if _GENERATED_ID.fullmatch(text.lower()) else text
