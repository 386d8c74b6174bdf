"""Keep the files of an input out of reach of the scripts of other calls, until its own script starts.

All scripts run as the same user, so a script could read and replace each file that has a name. So the first 64 KiB of
an input are in memory, and the rest is in files without a name. The first larger file of an input has such a file of
its own, which becomes the input file without a copy. All other files of the input share a second one, and are copied
from it. So a form of thousands of files needs only two descriptors.
"""

from __future__ import annotations

import os
from collections import deque

from ..system.nameless_file import copy_part, link, open_nameless, write_all
from .space import raise_if_no_space

_IN_MEMORY_BYTES = 64 * 1024
_MODE = 0o644
# To make as many takes about a millisecond.
_FEW_FILES = 16


class HeldInput:
    """The files of one input. Close it when they have their names, or are not needed any more.

    Args:
        directory: on the file system on which the files get their names.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._files: deque[HeldFile] = deque()  # those that have no name yet
        self._memory_bytes = 0
        self._own_fd = -1
        self._shared_fd = -1
        self._shared_bytes = 0

    def create(self, name: str) -> HeldFile:
        """Begin the next file. No other file may be written from now on."""
        self._files.append(HeldFile(self, name))
        return self._files[-1]

    def read(self) -> bytes:
        """Return the content of the only file."""
        (file,) = self._files
        return file.read()

    def give_names(self, directory: str, *, only_quickly: bool = False) -> bool:
        """Make the files appear in ``directory``, all of a mode of 0644 less the umask.

        Args:
            only_quickly: stop when the rest takes long, because there are many files or a file has to be copied. Call
                this again in a thread then.

        Returns:
            Whether all files have their names now.

        Raises:
            NoSpace: the disk is full.
            OSError: a file cannot be made.
        """
        if only_quickly and len(self._files) > _FEW_FILES:
            return False
        while self._files:
            path = f"{directory}/{self._files[0].name}"
            try:
                if not self._files[0].give_name(path, only_quickly):
                    return False
            except OSError as error:
                raise_if_no_space(error, f"the input file {path}")
                raise
            self._files.popleft()
        return True

    def clear(self) -> None:
        """Forget the files, and free their space."""
        self.close()
        self._files.clear()
        self._memory_bytes = self._shared_bytes = 0

    def close(self) -> None:
        for fd in (self._own_fd, self._shared_fd):
            if fd >= 0:
                os.close(fd)
        self._own_fd = self._shared_fd = -1

    def _has_room_in_memory(self, count: int) -> bool:
        if self._memory_bytes + count > _IN_MEMORY_BYTES:
            return False
        self._memory_bytes += count
        return True

    def _place_on_disk(self) -> tuple[int, int, bool]:
        """Return a descriptor, the offset at which a file begins there, and whether that is its own."""
        if self._own_fd < 0:
            self._own_fd = open_nameless(self.directory, _MODE)
            return self._own_fd, 0, True
        if self._shared_fd < 0:
            self._shared_fd = open_nameless(self.directory, _MODE)
        return self._shared_fd, self._shared_bytes, False


class HeldFile:
    """One file, which is written once, from its begin to its end."""

    def __init__(self, owner: HeldInput, name: str) -> None:
        self.name = name
        self.size_bytes = 0
        self._owner = owner
        self._memory: list[bytes] = []
        self._fd = -1
        self._offset = 0
        self._is_own = False

    def write(self, data: bytes) -> None:
        """Append to the file.

        Raises:
            NoSpace: the disk is full.
            OSError: the file cannot be written.
        """
        self.size_bytes += len(data)
        if self._fd < 0 and self._owner._has_room_in_memory(len(data)):
            self._memory.append(data)
        else:
            self._write_to_disk(data)

    def descriptor(self) -> int:
        """Return the descriptor of the file, still empty, for somebody else to write it.

        Raises:
            NoSpace: the disk is full.
            OSError: the file cannot be made.
        """
        self._write_to_disk(b"")
        return self._fd

    def written(self, size_bytes: int) -> None:
        """Note that so many bytes were written to :meth:`descriptor`."""
        self.size_bytes = size_bytes

    def read(self) -> bytes:
        if self._fd < 0:
            return b"".join(self._memory)
        return os.pread(self._fd, self.size_bytes, self._offset)

    def give_name(self, path: str, only_quickly: bool) -> bool:
        """Make the file appear at ``path``; return whether it has."""
        if self._is_own and link(self._fd, path):
            return True
        if self._fd >= 0:
            if only_quickly:
                return False
            copy_part(self._fd, self._offset, self.size_bytes, path, _MODE)
        else:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
            try:
                write_all(fd, b"".join(self._memory))
            finally:
                os.close(fd)
        return True

    def _write_to_disk(self, data: bytes) -> None:
        try:
            if self._fd < 0:
                self._fd, self._offset, self._is_own = self._owner._place_on_disk()
                self._memory.append(data)
                data, self._memory = b"".join(self._memory), []
            write_all(self._fd, data)
            if not self._is_own:
                self._owner._shared_bytes += len(data)
        except OSError as error:
            raise_if_no_space(error, f"the input file {self.name}")
            raise
