r"""Rename outputs so that their names stay inside their directory on every system.

On Linux ``..\..\x`` and ``C:x`` are names of plain files. A program on Windows that unpacks the ZIP, or writes files by
the names in JSON, takes a backslash for a separator and ``C:`` for a drive, and writes to another place. So ``_``
replaces each backslash and the colon of a drive. Other names stay unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Python's ntpath takes any character for the letter of a drive.
_DRIVE = re.compile(r"[^/]:")
# In any folder: a caller may unpack only that folder.
_UNSAFE = re.compile(r"\\|(?:^|/)[^/]:")


def replacements(names: Sequence[str]) -> dict[str, str]:
    """Return the new name of each name that must not be used as it is.

    Args:
        names: paths of files below one directory, relative to it, each once.

    Returns:
        Nothing for names that stay as they are. A new name differs from all other names, old and new, and is not
        the name of a directory: a number before the file's extension makes it different.
    """
    unsafe = [name for name in names if _UNSAFE.search(name)]
    if not unsafe:
        return {}
    taken = set(names)
    for name in names:
        taken.update(_directories(name))
    renamed: dict[str, str] = {}
    for name in unsafe:
        for path in (*_directories(name), name):
            if path not in renamed:
                renamed[path] = _renamed(path, renamed, taken)
    return {name: renamed[name] for name in unsafe}


def _renamed(path: str, renamed: dict[str, str], taken: set[str]) -> str:
    """Return the new name of a file or directory. Its directory has its new name already."""
    directory, slash, last = path.rpartition("/")
    new_last = last.replace("\\", "_")
    if _DRIVE.match(new_last):
        new_last = new_last[0] + "_" + new_last[2:]
    prefix = renamed.get(directory, directory) + slash
    candidate = prefix + new_last
    if candidate == path:
        return path
    stem, dot, extension = new_last.rpartition(".")
    if not stem:
        stem, dot, extension = new_last, "", ""
    number = 1
    while candidate in taken:
        number += 1
        candidate = f"{prefix}{stem}-{number}{dot}{extension}"
    taken.add(candidate)
    return candidate


def _directories(name: str) -> Iterable[str]:
    """Return the directories above a file, the outermost first."""
    end = name.find("/")
    while end >= 0:
        yield name[:end]
        end = name.find("/", end + 1)
