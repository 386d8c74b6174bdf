"""Scripts that an editor saved with a byte order mark, or as UTF-16.

The mark is invisible in an editor, but it stands before ``#!``. The kernel and shells then see no first line that names
an interpreter, and a shell takes the mark for a part of its first command.
"""

from __future__ import annotations

from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE

from .errors import ScriptUnavailable

_UTF16_STARTS = (BOM_UTF16_LE, BOM_UTF16_BE, "#!".encode("utf-16-le"), "#!".encode("utf-16-be"))


def refuse_byte_order_mark(start: bytes, name: str) -> None:
    """Raise ``ScriptUnavailable`` if a script begins in a way that no interpreter's first line can.

    Args:
        start: the first bytes of the script, at least four if it has so many.
        name: what the error calls the script.
    """
    if start.startswith(BOM_UTF8):
        raise ScriptUnavailable(
            f"{name} begins with a byte order mark, which makes its first line useless; save it as UTF-8 without BOM, "
            "or remove the mark: sed -i '1s/^\\xEF\\xBB\\xBF//' FILE"
        )
    if start.startswith(_UTF16_STARTS):
        raise ScriptUnavailable(
            f"{name} is UTF-16 text, which no shell understands; save it as UTF-8 without BOM, "
            "or convert it: iconv -f UTF-16 -t UTF-8 FILE"
        )
