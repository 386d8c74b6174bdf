"""Remove a directory and everything in it, a part at a time."""

from __future__ import annotations

import functools
import itertools
import os
import stat
import time
from collections.abc import Callable

# A file system that takes longer, twice in a row, is left alone for a time. Once may be a machine that stood still.
SLOW_S = 0.01
SLOW_PAUSE_S = 10.0
_REMOVED_AT_ONCE = 10_000


def remove_tree(root: str) -> None:
    """Remove a directory and all in it, or what stands in its place. What is gone already is no error.

    Raises:
        OSError: something cannot be removed (an immutable file, a mount point).
    """
    mode = lstat_mode(root)
    if mode and not stat.S_ISDIR(mode):  # a link, perhaps, to a directory that is not ours
        os.unlink(root)
        return
    # Directories below the first level are moved up to it before they are emptied: neither recursion nor
    # path length then grows with the depth that a script chose.
    serial = itertools.count()
    tag = f".remove-{os.getpid()}-{time.monotonic_ns()}-"
    while entries := entries_to_remove(root):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                _forced(os.unlink, entry.path)
                continue
            path = entry.path
            if not entry.name.startswith(tag):
                # What a script has mounted cannot be moved, and is not emptied therefore.
                path = f"{root}/{tag}{next(serial)}"
                _forced(functools.partial(_move, path), entry.path)
            while some := entries_to_remove(path):
                for below in some:
                    if below.is_dir(follow_symlinks=False):
                        target = f"{root}/{tag}{next(serial)}"
                        _forced(functools.partial(_move, target), below.path)
                    else:
                        _forced(os.unlink, below.path)
            _forced(os.rmdir, path)
    _forced(os.rmdir, root)


def _move(target: str, path: str) -> None:
    os.rename(path, target)


def entries_to_remove(directory: str) -> list[os.DirEntry[str]]:
    """Return some entries; none if the directory is empty. A list of millions would need gigabytes."""
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


def _forced(remove: Callable[[str], None], path: str) -> None:
    try:
        remove(path)
    except FileNotFoundError:
        return
    except PermissionError:
        # The script took the write permission from the directory, or from the one that is to be moved.
        os.chmod(os.path.dirname(path), 0o700)
        if stat.S_ISDIR(lstat_mode(path)):
            os.chmod(path, 0o700)
        remove(path)


def lstat_mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0
