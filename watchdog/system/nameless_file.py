"""Make files without a name. Without a path, no other process can find, list or replace such a file."""

from __future__ import annotations

import contextlib
import errno
import os

_PIECE_BYTES = 1 << 20
# The errors of open(2) if the kernel or the file system does not support O_TMPFILE.
_NOT_KNOWN = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT})


def open_nameless(directory: str, mode: int = 0o600) -> int:
    """Make an empty file on the file system of ``directory`` and return its descriptor, open for reading and writing.

    Args:
        mode: the mode of the file if :func:`link` gives it a name. The umask is applied to it.

    Raises:
        OSError: ``directory`` does not exist or is not writable, or no space or descriptor is left.
    """
    try:
        return os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno not in _NOT_KNOWN or not os.path.isdir(directory):
            raise
    # On an overlay file system before Linux 6.3 and on network file systems, the file has a name for a moment.
    import tempfile

    fd, path = tempfile.mkstemp(dir=directory)
    os.unlink(path)
    return fd


def link(fd: int, path: str) -> bool:
    """Give a file of :func:`open_nameless` a name on the same file system. Return whether this was possible.

    If it was not possible, the caller can make a copy with a name (:func:`copy_part`).

    Raises:
        FileExistsError: ``path`` exists.
    """
    try:
        # This is linkat(2) with a path in /proc, the only way for a process without privileges. Python follows the link
        # only if it gets `src_dir_fd`, which the kernel ignores for an absolute path.
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
            with contextlib.suppress(OSError):  # before Linux 5.19 this may fail between two file systems
                copied = os.copy_file_range(fd, target, min(_PIECE_BYTES, end - offset), offset_src=offset)
            if not copied:
                piece = os.pread(fd, min(_PIECE_BYTES, end - offset), offset)
                write_all(target, piece)
                copied = len(piece)
            if not copied:
                raise OSError(errno.EIO, "the file was truncated while it was copied")
            offset += copied
    finally:
        os.close(target)


def write_all(fd: int, data: bytes | bytearray) -> None:
    """Write all bytes at the current position of a file, even if the kernel takes only a part at a time.

    Raises:
        OSError: the file cannot be written.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
