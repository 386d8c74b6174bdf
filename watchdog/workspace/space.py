"""Find out how much room a disk has."""

from __future__ import annotations

import errno
import math
import os

from ..errors import NoSpace

# Less than a usual write of a buffer.
_FULL_BYTES = 4096
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
# Less than this is left for the scripts that run.
_PLENTY_BYTES = 16 << 20
_PLENTY_INODES = 1000


def is_full(directory: str) -> bool:
    """Whether nothing more can be written there."""
    try:
        status = os.statvfs(directory)
    except OSError:
        return False
    has_inodes = not status.f_files or status.f_favail > 0  # some file systems count none
    # Some file systems count no blocks either (tmpfs with size=0, ramfs).
    available = status.f_bfree if os.geteuid() == 0 else status.f_bavail  # some is kept for root
    has_blocks = not status.f_blocks or available * status.f_frsize >= _FULL_BYTES
    return not (has_blocks and has_inodes)


def free_bytes(directory: str) -> float:
    """Return how many bytes can still be written there; infinity if the file system counts none."""
    try:
        status = os.statvfs(directory)
    except OSError:
        return math.inf
    return status.f_bavail * status.f_frsize if status.f_blocks else math.inf


def has_plenty(directory: str) -> bool:
    try:
        status = os.statvfs(directory)
    except OSError:  # it is gone
        return False
    has_inodes = not status.f_files or status.f_favail >= _PLENTY_INODES  # some file systems count none
    return has_inodes and (not status.f_blocks or status.f_bavail * status.f_frsize >= _PLENTY_BYTES)


def raise_if_no_space(error: OSError, what: str) -> None:
    """Raise :class:`NoSpace` that names ``what``, if that is what the error says."""
    if error.errno in _NO_SPACE:
        raise NoSpace(f"no space is left for {what}: {error.strerror}") from error
