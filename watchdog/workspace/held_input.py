"""Keep the files of an input where other scripts cannot find them, until the script of their call starts.

All scripts run as the same user, so a script could read and replace every file that has a name. Therefore the first
64 KiB of an input are in memory, and the rest is in files without a name. The first larger file of an input has such a
nameless file of its own, which becomes the input file without a copy. All other files of the input share a second
nameless file, and are copied from it. So a form of thousands of files needs only two descriptors.

Such a form also needs little memory. For a complete file, only its name, its size and its place are in memory. The
files in one place follow each other, so their sizes show where each of them begins.
"""

from __future__ import annotations

import os
import sys
from array import array
from itertools import islice

from ..system.nameless_file import copy_part, link, open_nameless, write_all
from .space import raise_if_no_space

_IN_MEMORY_BYTES = 64 * 1024
_MODE = 0o644
# The encoding of os.fsencode. Its own check of the argument takes longer than the rest.
_FILE_NAMES = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
# Creating this number of files takes about a millisecond.
_FEW_FILES = 16
# The place of a file: memory, the nameless file that several files share, or a nameless file of its own.
_MEMORY, _SHARED, _OWN = range(3)


class HeldInput:
    """The files of one input. Close it when the files have their names, or are not needed any more.

    Args:
        directory: any directory on the file system on which the files will get their names.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        # The names are in the order of the files. They are bytes, because a str with one character above U+FFFF needs
        # four bytes for each character.
        self._names: dict[bytes, None] = {}
        self._sizes = array("Q")
        self._places = bytearray()
        self._named = 0  # the number of files that have their names already
        self._memory = bytearray()
        self._own_fd = -1
        self._shared_fd = -1

    def has(self, name: str) -> bool:
        """Return whether a file with this name was created."""
        return bool(self._names) and name.encode(*_FILE_NAMES) in self._names

    def create(self, name: str) -> HeldFile:
        """Begin the next file. After this, the caller must not write to earlier files.

        Args:
            name: a name that no other file has.
        """
        self._names[name.encode(*_FILE_NAMES)] = None
        self._sizes.append(0)
        self._places.append(_MEMORY)
        return HeldFile(self, name)

    def read(self) -> bytes:
        """Return the content of the only file."""
        (size_bytes,) = self._sizes
        if self._places[0] == _MEMORY:
            return bytes(self._memory)
        return os.pread(self._descriptor(self._places[0]), size_bytes, 0)

    def give_names(self, directory: str, *, only_quickly: bool = False) -> bool:
        """Give the files their names in ``directory``. Their mode is 0644, changed by the umask.

        Args:
            only_quickly: stop if the rest would take long, because there are many files or a file has to be copied.
                Then call this again in a thread.

        Returns:
            Whether all files have their names now.

        Raises:
            NoSpace: the disk is full.
            OSError: a file cannot be created.
        """
        if only_quickly and len(self._names) - self._named > _FEW_FILES:
            return False
        begins = [0, 0, 0]  # where the next file of each place begins
        for number in range(self._named):
            begins[self._places[number]] += self._sizes[number]
        for name in islice(self._names, self._named, None):
            place, size_bytes = self._places[self._named], self._sizes[self._named]
            path = f"{directory}/{name.decode(*_FILE_NAMES)}"
            try:
                if not self._give_name(path, place, begins[place], size_bytes, only_quickly):
                    return False
            except OSError as error:
                raise_if_no_space(error, f"the input file {path}")
                raise
            begins[place] += size_bytes
            self._named += 1
        return True

    def clear(self) -> None:
        """Forget the files, and free their space."""
        self.close()
        self._names = {}
        self._sizes = array("Q")
        self._places, self._memory = bytearray(), bytearray()
        self._named = 0

    def close(self) -> None:
        if self._own_fd >= 0:
            os.close(self._own_fd)
        if self._shared_fd >= 0:
            os.close(self._shared_fd)
        self._own_fd = self._shared_fd = -1

    def _give_name(self, path: str, place: int, begin: int, size_bytes: int, only_quickly: bool) -> bool:
        """Give one file the name ``path``. Return whether this was done."""
        if place == _OWN and link(self._own_fd, path):
            return True
        if place != _MEMORY:
            if only_quickly:
                return False
            copy_part(self._descriptor(place), begin, size_bytes, path, _MODE)
            return True
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        try:
            write_all(fd, self._memory[begin : begin + size_bytes])
        finally:
            os.close(fd)
        return True

    def _append(self, data: bytes) -> None:
        """Write to the newest file."""
        size_bytes = len(data)
        if self._places[-1] != _MEMORY or len(self._memory) + size_bytes > _IN_MEMORY_BYTES:
            write_all(self._on_disk(), data)
        else:
            self._memory += data
        self._sizes[-1] += size_bytes

    def _on_disk(self) -> int:
        """Move the newest file from memory to the disk, if it is in memory. Return the descriptor to write it."""
        if self._places[-1] == _MEMORY:
            place = _OWN if self._own_fd < 0 else _SHARED
            if place == _OWN:
                self._own_fd = open_nameless(self.directory, _MODE)
            elif self._shared_fd < 0:
                self._shared_fd = open_nameless(self.directory, _MODE)
            self._places[-1] = place
            begin = len(self._memory) - self._sizes[-1]
            write_all(self._descriptor(place), self._memory[begin:])
            del self._memory[begin:]
        return self._descriptor(self._places[-1])

    def _descriptor(self, place: int) -> int:
        return self._own_fd if place == _OWN else self._shared_fd


class HeldFile:
    """The newest file. It is written once, from its beginning to its end."""

    __slots__ = ("_owner", "name")

    def __init__(self, owner: HeldInput, name: str) -> None:
        self.name = name
        self._owner = owner

    def write(self, data: bytes) -> None:
        """Append to the file.

        Raises:
            NoSpace: the disk is full.
            OSError: the file cannot be written.
        """
        try:
            self._owner._append(data)
        except OSError as error:
            raise_if_no_space(error, f"the input file {self.name}")
            raise

    def descriptor(self) -> int:
        """Return the descriptor of the file, so that the caller can write it. The file must still be empty.

        Raises:
            NoSpace: the disk is full.
            OSError: the file cannot be created.
        """
        try:
            return self._owner._on_disk()
        except OSError as error:
            raise_if_no_space(error, f"the input file {self.name}")
            raise

    def written(self, size_bytes: int) -> None:
        """Set the size of the file, after the caller has written to :meth:`descriptor`."""
        self._owner._sizes[-1] = size_bytes
