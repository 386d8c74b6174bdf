"""Recognise scripts that an editor saved with a byte order mark, or as UTF-16.

The mark is invisible in an editor, but it stands before ``#!``. So the kernel does not recognise the line that names
the interpreter, and a shell reads the mark as a part of the first command. This program skips the mark when it reads
the first line, so the right interpreter runs the script. Python accepts a mark at the start of a file. A shell prints
an error for the first line, and then runs the other lines.
"""

from __future__ import annotations

from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE

from ..errors import ScriptUnavailable

MARK_HINT = (
    "it begins with a byte order mark, which a shell reads as a part of the first command: save it as UTF-8 without "
    "BOM, or remove the mark: sed -i '1s/^\\xEF\\xBB\\xBF//' FILE"
)
_UTF16_STARTS = (BOM_UTF16_LE, BOM_UTF16_BE, b"#\0!\0", b"\0#\0!")


def has_mark(start: bytes) -> bool:
    """Return whether these first bytes of a script begin with a byte order mark of UTF-8."""
    return start.startswith(BOM_UTF8)


def without_mark(start: bytes) -> bytes:
    """Return the first bytes of a script without the byte order mark."""
    return start.removeprefix(BOM_UTF8)


def refuse_utf16(start: bytes, name: str) -> None:
    """Raise ``ScriptUnavailable`` if a script is UTF-16 text, which no interpreter can read.

    Args:
        start: the first bytes of the script: at least four, or the whole script if it is shorter.
        name: the name of the script in the error.
    """
    if start.startswith(_UTF16_STARTS):
        raise ScriptUnavailable(
            f"{name} is UTF-16 text, which no shell understands; save it as UTF-8 without BOM, "
            "or convert it: iconv -f UTF-16 -t UTF-8 FILE"
        )
