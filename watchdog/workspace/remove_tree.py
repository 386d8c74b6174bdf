"""Remove a directory and everything in it, a part at a time."""

from __future__ import annotations

import errno
import functools
import itertools
import os
import stat
import time
from collections.abc import Callable

_REMOVED_AT_ONCE = 10_000
# A process may create files while the directory is removed, such as a process that a warm script left. The removal
# fails after this number of attempts.
_MOST_ROUNDS = 100


def remove_tree(root: str) -> None:
    """Remove a directory and everything in it, or the file that is in its place. Do nothing if it does not exist.

    Raises:
        OSError: something cannot be removed (an immutable file, a mount point), or a process creates files faster than
            they are removed.
    """
    for _ in range(_MOST_ROUNDS - 1):
        try:
            _remove_tree(root)
            return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
    _remove_tree(root)


def _remove_tree(root: str) -> None:
    mode = lstat_mode(root)
    if mode and not stat.S_ISDIR(mode):  # perhaps a link to a directory that must not be removed
        os.unlink(root)
        return
    # Directories below the first level are moved up to the first level before they are emptied. So a script that makes
    # very deep directories causes neither deep recursion nor long paths here.
    serial = itertools.count()
    tag = f".remove-{os.getpid()}-{time.monotonic_ns()}-"
    while entries := entries_to_remove(root):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                _remove_with_permission(os.unlink, entry.path)
                continue
            path = entry.path
            if not entry.name.startswith(tag):
                # A directory on which a script has mounted something cannot be moved, so it is not emptied.
                path = f"{root}/{tag}{next(serial)}"
                _remove_with_permission(functools.partial(_move, path), entry.path)
            while some := entries_to_remove(path):
                for below in some:
                    if below.is_dir(follow_symlinks=False):
                        target = f"{root}/{tag}{next(serial)}"
                        _remove_with_permission(functools.partial(_move, target), below.path)
                    else:
                        _remove_with_permission(os.unlink, below.path)
            _remove_with_permission(os.rmdir, path)
    _remove_with_permission(os.rmdir, root)


def _move(target: str, path: str) -> None:
    os.rename(path, target)


def entries_to_remove(directory: str) -> list[os.DirEntry[str]]:
    """Return some entries of a directory, at most 10,000, because millions of them would need gigabytes.

    The list is empty if the directory is empty or does not exist.
    """
    try:
        return _some_entries(directory)
    except FileNotFoundError:
        return []
    except PermissionError:
        os.chmod(directory, 0o700)
        return _some_entries(directory)


def _some_entries(directory: str) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        return list(itertools.islice(entries, _REMOVED_AT_ONCE))


def _remove_with_permission(remove: Callable[[str], None], path: str) -> None:
    """Remove or move a file or directory. If permissions forbid this, set them first."""
    try:
        remove(path)
    except FileNotFoundError:
        return
    except PermissionError:
        # The script removed the write permission of the parent directory, or of the directory that is to be moved.
        os.chmod(os.path.dirname(path), 0o700)
        if stat.S_ISDIR(lstat_mode(path)):
            os.chmod(path, 0o700)
        remove(path)


def lstat_mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0
