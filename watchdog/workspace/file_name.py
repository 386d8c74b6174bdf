"""Make a safe file name from the name that a caller gave."""

from __future__ import annotations

import os
import random
import re
import unicodedata

from ..errors import BadInput, quoted

# The limit of Linux is 255 bytes (NAME_MAX). The rest is left for endings that scripts append (".jpg", "-resized").
_LONGEST_NAME_BYTES = 200
NEW_NAME_BEGINS = "event-file-"


def safe_file_name(name: str) -> str | None:
    """Return a safe file name made from a name that a caller gave; None if nothing of the name is left.

    This removes folders before the name, and invisible characters (marks of the writing direction, characters of zero
    width). It also removes dots at the start, because ``ls`` and ``*`` do not show a file whose name begins with a dot.
    It shortens a long name, but keeps the extension.

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


def new_file_name() -> str:
    """Return a name for the file of an input without a name: ``event-file-`` and a random UUID (RFC 9562, version 4).

    The name is not a secret, so this does not ask the kernel for random bytes.
    """
    bits = random.getrandbits(128) & ~(0xF000 << 64) & ~(0xC000 << 48) | (0x4000 << 64) | (0x8000 << 48)
    digits = f"{bits:032x}"
    return f"{NEW_NAME_BEGINS}{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
