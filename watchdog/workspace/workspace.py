"""Keep the private directory of one invocation: name its files safely, list what the script left.

::

    <tmp_dir>/watchdog-Ab12xy/        one for each running server, mode 0700
        lock                          held with flock(2) for as long as the server lives
        1-0123456789ab/               one for each script that runs, or has an answer that is being sent
            input/                    TMP_INPUT_DIR
            output/                   TMP_OUTPUT_DIR
            response                  HTTP_RESPONSE_FILE

After a small call the directory is emptied, and a call that comes soon uses it again. Making and removing three
directories, in a thread that must be woken, is a large part of the cost of a small call.

A script can also change the server's directory. Then the next call that needs a new directory gets it in another one.

If a server was killed, nobody holds the lock of its directory. The next start removes this directory and nothing else.
The lock of a running server cannot be taken.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Generator, Iterator
from dataclasses import replace

from ..errors import OutputTooLarge, OutputUnreadable
from ..system.directory_state import DirectoryState, state_of
from .output_names import replacements
from .outputs import Listing, Output, cannot_read, shortened
from .remove_tree import remove_tree
from .space import is_full

# Each takes about a kilobyte of this process's memory until its call is answered.
MOST_OUTPUTS = 100_000
# How many entries of TMP_OUTPUT_DIR are looked at in one step: in the event loop the first few, because a thread costs
# more, then in threads as many as take some milliseconds.
_FIRST_ENTRIES = 200
_ENTRIES_IN_A_STEP = 5000
# As many entries take the time of one symbolic link, whose path may be long and lead through other links.
_COST_OF_LINK = 200
# Larger than this, a file may be larger than its file system.
_SUSPICIOUS_BYTES = 1 << 30
# What is removed at once, in the event loop: more, or larger, is left to a thread.
_FEW_FILES = 16
_SMALL_BYTES = 1 << 20
# A directory that held many files stays large on ext4, and slow to list.
_SMALL_DIRECTORY_BYTES = 16 * 1024


class Workspace:
    """The private directory of one invocation; its four paths are absolute.

    ``loan``: the number of the invocation that has it, another one each time it is lent; 0: none has it.
    ``is_tree_gone``: no process of the script that had it last can write into it any more.
    """

    __slots__ = ("_as_made", "input_dir", "is_tree_gone", "loan", "output_dir", "path", "response_file")

    def __init__(self, path: str) -> None:
        self.path = path
        self.input_dir = path + "/input"
        self.output_dir = path + "/output"
        self.response_file = path + "/response"
        self.loan = 0
        self.is_tree_gone = False
        os.mkdir(path, 0o700)
        try:
            os.mkdir(self.input_dir, 0o755)
            os.mkdir(self.output_dir, 0o755)
        except OSError:  # no inode may be left for the second
            remove_tree(path)
            raise
        self._as_made = self._look()

    def is_as_made(self) -> bool:
        """Whether its directories are the same, in the same state, and have not become large."""
        if self._as_made is None or (now := self._look()) is None:
            return False
        (as_made, size_as_made_bytes), (state, size_bytes) = self._as_made, now
        return state == as_made and size_bytes <= max(size_as_made_bytes, _SMALL_DIRECTORY_BYTES)

    def is_there(self) -> bool:
        """Whether nobody has removed or replaced its directories."""
        if self._as_made is None:
            return False
        try:
            found = [os.lstat(path) for path in (self.input_dir, self.output_dir)]
        except OSError:
            return False
        _, input_as_made, output_as_made = self._as_made[0]
        return [(each.st_dev, each.st_ino) for each in found] == [input_as_made.identity, output_as_made.identity]

    def empty(self) -> bool:
        """Remove the files, if there are few and small ones and nothing else; False if something may be left.

        Nothing is removed behind a mount or a link that stands in the place of a directory.
        """
        files: list[str] = []
        try:
            if not self.is_as_made():
                return False
            for directory in (self.path, self.input_dir, self.output_dir):
                with os.scandir(directory) as entries:
                    for entry in entries:
                        if entry.path in (self.input_dir, self.output_dir):
                            continue
                        status = entry.stat(follow_symlinks=False)
                        # As it is now: the script may have made it large.
                        is_small = status.st_size <= _SMALL_BYTES and status.st_blocks * 512 <= _SMALL_BYTES
                        if stat.S_ISDIR(status.st_mode) or not is_small or len(files) == _FEW_FILES:
                            return False
                        files.append(entry.path)
            for path in files:
                os.unlink(path)
        except OSError:
            return False
        return True

    def _look(self) -> tuple[list[DirectoryState], int] | None:
        """Return the state of each directory, and the size of the largest; some file systems give any size.

        None if a directory cannot be looked at.
        """
        try:
            found = [state_of(path) for path in (self.path, self.input_dir, self.output_dir)]
        except OSError:
            return None
        return [state for state, _ in found], max(status.st_size for _, status in found)

    def outputs(self, most: int = MOST_OUTPUTS) -> tuple[list[Output], list[tuple[str, str]]]:
        """List at once what :meth:`listing` lists in steps; return its ``outputs`` and ``skipped``."""
        listing = Listing()
        for _ in self.listing(listing, most):
            pass
        return listing.outputs, listing.skipped

    def listing(self, listing: Listing, most: int = MOST_OUTPUTS) -> Generator[bool, None, None]:
        """List what the script left in ``TMP_OUTPUT_DIR``, in steps. Nothing is opened for reading.

        The first step is short and follows no link: it may run in the event loop. Run the others in a thread, and close
        the generator if nobody wants the list any more.

        Each directory is listed once, under its own name. A symbolic link to a file below ``TMP_OUTPUT_DIR`` is an
        output. A symbolic link to a directory below it is not followed: its files are outputs already, and links to
        links to directories would make 2^n paths of n directories.

        Args:
            listing: is filled; it is complete and sorted by name when the generator ends.

        Raises:
            OutputUnreadable: something cannot be listed or looked at, or something else stands in the place of
                ``TMP_OUTPUT_DIR``.
            OutputTooLarge: there are more than ``most`` entries, or a file is larger than the file system.
        """
        try:
            mode = os.lstat(self.output_dir).st_mode
        except FileNotFoundError:
            # It may have been tidied up at the script's end: then there are no outputs, which is no fault.
            listing.skipped.append(("TMP_OUTPUT_DIR", "removed by the script"))
            return
        except OSError as error:
            raise _cannot_list("TMP_OUTPUT_DIR", error) from error
        if not stat.S_ISDIR(mode):
            kind = "a file" if stat.S_ISREG(mode) else "a symbolic link" if stat.S_ISLNK(mode) else _kind(mode)
            raise OutputUnreadable(
                f"the script put {kind} in the place of the directory TMP_OUTPUT_DIR; it should write its files into it"
            )
        outputs, skipped = listing.outputs, listing.skipped
        room = _FIRST_ENTRIES
        pending = [(self.output_dir, "")]
        while pending:
            directory, prefix = pending.pop()
            with _entries(directory, prefix) as entries:
                for entry in _each(entries, prefix):
                    if len(outputs) + len(skipped) + len(pending) >= most:
                        raise OutputTooLarge(
                            f"there are over {most} files in TMP_OUTPUT_DIR; pack them into one (tar, zip)"
                        )
                    room -= _COST_OF_LINK if entry.is_symlink() else 1
                    if room <= 0:
                        yield True
                        room = _ENTRIES_IN_A_STEP
                    name, path = prefix + entry.name, entry.path
                    if entry.is_symlink():
                        found = self._behind_link(name, path)
                        if isinstance(found, str):
                            skipped.append((name, found))
                            continue
                        path, status = found
                    else:
                        try:
                            status = os.lstat(path)
                        except OSError as error:
                            raise cannot_read(name, error) from error
                    if stat.S_ISREG(status.st_mode):
                        if status.st_size > _SUSPICIOUS_BYTES:
                            self._raise_if_impossible(name, status.st_size)
                        outputs.append(Output(path, name, status.st_size, status.st_mtime, status.st_mode))
                    elif not stat.S_ISDIR(status.st_mode):
                        skipped.append((name, _kind(status.st_mode)))
                    elif entry.is_symlink():
                        skipped.append((name, "a symbolic link to a directory whose files are outputs already"))
                    else:
                        pending.append((path, name + "/"))
        listing.renamed = renamed = replacements([output.name for output in outputs])
        if renamed:
            outputs[:] = [replace(output, name=renamed.get(output.name, output.name)) for output in outputs]
        outputs.sort(key=lambda output: output.name)

    def _behind_link(self, name: str, path: str) -> tuple[str, os.stat_result] | str:
        """Return the real path behind a symbolic link and its status, or why the link is not an output.

        The kernel follows the link, and gives up after 40 links: then the script cannot open the file either.

        Raises:
            OutputUnreadable: what the link leads to cannot be looked at.
        """
        leaves = "a symbolic link that leaves the directory"
        try:
            root, _ = _real_path(self.output_dir)
            real_path, status = _real_path(path)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return "a symbolic link to nothing"
            # A link to a place that the script may not look at either is no loss.
            target = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
            if error.errno == errno.EACCES and not _is_below(target, self.output_dir):
                return leaves
            raise cannot_read(name, error) from error
        return (real_path, status) if _is_below(real_path, root) else leaves

    def is_full(self) -> bool:
        """Whether nothing more can be written here."""
        return is_full(self.path)

    def _raise_if_impossible(self, name: str, size_bytes: int) -> None:
        """A sparse file may claim any size; what its holes would be as an answer takes hours to find out."""
        status = os.statvfs(self.path)
        capacity_bytes = status.f_blocks * status.f_frsize
        if capacity_bytes and size_bytes > capacity_bytes:
            raise OutputTooLarge(
                f"the output {name!r} has {size_bytes} bytes, its file system only {capacity_bytes}: a sparse file, of "
                "which most was never written"
            )

    def remove(self) -> None:
        """Remove the directory and all that is in it, however deep and whatever its modes."""
        try:
            remove_tree(self.path)
        except PermissionError:
            # A script may have closed the server's directory as well.
            os.chmod(os.path.dirname(self.path), 0o700)
            remove_tree(self.path)


def _entries(directory: str, prefix: str) -> contextlib.AbstractContextManager[Iterator[os.DirEntry[str]]]:
    try:
        return os.scandir(directory)
    except OSError as error:
        raise _cannot_list(prefix, error) from error


def _each(entries: Iterator[os.DirEntry[str]], prefix: str) -> Iterator[os.DirEntry[str]]:
    try:
        yield from entries
    except OSError as error:
        raise _cannot_list(prefix, error) from error


def _real_path(path: str) -> tuple[str, os.stat_result]:
    """Follow links, without opening what they lead to, and return the real path and its status."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd)
    finally:
        os.close(fd)


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory + "/")


def _cannot_list(name: str, error: OSError) -> OutputUnreadable:
    return OutputUnreadable(f"cannot list the output folder {shortened(name or 'TMP_OUTPUT_DIR')}: {error.strerror}")


def _kind(mode: int) -> str:
    for test, kind in (
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISBLK, "a block device"),
        (stat.S_ISCHR, "a character device"),
    ):
        if test(mode):
            return kind
    return "neither file nor directory"
