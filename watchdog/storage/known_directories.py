"""Remember the directories that exist in a storage."""

from __future__ import annotations

# Scripts choose the names of outputs, so there may be any number of directories while one server runs.
MOST_KNOWN = 1000


class KnownDirectories:
    """The names of directories that exist.

    If there are too many, all names are removed, and the server asks the storage again.
    """

    def __init__(self) -> None:
        self._names: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str) -> None:
        if len(self._names) >= MOST_KNOWN:
            self._names.clear()
        self._names.add(name)

    def clear(self) -> None:
        self._names.clear()
