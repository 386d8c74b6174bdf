"""Descriptor 4 of every script, to which a script may write its progress."""

from __future__ import annotations

import contextlib
import os

PROGRESS_FD = 4


def open_progress_descriptor() -> None:
    """Open ``/dev/null`` as descriptor 4, which all scripts inherit.

    So a script may always write its progress. Only if the caller watches the call, the script gets a pipe instead. If
    this process has inherited a descriptor 4, scripts get that one, as they always did.
    """
    with contextlib.suppress(OSError):
        os.fstat(PROGRESS_FD)
        return
    with contextlib.suppress(OSError):  # no descriptor is free
        fd = os.open(os.devnull, os.O_WRONLY)
        if fd == PROGRESS_FD:
            os.set_inheritable(fd, True)
        else:
            os.dup2(fd, PROGRESS_FD, inheritable=True)
            os.close(fd)
