"""Recognise scripts that an editor saved with a byte order mark, or as UTF-16.

The mark is invisible in an editor, but it stands before ``#!``. The kernel then sees no line that names an interpreter,
and a shell takes the mark for a part of its first command. This program skips the mark when it reads the first line, so
the script's own interpreter runs it. Python reads such a file; a shell complains about the first line and goes on.
"""

from __future__ import annotations

from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE

from ..errors import ScriptUnavailable

MARK_HINT = (
    "it begins with a byte order mark, which a shell takes for a part of the first command: save it as UTF-8 without "
    "BOM, or remove the mark: sed -i '1s/^\\xEF\\xBB\\xBF//' FILE"
)
_UTF16_STARTS = (BOM_UTF16_LE, BOM_UTF16_BE, "#!".encode("utf-16-le"), "#!".encode("utf-16-be"))


def has_mark(start: bytes) -> bool:
    """Return whether the script that begins with these bytes begins with a byte order mark of UTF-8."""
    return start.startswith(BOM_UTF8)


def without_mark(start: bytes) -> bytes:
    return start.removeprefix(BOM_UTF8)


def refuse_utf16(start: bytes, name: str) -> None:
    """Raise ``ScriptUnavailable`` if a script is UTF-16, in which no interpreter finds a first line.

    Args:
        start: the first bytes of the script: at least four, or the whole script if it is shorter.
        name: what the error calls the script.
    """
    if start.startswith(_UTF16_STARTS):
        raise ScriptUnavailable(
            f"{name} is UTF-16 text, which no shell understands; save it as UTF-8 without BOM, "
            "or convert it: iconv -f UTF-16 -t UTF-8 FILE"
        )
