"""Find out how much free space a disk has."""

from __future__ import annotations

import errno
import math
import os

from ..errors import NoSpace

# A disk with less free space than this counts as full: programs usually write at least this number of bytes at a time.
_FULL_BYTES = 4096
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
# If less than this is free, no directory is kept for the next call: the running scripts need the space.
_PLENTY_BYTES = 16 << 20
_PLENTY_INODES = 1000
_IS_ROOT = os.geteuid() == 0


def space_of(directory: str) -> os.statvfs_result | None:
    """Return the space of the file system of a directory; None if the directory is gone."""
    try:
        return os.statvfs(directory)
    except OSError:
        return None


def is_full(directory: str) -> bool:
    """Return whether nothing more can be written to the file system of a directory."""
    return is_exhausted(space_of(directory))


def is_exhausted(space: os.statvfs_result | None) -> bool:
    """Return whether nothing more can be written to a file system. This is false if its space is not known."""
    if space is None:
        return False
    has_inodes = not space.f_files or space.f_favail > 0  # some file systems do not count inodes
    # Some file systems do not count blocks either (tmpfs with size=0, ramfs).
    available = space.f_bfree if _IS_ROOT else space.f_bavail  # some blocks are reserved for root
    has_blocks = not space.f_blocks or available * space.f_frsize >= _FULL_BYTES
    return not (has_blocks and has_inodes)


def free_bytes(directory: str) -> float:
    """Return how many bytes can still be written to a file system; infinity if it does not count blocks."""
    space = space_of(directory)
    return space.f_bavail * space.f_frsize if space is not None and space.f_blocks else math.inf


def is_plenty(space: os.statvfs_result | None) -> bool:
    """Return whether there is enough free space to keep a directory for the next call."""
    if space is None:  # the directory is gone
        return False
    has_inodes = not space.f_files or space.f_favail >= _PLENTY_INODES  # some file systems do not count inodes
    return has_inodes and (not space.f_blocks or space.f_bavail * space.f_frsize >= _PLENTY_BYTES)


def raise_if_no_space(error: OSError, what: str) -> None:
    """Raise :class:`NoSpace` with the name ``what``, if the error means that the disk is full."""
    if error.errno in NO_SPACE:
        raise NoSpace(f"no space is left for {what}: {error.strerror}") from error
