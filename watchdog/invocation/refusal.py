"""The error of a call for which the server could not create one of its own files or directories."""

from __future__ import annotations

import errno

from ..errors import OutOfResources
from ..system.files import MORE_DESCRIPTORS, TOO_MANY_OPEN_FILES


def refused_by_system(what: str, error: OSError) -> OutOfResources:
    """Return the error of a call for which ``what`` cannot be made, with advice for the operator."""
    hint = ""
    if error.errno in TOO_MANY_OPEN_FILES:
        hint = MORE_DESCRIPTORS
    elif error.errno in (errno.EACCES, errno.EROFS, errno.ENOENT):
        hint = "; tmp_dir must exist and be writable"
    return OutOfResources(f"{what} cannot be made: {error.strerror}{hint}")
