"""Decide how a body is read: as base64, as JSON, as a form, or as raw bytes."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from ..errors import BadInput, quoted
from ..system.base64_reader import ARMOUR, Base64Reader, ByteSink, armour_error
from ..system.pattern import pattern
from .files import Held
from .readers import Raw, Reader

ENCODINGS = ("base64", "raw", "json")
HEAD_BYTES = 4096
_DATA_URL = pattern(rb"\s*data:[^,\"]{0,500};base64,", re.IGNORECASE)
_QUOTE = pattern(rb'\s*="')
_JSON_START = pattern(rb"\s*[{\[]")
_FORM_START = pattern(rb"(?!#!)[^=&\x00-\x1f\"<]+=")
# A body that begins with one of these characters does not match _DATA_URL, _QUOTE or _JSON_START. They are the
# letters and digits except `d` and `D`, with which `data:` begins.
_CERTAIN_STARTS = frozenset(bytes((byte,)) for byte in range(128) if chr(byte).isalnum() and chr(byte) not in "dD")
# Clients send these types with any body. Any other type says what the body is, so such a body is raw bytes.
_BASE64_TYPES = frozenset(
    {"", "text/plain", "application/x-www-form-urlencoded", "application/json", "application/octet-stream"}
)
_FORM_TYPES = frozenset({"application/x-www-form-urlencoded", "application/json"})


class BodyHints(msgspec.Struct, frozen=True):
    """Information about the body, from the headers and the query of the request.

    Attributes:
        content_type: the whole value of the header; "" if there is no such header.
        content_encoding: the value of the header; "" if there is no such header.
        encoding: the value of ``?input=`` or ``X-Input-Encoding``; None if both are missing.
        file_name: the file name from the caller, which is possibly not safe; None if there is no name.
    """

    content_type: str = ""
    content_encoding: str = ""
    encoding: str | None = None
    file_name: str | None = None


class _Decided(NamedTuple):
    """How a body is read.

    Attributes:
        reader: returns a reader that writes to the given file.
        skip: the number of bytes at the start of the body that the reader does not get.
    """

    encoding: str
    reader: Callable[[ByteSink], Reader]
    skip: int = 0


def decide(
    head: bytes,
    complete: bool,
    asked: str | None,
    media_type: str,
    new_form: Callable[[ByteSink, int, BadInput], Reader],
) -> _Decided:
    """Decide how a body is read.

    Args:
        head: the first 4 KiB of the body, or the whole body if it is shorter.
        complete: whether ``head`` is the whole body.
        asked: the encoding that the caller asked for; None if the caller did not choose.
        new_form: returns the reader of a form. Its arguments are the file, the offset of the form in the body, and the
            reason why the body is not base64.

    Raises:
        BadInput: the body should be base64, JSON or a form, but it is none of these.
    """
    if asked in ("raw", "json"):
        return _Decided(asked, Raw)
    if asked is None and (media_type not in _BASE64_TYPES or (complete and not head)):
        return _Decided("raw", Raw)
    start = len(BOM_UTF8) if head.startswith(BOM_UTF8) else 0
    # Nearly all base64 begins with one of _CERTAIN_STARTS. Then the patterns need not be tried.
    prefix = None
    if head[start : start + 1] not in _CERTAIN_STARTS:
        if asked is None and _JSON_START.match(head, start) and not _wide_characters(head):
            return _Decided("json", Raw)
        prefix = _DATA_URL.match(head, start) or _QUOTE.match(head, start)
    skip = prefix.end() if prefix else start
    is_quoted = prefix is not None and prefix[0].endswith(b'"')

    # Only decoding shows whether the body is base64. `held` keeps the result, so these bytes are decoded only once.
    held = Held()
    base64_reader = Base64Reader(held, skip, is_quoted)
    fault = _fault(base64_reader, head[skip:], complete)

    def continue_into(file: ByteSink) -> Base64Reader:
        held.release(file)
        return base64_reader

    if asked is not None:
        if fault is not None:
            raise _reason(head, fault)
        return _Decided("base64", continue_into, len(head))
    # `true` and `null` are also valid base64, but with the content type of JSON they are JSON.
    is_literal = media_type == "application/json" and complete and head[start:].strip() in (b"true", b"null")
    if fault is None and not is_literal:
        return _Decided("base64", continue_into, len(head))
    if media_type == "application/octet-stream":
        return _Decided("raw", Raw)
    if not _wide_characters(head):
        if media_type in _FORM_TYPES and prefix is None and _FORM_START.match(head, start):
            assert fault is not None, "true and null contain no `=`"
            why = fault
            return _Decided("form", lambda file: new_form(file, start, why), start)
        if media_type == "application/json" and _is_json_scalar(head[start:], complete):
            return _Decided("json", Raw)
    assert fault is not None, "true and null are JSON scalars"
    raise _reason(head, fault)


def _fault(reader: Base64Reader, text: bytes, complete: bool) -> BadInput | None:
    try:
        reader.feed(text)
        if complete:
            reader.check_end()
    except BadInput as fault:
        return fault
    return None


def _reason(head: bytes, fault: BadInput) -> BadInput:
    """Return the error for a body that is not base64.

    If the encoding or the format of the body is clear, the error names it. Otherwise return ``fault``.
    """
    if (encoding := _wide_characters(head)) is not None:
        return BadInput(
            f"the body is {encoding} text, but base64, JSON and forms are read as UTF-8; convert it first "
            f"(iconv -f {encoding} -t UTF-8), or send it as it is with ?input=raw"
        )
    if (armour := ARMOUR.search(head)) is not None:
        return armour_error(armour[0].decode("latin-1"), armour.start())
    return fault


def _wide_characters(head: bytes) -> str | None:
    """Return ``UTF-16`` or ``UTF-32`` if a byte order mark, or NULs in the first two characters, show that encoding.

    Base64, JSON and forms begin with two ASCII characters. RFC 4627, section 3, detects the encoding of JSON in this
    way, too.
    """
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    nul = bytes(not byte for byte in head[:4])
    if nul in (b"\0\1\1\1", b"\1\1\1\0"):
        return "UTF-32"
    return "UTF-16" if nul in (b"\0\1\0\1", b"\1\0\1\0", b"\0\1", b"\1\0") else None


def _is_json_scalar(head: bytes, complete: bool) -> bool:
    if head.lstrip().startswith(b'"'):
        return True
    if not complete:
        return False
    try:
        msgspec.json.decode(head)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def media_type_of(content_type: str) -> tuple[str, str]:
    """Return the media type in lower case, and the boundary; "" if there is none.

    Raises:
        BadInput: the content type is malformed.
    """
    if not content_type:
        return "", ""
    if ";" not in content_type:
        return content_type.strip().lower(), ""
    from multipart import MultipartError, parse_options_header

    try:
        media_type, options = parse_options_header(content_type)
    except MultipartError as error:
        raise BadInput(f"the Content-Type {quoted(content_type)} is malformed: {error}") from None
    return media_type.strip().lower(), options.get("boundary", "")
