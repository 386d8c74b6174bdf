r"""Rename outputs whose names would lead out of their directory on another system.

On Linux, ``..\..\x`` and ``C:x`` are names of ordinary files. A program on Windows may unpack the ZIP, or write files
with the names in JSON. It reads a backslash as a separator and ``C:`` as a drive, so it writes to another directory.
So ``_`` replaces each backslash, and the colon of a drive. Other names do not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..system.pattern import pattern

# Python's ntpath accepts any character as the letter of a drive.
_DRIVE = pattern(r"[^/]:")
# The name of each folder is also searched for a drive, because a caller may unpack only one folder.
_UNSAFE = pattern(r"\\|(?:^|/)[^/]:")


def replacements(names: Sequence[str]) -> dict[str, str]:
    """Return the new name of each output that must be renamed.

    Args:
        names: paths of files below one directory, relative to this directory. No path appears twice.

    Returns:
        The new name of each renamed output, by its old name. A new name differs from all other names, old and new, and
        from the names of directories. If necessary, it has a number before the file's extension.
    """
    unsafe = [name for name in names if ("\\" in name or ":" in name) and _UNSAFE.search(name)]
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
    """Return the new name of a file or directory. The directory that contains it must be in ``renamed`` already."""
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
