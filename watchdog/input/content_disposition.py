"""Read the file name in a ``Content-Disposition`` header (RFC 6266).

aiohttp's own parser reports a malformed header as a Python warning. The interpreter keeps each distinct warning in
memory, so callers could fill the memory.
"""

from __future__ import annotations

import re

from ..errors import BadInput, quoted
from ..system.pattern import pattern

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_KIND = pattern(rf"\s*{_TOKEN}\s*")
# Empty parameters, for example after a semicolon at the end, are common and harmless. With possessive quantifiers the
# search takes linear time.
_PARAMETER = pattern(rf';\s*+(?:({_TOKEN})\s*+=\s*+(?:({_TOKEN})|"((?:[^"\\]|\\.)*+)"))?\s*+', re.DOTALL)
_ESCAPED = pattern(r"\\(.)", re.DOTALL)
_EXTENDED = pattern(r"([\w-]+)'[\w-]*'(.*)", re.ASCII | re.DOTALL)
# RFC 8187 allows UTF-8, and RFC 5987 also allowed Latin-1. Other codecs of Python may return incomplete characters, or
# raise other errors.
_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii", "iso-8859-1"})


def file_name(header: str) -> str | None:
    """Return the file name in a header; None if there is none. ``filename*`` has priority over ``filename``.

    Raises:
        BadInput: the header is malformed.
    """
    kind = _KIND.match(header)
    if kind is None:
        raise _malformed(header)
    at = kind.end()
    values: dict[str, str] = {}
    while at < len(header):
        if (found := _PARAMETER.match(header, at)) is None:
            raise _malformed(header)
        at = found.end()
        name, token, text = found.groups()
        if name is None:
            continue
        name = name.lower()
        if name in values:
            raise _malformed(header)
        values[name] = token if text is None else _ESCAPED.sub(r"\1", text)
    if (extended := values.get("filename*")) is None:
        return values.get("filename")
    parts = _EXTENDED.fullmatch(extended)
    if parts is None:
        raise _malformed(header)
    return decoded_name(parts[1], parts[2], header)


def decoded_name(charset: str, encoded: str, header: str) -> str:
    """Decode the value of ``filename*`` (RFC 8187).

    Raises:
        BadInput: the charset is not known, or the name is not in this charset.
    """
    from urllib.parse import unquote_to_bytes

    try:
        if charset.lower() not in _CHARSETS:
            raise LookupError(charset)
        return unquote_to_bytes(encoded).decode(charset)
    except (LookupError, UnicodeDecodeError):
        raise BadInput(
            f"the file name in {quoted(header)} cannot be decoded as {charset[:20]}; use filename*=UTF-8''NAME, with "
            "NAME percent-encoded"
        ) from None


def _malformed(header: str) -> BadInput:
    return BadInput(
        f"the Content-Disposition {quoted(header)} is malformed; "
        'send attachment; filename="NAME", or the name in X-Filename'
    )
