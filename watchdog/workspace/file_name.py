"""Make a safe file name from the name that a caller gave."""

from __future__ import annotations

import os
import re
import unicodedata

from ..errors import BadInput, quoted

# NAME_MAX is 255 bytes; the rest is left for what scripts like to append (".jpg", ".tmp", "-resized").
_LONGEST_NAME_BYTES = 200


def safe_file_name(name: str) -> str | None:
    """One path component made of a name that a caller gave, or None if nothing of it is left.

    Folders before the name are cut off, as are leading dots (the file would hide from ``ls`` and ``*``) and
    characters that do not show (writing direction marks, zero width); a long name is shortened before its
    extension.

    Raises:
        BadInput: the name has a control character.
    """
    if re.search(r"[\x00-\x1f\x7f]", name):
        raise BadInput(f"the file name {quoted(name)} has a control character; give a name without it")
    name = os.fsencode(re.split(r"[/\\]", name)[-1]).decode("utf-8", "replace")
    name = "".join(c for c in name if unicodedata.category(c) not in ("Cf", "Cc", "Zl", "Zp"))
    name = re.sub(r"^[\s.]+", "", name).rstrip()
    stem, dot, extension = name.rpartition(".")
    if not dot or len(os.fsencode(extension)) > 20:
        stem, dot, extension = name, "", ""
    room = _LONGEST_NAME_BYTES - len(os.fsencode(dot + extension))
    return os.fsencode(stem)[:room].decode("utf-8", "ignore") + dot + extension or None
