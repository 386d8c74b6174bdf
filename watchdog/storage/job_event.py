"""Restore the event of a job from the text that a shell made of it."""

from __future__ import annotations

import glob
import re
from codecs import BOM_UTF8

import msgspec

from ..errors import BadInput
from ..system.base64_reader import decoded_text
from ..system.pattern import pattern

_DASH_ESCAPE = pattern(rb"\\(?:([abefnrtv\\])|0([0-7]{0,3})|([1-7][0-7]{0,2}))")
_ESCAPED = dict(zip(b"abefnrtv\\", b"\a\b\x1b\f\n\r\t\v\\", strict=True))
_OF_STRINGS = pattern(rb'\\.|["\x00-\x1f]', re.DOTALL)


def job_text(stdin: bytes, variable: str | None) -> bytes:
    """Return the event of a job.

    OSCAR starts ``echo $EVENT | supervisor`` without quotes. So the shell joins white space and expands patterns, and
    dash's echo expands backslashes. The variable ``EVENT`` has the event unchanged. This value is used if stdin is what
    a shell makes of the value, or if the value is base64 of stdin (InterLink decodes the value in the pipe).

    Args:
        stdin: everything that stdin had.
        variable: the value of ``EVENT``; None if it is not set.

    Raises:
        BadInput: there is no event, or it is an object that cannot be repaired.
    """
    whole = (variable or "").encode("utf-8", "surrogateescape")
    if not stdin.strip():
        if not whole.strip():
            raise BadInput(
                "there is no event: give it on stdin (watchdog job < event.json), or in the variable EVENT, as JSON or "
                "as base64 of it"
            )
        stdin = whole
    elif whole.strip() and (_is_echo_of(stdin, whole) or decoded_text(whole) == stdin.rstrip(b"\n")):
        stdin = whole
    in_base64 = decoded_text(stdin.removeprefix(BOM_UTF8))
    if in_base64 is not None and _is_object(in_base64):
        stdin = in_base64
    return _repaired(stdin) if _is_object(stdin) else stdin


def _is_object(text: bytes) -> bool:
    return text.removeprefix(BOM_UTF8).lstrip().startswith(b"{")


def _is_echo_of(stdin: bytes, variable: bytes) -> bool:
    """Return whether `echo $VARIABLE` prints this text, in dash or in bash, in this working directory."""
    words = [(word, _files_of(word)) for word in variable.split()]
    text = b" ".join(b" ".join(files) or word for word, files in words)
    printed = stdin.rstrip(b"\n")
    for echoed in (text, _as_dash_echoes(text)):
        if printed == echoed.rstrip(b"\n"):
            return True
        # The shell sorts the files by its locale, which is not known here.
        if any(files for _, files in words) and sorted(printed.split()) == sorted(echoed.split()):
            return True
    return False


def _files_of(word: bytes) -> list[bytes]:
    """Return the files that match a pattern.

    If no file matches, or if the word is not a pattern, a shell does not change the word.
    """
    return sorted(glob.glob(word)) if glob.has_magic(word) else []


def _as_dash_echoes(text: bytes) -> bytes:
    """Return what dash's echo prints for a text: backslashes are expanded, and nothing after `\\c` is printed."""

    def expanded(match: re.Match[bytes]) -> bytes:
        if match[1]:
            return bytes([_ESCAPED[match[1][0]]])
        return bytes([int(match[2] or match[3] or b"0", 8) & 0xFF])

    end = re.match(rb"(?:[^\\]|\\[^c])*?\\c", text, re.DOTALL)
    return _DASH_ESCAPE.sub(expanded, text if end is None else end[0][:-2])


def _repaired(text: bytes) -> bytes:
    """Return an object as valid JSON. Control characters in its strings are escaped: dash may have expanded `\\n`."""
    mark = BOM_UTF8 if text.startswith(BOM_UTF8) else b""
    text = text.removeprefix(BOM_UTF8)
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
        return mark + text
    except (msgspec.DecodeError, RecursionError) as error:
        reason = str(error)
    repaired = _with_escapes(text)
    try:
        msgspec.json.decode(repaired, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        raise BadInput(
            f"the event is not valid JSON ({reason}). A shell changes the event if $EVENT is not in quotes: set the "
            "variable EVENT for this command, too, or use printf '%s' \"$EVENT\" | watchdog job"
        ) from None
    return mark + repaired


def _with_escapes(text: bytes) -> bytes:
    """Return the text with the control characters in its strings escaped.

    The text is read only once, because it may be long and have faults in many places.
    """
    is_inside = False

    def escaped(match: re.Match[bytes]) -> bytes:
        nonlocal is_inside
        found = match[0]
        if found == b'"':
            is_inside = not is_inside
        elif is_inside and len(found) == 1:
            return b"\\u%04x" % found[0]
        return found

    return _OF_STRINGS.sub(escaped, text)
