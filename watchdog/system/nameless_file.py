"""Make files without a name: no other process can find one by a path, list it or replace it."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile

_PIECE_BYTES = 1 << 20
# What open(2) and the file systems answer where O_TMPFILE is not known.
_NOT_KNOWN = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT})


def open_nameless(directory: str, mode: int = 0o600) -> int:
    """Make an empty file on the file system of ``directory`` and return its descriptor, open for reading and writing.

    Args:
        mode: less the umask, for :func:`link`.

    Raises:
        OSError: ``directory`` is not there or not writable, or no space or descriptor is left.
    """
    try:
        return os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno not in _NOT_KNOWN or not os.path.isdir(directory):
            raise
    # An overlay file system before Linux 6.3, a network file system: the file has a name for a moment.
    fd, path = tempfile.mkstemp(dir=directory)
    os.unlink(path)
    return fd


def link(fd: int, path: str) -> bool:
    """Give a file of :func:`open_nameless` a name on its own file system; return whether the system could.

    Where it could not, only a copy of the file can have a name (:func:`copy_part`).

    Raises:
        FileExistsError: ``path`` exists.
    """
    try:
        # linkat(2) by way of /proc: without privilege there is no other. Python follows the link only if it is given a
        # descriptor of a directory, which the kernel ignores beside an absolute path.
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def copy_part(fd: int, offset: int, size_bytes: int, path: str, mode: int = 0o644) -> None:
    """Copy a part of a file to a new file at ``path``.

    Raises:
        OSError: ``path`` exists, or no space is left.
    """
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        end = offset + size_bytes
        while offset < end:
            copied = 0
            with contextlib.suppress(OSError):  # between file systems, before Linux 5.19
                copied = os.copy_file_range(fd, target, min(_PIECE_BYTES, end - offset), offset_src=offset)
            if not copied:
                piece = os.pread(fd, min(_PIECE_BYTES, end - offset), offset)
                write_all(target, piece)
                copied = len(piece)
            if not copied:
                raise OSError(errno.EIO, "the file was cut short")
            offset += copied
    finally:
        os.close(target)


def write_all(fd: int, data: bytes | bytearray) -> None:
    """Write to a file from its present position on, however often the system takes a part only. Raises ``OSError``."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
