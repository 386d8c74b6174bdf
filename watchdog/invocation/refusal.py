"""The error of a call for which the system refuses a file or directory of the server's own."""

from __future__ import annotations

import errno

from ..errors import OutOfResources


def refused_by_system(what: str, error: OSError) -> OutOfResources:
    """Return the error of a call for which ``what`` cannot be made, with what the operator can do."""
    hint = ""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        hint = "; raise the limit of open files (docker run --ulimit nofile) or lower max_inflight and max_queue"
    elif error.errno in (errno.EACCES, errno.EROFS, errno.ENOENT):
        hint = "; tmp_dir must be there and writable"
    return OutOfResources(f"{what} cannot be made: {error.strerror}{hint}")
