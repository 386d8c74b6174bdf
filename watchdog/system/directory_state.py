"""Read the properties that a script can change in a directory, to see whether the script changed any of them.

These are the owner, the mode, the extended attributes (also access lists, acl(5)), and the flags and the project id
that ``chattr`` sets (ioctl_iflags(2), ioctl_fs_xattr(2)). They stay when the files of the directory are removed,
and new files inherit many of them. The time of the last change does not show whether a property changed, because each
new file changes that time, too.

Properties that only the tools of one file system show, such as the layouts of CephFS, are not part of the state.
"""

from __future__ import annotations

import fcntl
import os
import sys

import msgspec

_OPEN_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# From linux/fs.h, for x86-64 and arm64. Some file systems do not support them.
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_FSGETXATTR = 0x801C581F
_FLAGS = bytes(8)
# FS_INDEX_FL and FS_INLINE_DATA_FL: the kernel changes these when a directory grows.
_FLAGS_OF_KERNEL = 0x1000 | 0x10000000
# struct fsxattr: flags, extent size, number of extents, project id, extent size for copy-on-write, each of four bytes,
# and eight unused bytes. The number of extents grows with the directory.
_FSXATTR = bytes(28)
_BEFORE_EXTENTS, _AFTER_EXTENTS = slice(8), slice(12, 20)


class DirectoryState(msgspec.Struct, frozen=True):
    """The properties of a directory at one time, to be compared with a later state."""

    identity: tuple[int, int]
    mode: int
    owner: tuple[int, int]
    attributes: dict[str, bytes]
    flags: int | None
    extended_flags: bytes | None


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
                (status.st_dev, status.st_ino),
                status.st_mode,
                (status.st_uid, status.st_gid),
                attributes_of(fd),
                _flags(fd),
                _extended_flags(fd),
            ),
            status,
        )
    finally:
        os.close(fd)


def attributes_of(file: int | str) -> dict[str, bytes]:
    """Return the extended attributes of a descriptor or path."""
    try:
        names = os.listxattr(file)
    except OSError:  # the file system has no extended attributes
        return {}
    return {name: os.getxattr(file, name) for name in names} if names else {}


def _flags(fd: int) -> int | None:
    try:
        flags = fcntl.ioctl(fd, _FS_IOC_GETFLAGS, _FLAGS)
    except OSError:
        return None
    return int.from_bytes(flags, sys.byteorder) & ~_FLAGS_OF_KERNEL


def _extended_flags(fd: int) -> bytes | None:
    try:
        found = fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, _FSXATTR)
    except OSError:
        return None
    return found[_BEFORE_EXTENTS] + found[_AFTER_EXTENTS]
