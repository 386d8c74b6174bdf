"""Descriptor 4 of every script, to which a script may write its progress."""

from __future__ import annotations

import contextlib
import os

PROGRESS_FD = 4


def open_progress_descriptor() -> bool:
    """Open ``/dev/null`` as descriptor 4, which all scripts inherit. Return false if this process has inherited one.

    So a script may always write its progress. If the caller watches the call, the script gets a pipe instead. An
    inherited descriptor 4 stays as it is, and scripts inherit it, too.
    """
    with contextlib.suppress(OSError):
        os.fstat(PROGRESS_FD)
        return False
    with contextlib.suppress(OSError):  # no descriptor is free
        fd = os.open(os.devnull, os.O_WRONLY)
        if fd == PROGRESS_FD:
            os.set_inheritable(fd, True)
        else:
            os.dup2(fd, PROGRESS_FD, inheritable=True)
            os.close(fd)
    return True
