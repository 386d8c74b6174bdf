"""Make the private directory of one invocation, and list what the script left in it.

::

    <tmp_dir>/watchdog-Ab12xy/        one for each running server, mode 0700
        lock                          locked with flock(2) as long as the server lives
        1-0123456789ab/               one for each script that runs, or whose answer is being sent
            input/                    TMP_INPUT_DIR
            output/                   TMP_OUTPUT_DIR
            response                  HTTP_RESPONSE_FILE

After a small call the directory is emptied, and a call that arrives soon uses it again. To make and remove three
directories, in a thread that must be woken, would be a large part of the cost of a small call.

A script can also change the server's directory. Then the server makes another one, and later calls get their
directories in it.

If a server was killed, no process holds the lock of its directory. The next server that starts removes such a
directory. It cannot take the lock of a running server, so it removes nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterable

from ..system.directory_state import DirectoryState, attributes_of, state_of
from .remove_tree import remove_tree
from .space import is_exhausted, is_plenty, space_of

# A directory is emptied in the event loop only if it has at most this number of files, each of at most this size.
# Otherwise a thread removes it.
_FEW_FILES = 16
_SMALL_BYTES = 1 << 20
# On ext4, a directory that once had many files stays large, and slow to list.
_SMALL_DIRECTORY_BYTES = 16 * 1024
# In seconds, longer than a clock tick. Some file systems store times in whole seconds only.
_SETTLED_S = 2.0


class Workspace:
    """The private directory of one invocation. Its four paths are absolute.

    Args:
        is_kept: another invocation may get the directory later. If not, :meth:`empty` always returns False.

    Attributes:
        loan: the number of the invocation that has the directory now; 0 if no invocation has it.
        is_tree_gone: no process of the last script can write into the directory any more.
        input_name: the name of the only file that the server has put into the input directory; "" if it is not known.
    """

    __slots__ = (
        "_as_made",
        "_changed_ns",
        "_is_settled",
        "_since_s",
        "_space",
        "input_dir",
        "input_name",
        "is_tree_gone",
        "loan",
        "output_dir",
        "path",
        "response_file",
    )

    def __init__(self, path: str, *, is_kept: bool = True) -> None:
        self.path = path
        self.input_dir = path + "/input"
        self.output_dir = path + "/output"
        self.response_file = path + "/response"
        self.loan = 0
        self.is_tree_gone = False
        self.input_name = ""
        os.mkdir(path, 0o700)
        try:
            os.mkdir(self.input_dir, 0o755)
            os.mkdir(self.output_dir, 0o755)
        except OSError:  # for example, no inode is left for the second directory
            remove_tree(path)
            raise
        # The state and the size of each directory. They are empty if a directory cannot be opened. The unit of the size
        # depends on the file system.
        self._as_made: dict[str, tuple[DirectoryState, int]] = {}
        # For the directory `path` itself: its ctime in nanoseconds, the time when this ctime was first seen, and
        # whether each later change of the directory will change the ctime.
        self._changed_ns, self._since_s, self._is_settled = 0, 0.0, False
        self._space: os.statvfs_result | None = None
        if not is_kept:
            return
        with contextlib.suppress(OSError):
            found = {each: state_of(each) for each in (path, self.input_dir, self.output_dir)}
            self._as_made = {each: (state, status.st_size) for each, (state, status) in found.items()}

    def is_as_made(self, directories: Iterable[str]) -> bool:
        """Return whether these directories are still the same, in the same state, and have not become large.

        Raises:
            OSError: a directory cannot be opened.
        """
        for directory in directories:
            if directory not in self._as_made:
                return False
            state_as_made, size_as_made_bytes = self._as_made[directory]
            state, status = state_of(directory)
            if state != state_as_made or status.st_size > max(size_as_made_bytes, _SMALL_DIRECTORY_BYTES):
                return False
            if directory == self.path:
                self._note_change(status.st_ctime_ns)
        return True

    def is_there(self) -> bool:
        """Return whether the input and the output directory exist and were not replaced."""
        return self._are_there((self.input_dir, self.output_dir))

    def _are_there(self, directories: Iterable[str]) -> bool:
        if not self._as_made:
            return False
        try:
            for directory in directories:
                status = os.lstat(directory)
                if (status.st_dev, status.st_ino) != self._as_made[directory][0].identity:
                    return False
        except OSError:
            return False
        return True

    def empty(self, *, is_checked_later: bool = False) -> bool:
        """Remove the files if they are few and small, and there is nothing else. Return whether the directory is empty.

        If a mount or a link is in the place of one of the directories, nothing in it is removed.

        Args:
            is_checked_later: this is called again before the next call gets the directory. So the state of the
                directories need not be checked now.
        """
        files: list[str] = []
        below = (self.input_dir, self.output_dir)
        directories = below if self._is_untouched() else (self.path, *below)
        try:
            if not (self._are_there(directories) if is_checked_later else self.is_as_made(directories)):
                return False
            for directory in directories:
                with os.scandir(directory) as entries:
                    for entry in entries:
                        if entry.path in below:
                            continue
                        # Compare the current size, because the script may have made the input or the response file
                        # large.
                        if not _is_small_file(entry.stat(follow_symlinks=False)) or len(files) == _FEW_FILES:
                            return False
                        files.append(entry.path)
            for path in files:
                os.unlink(path)
        except OSError:
            return False
        return True

    def remove_small(self) -> bool:
        """Remove the directory if it has few and small files. Return whether it is removed.

        If not, some of its files may be removed already. Nothing behind a link or a mount is removed.
        """
        try:
            if not stat.S_ISDIR(os.lstat(self.path).st_mode):
                return False
            for directory, name in ((self.output_dir, ""), (self.input_dir, self.input_name), (self.path, "")):
                if not _is_removed(directory, name):
                    return False
        except OSError:
            return False
        return True

    def _is_untouched(self) -> bool:
        """Return whether the directory ``path`` itself has certainly not changed since the last full check.

        Each change of an entry or of the state changes the directory's ctime, which no process can set. So if the
        directory has its old ctime, it need not be opened and listed.
        """
        if not self._is_settled:
            return False
        try:
            status = os.lstat(self.path)
        except OSError:
            return False
        as_made, _ = self._as_made[self.path]
        return (
            status.st_ctime_ns == self._changed_ns
            and (status.st_dev, status.st_ino) == as_made.identity
            # On tmpfs before Linux 6.1, an extended attribute does not change the ctime.
            and attributes_of(self.path) == as_made.attributes
        )

    def _note_change(self, changed_ns: int) -> None:
        """Note the ctime of the directory ``path``, which was just found in the same state as when it was made.

        Two changes in the same clock tick give a directory the same ctime. So the ctime shows each later change only
        after it has been the same for longer than a tick.
        """
        now_s = time.monotonic()
        if changed_ns != self._changed_ns:
            self._changed_ns, self._since_s, self._is_settled = changed_ns, now_s, False
        elif now_s - self._since_s > _SETTLED_S:
            self._is_settled = True

    def is_full(self) -> bool:
        """Return whether nothing more can be written into this directory."""
        self._space = space_of(self.path)
        return is_exhausted(self._space)

    def has_plenty(self) -> bool:
        """Return whether there is enough free space to keep this directory for the next call.

        If :meth:`is_full` measured the space at the end of the last script, this uses its result.
        """
        space, self._space = self._space or space_of(self.path), None
        return is_plenty(space)

    def remove(self) -> None:
        """Remove the directory and everything in it, at any depth and with any modes."""
        try:
            remove_tree(self.path)
        except PermissionError:
            # A script may have removed the permissions of the server's directory, too.
            os.chmod(os.path.dirname(self.path), 0o700)
            remove_tree(self.path)


def _is_removed(directory: str, name: str) -> bool:
    """Remove a directory if it has few and small files. Return whether it is removed.

    Args:
        name: the name of a file that is probably the only one. Then the directory need not be listed.

    Raises:
        OSError: it is not a directory, something is mounted there (EBUSY), or a file cannot be removed.
    """
    # A mount is noticed here, before anything behind it is removed.
    if _is_removed_empty(directory):
        return True
    if name:
        with contextlib.suppress(FileNotFoundError):  # the script has moved or removed the file
            _remove_small_files(directory, [name])
        if _is_removed_empty(directory):
            return True
    return _remove_small_files(directory) and _is_removed_empty(directory)


def _is_removed_empty(directory: str) -> bool:
    try:
        os.rmdir(directory)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        return False
    return True


def _remove_small_files(directory: str, names: list[str] | None = None) -> bool:
    """Remove these files, or all files, if they are few and small. Return whether this was done.

    Raises:
        OSError: it is not a directory, or a file cannot be removed.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if names is None:
            names = os.listdir(fd)
        if len(names) > _FEW_FILES:
            return False
        for name in names:
            if not _is_small_file(os.stat(name, dir_fd=fd, follow_symlinks=False)):
                return False
            os.unlink(name, dir_fd=fd)
    finally:
        os.close(fd)
    return True


def _is_small_file(status: os.stat_result) -> bool:
    is_small = status.st_size <= _SMALL_BYTES and status.st_blocks * 512 <= _SMALL_BYTES
    return is_small and not stat.S_ISDIR(status.st_mode)
