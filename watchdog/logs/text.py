"""Make text of scripts and errors safe to show."""

from __future__ import annotations

from typing import Any

from ..system.pattern import pattern


def printable(text: str) -> str:
    r"""Return text in which control characters, and bytes that are not UTF-8, are escapes such as ``\x1b``."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), as_unicode(text))


def as_plain(value: object) -> Any:
    if isinstance(value, int | float | None):
        return value if not isinstance(value, int) or abs(value) < 2**63 else str(value)
    return as_unicode(as_text(value))


def as_text(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__} that has no text>"


def as_unicode(text: str) -> str:
    """Return text with an escape for each byte that is not UTF-8. (Python keeps these in names as lone surrogates.)"""
    return text if text.isascii() else text.translate(_NOT_UTF8).encode("utf-8", "backslashreplace").decode()


def printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def fitted(text: str, columns: int) -> str:
    """Return the beginning of a text that fits into a line of a terminal. Characters of East Asia take two columns."""
    if len(text) <= columns and text.isascii():
        return text
    import unicodedata  # imported only for texts that may be too wide

    for at, character in enumerate(text):
        columns -= 0 if unicodedata.combining(character) else _WIDTHS.get(unicodedata.east_asian_width(character), 1)
        if columns < 0:
            return text[:at]
    return text


_WIDTHS = {"W": 2, "F": 2}  # wide and fullwidth (Unicode, annex 11)
_UNPRINTABLE = pattern(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_ESCAPE_SEQUENCE = pattern(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\))")
# Escapes for bytes that are not UTF-8, equal to those of the slower error handler "backslashreplace" (1 µs per byte).
_NOT_UTF8 = {0xDC00 + byte: f"\\x{byte:02x}" for byte in range(0x80, 0x100)}


def decode(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("utf-8", "surrogateescape").translate(_NOT_UTF8)
    return _ESCAPE_SEQUENCE.sub("", text) if "\x1b" in text else text
