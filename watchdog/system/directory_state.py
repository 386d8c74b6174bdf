"""Read the properties of a directory that a script can change, to see whether it changed any of them.

These are the owner and the mode, extended attributes, which include access lists (acl(5)), and the flags and the
project id of ``chattr`` (ioctl_iflags(2), ioctl_fs_xattr(2)). They stay when the files of the directory are removed,
and new files inherit many of them. The time of the last change does not show whether a property changed, because each
new file changes that time, too.

Properties that only the tools of one file system show, such as the layouts of CephFS, are not part of the state.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import sys
from typing import NamedTuple

_OPEN_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# From linux/fs.h, for x86-64 and arm64. Some file systems do not support them.
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_FSGETXATTR = 0x801C581F
_FLAGS = bytes(8)
# FS_INDEX_FL and FS_INLINE_DATA_FL: the kernel changes these when a directory grows.
_FLAGS_OF_KERNEL = 0x1000 | 0x10000000
# Flags, extent size, number of extents, project id, extent size for copy-on-write; the rest is unused.
_FSXATTR = struct.Struct("=IIIII8x")
_UNUSED = bytes(_FSXATTR.size)


class DirectoryState(NamedTuple):
    """The properties of a directory at one time, to be compared with a later state."""

    identity: tuple[int, int]
    mode: int
    owner: tuple[int, int]
    attributes: dict[str, bytes]
    flags: int | None
    extended_flags: tuple[int, ...] | None


def state_of(path: str) -> tuple[DirectoryState, os.stat_result]:
    """Return the state of a directory, and its status.

    Raises:
        OSError: the directory is gone or cannot be read, or something else is in its place.
    """
    fd = os.open(path, _OPEN_FLAGS)
    try:
        status = os.fstat(fd)
        return (
            DirectoryState(
                identity=(status.st_dev, status.st_ino),
                mode=stat.S_IMODE(status.st_mode),
                owner=(status.st_uid, status.st_gid),
                attributes=_attributes(fd),
                flags=_flags(fd),
                extended_flags=_extended_flags(fd),
            ),
            status,
        )
    finally:
        os.close(fd)


def _attributes(fd: int) -> dict[str, bytes]:
    try:
        names = os.listxattr(fd)
    except OSError:  # the file system has no extended attributes
        return {}
    return {name: os.getxattr(fd, name) for name in names}


def _flags(fd: int) -> int | None:
    try:
        flags = fcntl.ioctl(fd, _FS_IOC_GETFLAGS, _FLAGS)
    except OSError:
        return None
    return int.from_bytes(flags, sys.byteorder) & ~_FLAGS_OF_KERNEL


def _extended_flags(fd: int) -> tuple[int, ...] | None:
    try:
        flags, extent_size, _, project, copied_extent_size = _FSXATTR.unpack(
            fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, _UNUSED)
        )
    except OSError:
        return None
    # The number of extents grows with the directory.
    return flags, extent_size, project, copied_extent_size
