"""One invocation's private directory: make it, name files in it safely, list what the script left, remove it.

::

    <tmp_dir>/watchdog-Ab12xy/        one for each running server, mode 0700
        lock                          held with flock(2) for as long as the server lives
        1-0123456789ab/               one for each script that runs, or has an answer that is being sent
            input/                    TMP_INPUT_DIR
            output/                   TMP_OUTPUT_DIR
            response                  HTTP_RESPONSE_FILE

After a small call the directory is emptied and taken by the next one, if there soon is one: to make three directories
and to remove them, in a thread that must be woken, is a good part of what a call costs.

A script can change the server's directory, too: then the next call that needs a new directory gets it in another one.

A server that was killed leaves its directory without a holder of the lock: the next start removes it,
and only it. A live server's lock cannot be taken, whoever started it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import itertools
import math
import os
import re
import stat
import tempfile
import time
import unicodedata
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from .directory_state import DirectoryState, state_of
from .errors import BadInput, NoSpace, OutputTooLarge, OutputUnreadable, quoted
from .output_names import replacements

# Each takes about a kilobyte of this process's memory until its call is answered.
MOST_OUTPUTS = 100_000
# How many entries of TMP_OUTPUT_DIR are looked at in one step: in the event loop the first few, because a thread costs
# more, then in threads as many as take some milliseconds.
_FIRST_ENTRIES = 200
_ENTRIES_IN_A_STEP = 5000
# As many entries take the time of one symbolic link, whose path may be long and lead through other links.
_COST_OF_LINK = 200
_PREFIX = "watchdog-"
# Larger than this, a file may be larger than its file system.
_SUSPICIOUS_BYTES = 1 << 30
# Less than a usual write of a buffer.
_FULL_BYTES = 4096
# A device in the place of the lock may make open wait without O_NONBLOCK.
_LOCK_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

# What is removed at once, in the event loop: more, or larger, is left to a thread.
_FEW_FILES = 16
_SMALL_BYTES = 1 << 20
# A directory that held many files stays large on ext4, and slow to list.
_SMALL_DIRECTORY_BYTES = 16 * 1024
# A file system that takes longer, twice in a row, is left alone for a time. Once may be a machine that stood still.
_SLOW_S = 0.01
_SLOW_PAUSE_S = 10.0
# Less than this is left for the scripts that run.
_PLENTY_BYTES = 16 << 20
_PLENTY_INODES = 1000

_REMOVED_AT_ONCE = 10_000
# Characters of an output's name in an error.
_SHOWN_NAME = 300
# NAME_MAX is 255 bytes; the rest is left for what scripts like to append (".jpg", ".tmp", "-resized").
_LONGEST_NAME_BYTES = 200


@dataclass(frozen=True, slots=True)
class Output:
    """One regular file that a script left.

    ``path``: absolute, without symbolic links. ``name``: relative to ``TMP_OUTPUT_DIR``; bytes that are
    not UTF-8 stand in it as lone surrogates (:func:`os.fsdecode`). Characters that are not safe on every system are
    replaced. ``fd``: of the file, once it has no name any more (:func:`hold_outputs`).
    """

    path: str
    name: str
    size_bytes: int
    mtime_s: float
    mode: int
    fd: int = -1

    def held_by(self, fd: int) -> Output:
        """Return the same output with its descriptor."""
        return Output(self.path, self.name, self.size_bytes, self.mtime_s, self.mode, fd)


@dataclass(slots=True)
class Listing:
    """What a script left.

    ``skipped``: name and reason of each entry that is not an output. ``renamed``: the new name of each output whose own
    name would leave its directory on another system.
    """

    outputs: list[Output] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)


def hold_outputs(outputs: Sequence[Output]) -> list[Output]:
    """Open outputs and take their names away, so that no script finds them; return them with their descriptors.

    A hard link that the script made elsewhere stays.

    Raises:
        OutputUnreadable: as :func:`open_output`.
    """
    held: list[Output] = []
    try:
        for output in outputs:
            held.append(output.held_by(open_output(output)))
    except BaseException:
        release_outputs(held)
        raise
    for output in outputs:
        # Two outputs may be one file, by links.
        with contextlib.suppress(OSError):
            os.unlink(output.path)
    return held


def release_outputs(held: Iterable[Output]) -> None:
    """Close what :func:`hold_outputs` opened."""
    for output in held:
        os.close(output.fd)


def open_output(output: Output) -> int:
    """Open an output for reading and return its descriptor, at the file's begin.

    Of an output that is held only one descriptor may be read from at a time, except with ``pread``: they share their
    position.

    Raises:
        OutputUnreadable: it is gone, not readable, or not what it was when it was listed.
    """
    # O_NONBLOCK: a FIFO put in the file's place must not block the open.
    try:
        if output.fd >= 0:
            fd = os.dup(output.fd)
            os.lseek(fd, 0, os.SEEK_SET)
        else:
            fd = os.open(output.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise OutputUnreadable(f"cannot read the output {output.name!r}: {error.strerror}") from error
    try:
        raise_if_changed(fd, output)
    except OutputUnreadable:
        os.close(fd)
        raise
    return fd


def raise_if_changed(fd: int, output: Output) -> None:
    """Raise :class:`OutputUnreadable` if a file is not any more what it was when it was listed."""
    status = os.fstat(fd)
    is_same = status.st_size == output.size_bytes and status.st_mtime == output.mtime_s
    if not stat.S_ISREG(status.st_mode) or not is_same:
        raise OutputUnreadable(f"the output {output.name!r} changed after the script had ended")


class Workspaces:
    """The directory of this server, in which each invocation gets one of its own.

    Args:
        tmp_dir: where to make it; must exist and be writable.
    """

    def __init__(self, tmp_dir: str) -> None:
        self.tmp_dir = os.path.abspath(tmp_dir)
        self._roots: list[_Root] = []  # the last one is in use
        self._serial = itertools.count(1)
        self._kept: list[_Kept] = []  # the oldest first
        self._lent = 0
        self._was_slow = False
        self._slow_until_s = 0.0

    def sweep(self) -> tuple[list[str], list[str]]:
        """Remove what servers left that are dead; return the paths removed and those that could not be."""
        removed, kept = [], []
        for path in self._abandoned():
            try:
                remove_tree(path)
            except OSError:
                kept.append(path)
            else:
                removed.append(path)
        return removed, kept

    def make(self) -> Workspace:
        """Make the directory of one invocation, or take one that is kept.

        Raises:
            NoSpace: nothing more fits into ``tmp_dir``.
            OSError: ``tmp_dir`` is gone or not writable.
        """
        self._lent += 1
        workspace = self._taken_from_kept() or self._new()
        workspace.loan = self._lent
        return workspace

    def _taken_from_kept(self) -> Workspace | None:
        if not self._kept:
            return None
        kept = self._kept.pop()
        # A script that ran meanwhile may have put something there.
        is_untouched = kept.lent_before == self._lent - 1 and kept.workspace.is_there()
        if is_untouched or kept.workspace.empty():
            return kept.workspace
        self._kept.insert(0, _Kept(kept.workspace, -math.inf, -1))  # to be removed
        return None

    def _new(self) -> Workspace:
        try:
            return Workspace(self._new_path())
        except OSError as error:
            raise_if_no_space(error, f"a workspace in {self.tmp_dir}")
            raise

    def keep(self, workspace: Workspace, *, others_run: bool = False) -> bool:
        """Empty the directory of a small call, and keep it for the next.

        It must be certain that nothing of its own script writes into it any more. Kept ones are never more than were in
        use at one time, and nothing is kept where space is short.

        Args:
            others_run: other scripts run now, of the same user: they may put something into it.

        Returns:
            False if it is to be removed instead: too much is in it for the event loop, or something that is not ours.
        """
        began_s = time.monotonic()
        if not self._roots or began_s < self._slow_until_s or not _has_plenty(self.tmp_dir):
            return False
        is_empty = workspace.empty()
        now_s = time.monotonic()
        was_slow, self._was_slow = self._was_slow, now_s - began_s > _SLOW_S
        if was_slow and self._was_slow:
            self._slow_until_s = now_s + _SLOW_PAUSE_S
        if is_empty:
            self._kept.append(_Kept(workspace, now_s, -1 if others_run else self._lent))
        return is_empty

    @property
    def has_kept(self) -> bool:
        return bool(self._kept)

    def unused(self, for_s: float = 0.0) -> list[Workspace]:
        """Those that were kept for so long in vain; they are the caller's now, to be removed."""
        until_s = time.monotonic() - for_s
        count = sum(kept.since_s <= until_s for kept in self._kept)
        unused, self._kept = self._kept[:count], self._kept[count:]
        return [kept.workspace for kept in unused]

    def close(self) -> None:
        """Remove this server's directory. Raises ``OSError`` if something in it cannot be removed."""
        self._kept.clear()
        roots, self._roots = self._roots, []
        with contextlib.ExitStack() as stack:
            for root in roots:
                stack.callback(os.close, root.lock_fd)
                stack.callback(remove_tree, root.path)

    def _new_path(self) -> str:
        # With a part that no script can guess, and so not make before.
        return os.path.join(self._root(), f"{next(self._serial)}-{os.urandom(6).hex()}")

    def _root(self) -> str:
        """Return this server's directory, which is made if there is none in the state in which it was made.

        A script, or a cleaner of /tmp, may have removed it. A script may also have changed its mode, or what new
        directories inherit from it. The old one is removed once all calls in it have ended.
        """
        if not self._roots or not self._roots[-1].is_as_made():
            self._remove_empty_roots()
            self._roots.append(self._new_root())
        return self._roots[-1].path

    def _new_root(self) -> _Root:
        while True:
            path = tempfile.mkdtemp(prefix=_PREFIX, dir=self.tmp_dir)
            as_made, _ = state_of(path)
            fd = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            # Race: another server that starts now may sweep the directory between its making and the lock.
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.exists(os.path.join(path, "lock")):
                    return _Root(path, fd, as_made)
            os.close(fd)

    def _remove_empty_roots(self) -> None:
        for root in [*self._roots]:
            with contextlib.suppress(OSError):
                is_directory = stat.S_ISDIR(_lstat_mode(root.path))
                if not is_directory or {entry.name for entry in _entries_to_remove(root.path)} <= {"lock"}:
                    remove_tree(root.path)
            if not os.path.lexists(root.path):
                self._roots.remove(root)
                os.close(root.lock_fd)

    def _abandoned(self) -> Iterator[str]:
        try:
            entries = list(os.scandir(self.tmp_dir))
        except OSError:
            return
        for entry in entries:
            if not entry.name.startswith(_PREFIX) or not entry.is_dir(follow_symlinks=False):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
                if status.st_uid != os.geteuid():
                    continue
                fd = os.open(os.path.join(entry.path, "lock"), _LOCK_FLAGS)
            except OSError:
                # No lock file (yet): another server is just making it, or it is not ours to judge.
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                yield entry.path
            finally:
                os.close(fd)


class _Root(NamedTuple):
    """A directory of this server, and its state when it was made."""

    path: str
    lock_fd: int
    as_made: DirectoryState

    def is_as_made(self) -> bool:
        try:
            return state_of(self.path)[0] == self.as_made
        except OSError as error:
            return error.errno in _NO_DESCRIPTOR  # unknown, until the next call


class _Kept(NamedTuple):
    """A directory for the next call: since when, and how many had been lent by then; -1 if other scripts ran."""

    workspace: Workspace
    since_s: float
    lent_before: int


class Workspace:
    """The private directory of one invocation; its four paths are absolute.

    ``loan``: the number of the invocation that has it, another one each time it is lent; 0: none has it.
    """

    __slots__ = ("_as_made", "input_dir", "loan", "output_dir", "path", "response_file")

    def __init__(self, path: str) -> None:
        self.path = path
        self.input_dir = path + "/input"
        self.output_dir = path + "/output"
        self.response_file = path + "/response"
        self.loan = 0
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
                            raise _cannot_read(name, error) from error
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
            raise _cannot_read(name, error) from error
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


def is_full(directory: str) -> bool:
    """Whether nothing more can be written there."""
    try:
        status = os.statvfs(directory)
    except OSError:
        return False
    has_inodes = not status.f_files or status.f_favail > 0  # some file systems count none
    # Some file systems count no blocks either (tmpfs with size=0, ramfs).
    available = status.f_bfree if os.geteuid() == 0 else status.f_bavail  # some is kept for root
    has_blocks = not status.f_blocks or available * status.f_frsize >= _FULL_BYTES
    return not (has_blocks and has_inodes)


def free_bytes(directory: str) -> float:
    """Return how many bytes can still be written there; infinity if the file system counts none."""
    try:
        status = os.statvfs(directory)
    except OSError:
        return math.inf
    return status.f_bavail * status.f_frsize if status.f_blocks else math.inf


def _has_plenty(directory: str) -> bool:
    try:
        status = os.statvfs(directory)
    except OSError:  # it is gone
        return False
    has_inodes = not status.f_files or status.f_favail >= _PLENTY_INODES  # some file systems count none
    return has_inodes and (not status.f_blocks or status.f_bavail * status.f_frsize >= _PLENTY_BYTES)


def safe_file_name(name: str) -> str | None:
    """One path component made of a name that a caller gave, or None if nothing of it is left.

    Folders before the name are cut off, as are leading dots (the file would hide from ``ls`` and ``*``) and
    characters that do not show (writing direction marks, zero width); a long name is shortened before its
    extension.

    Raises:
        BadInput: the name has a control character.
    """
    if re.search(r"[\x00-\x1f\x7f]", name):
        raise BadInput(f"the file name {quoted(name)} has a control character; give a name without it")
    name = os.fsencode(re.split(r"[/\\]", name)[-1]).decode("utf-8", "replace")
    name = "".join(c for c in name if unicodedata.category(c) not in ("Cf", "Cc", "Zl", "Zp"))
    name = re.sub(r"^[\s.]+", "", name).rstrip()
    stem, dot, extension = name.rpartition(".")
    if not dot or len(os.fsencode(extension)) > 20:
        stem, dot, extension = name, "", ""
    room = _LONGEST_NAME_BYTES - len(os.fsencode(dot + extension))
    return os.fsencode(stem)[:room].decode("utf-8", "ignore") + dot + extension or None


def raise_if_no_space(error: OSError, what: str) -> None:
    """Raise :class:`NoSpace` that names ``what``, if that is what the error says."""
    if error.errno in _NO_SPACE:
        raise NoSpace(f"no space is left for {what}: {error.strerror}") from error


def remove_tree(root: str) -> None:
    """Remove a directory and all in it, or what stands in its place. What is gone already is no error.

    Raises:
        OSError: something cannot be removed (an immutable file, a mount point).
    """
    mode = _lstat_mode(root)
    if mode and not stat.S_ISDIR(mode):  # a link, perhaps, to a directory that is not ours
        os.unlink(root)
        return
    # Directories below the first level are moved up to it before they are emptied: neither recursion nor
    # path length then grows with the depth that a script chose.
    serial = itertools.count()
    tag = f".remove-{os.getpid()}-{time.monotonic_ns()}-"
    while entries := _entries_to_remove(root):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                _forced(os.unlink, entry.path)
                continue
            path = entry.path
            if not entry.name.startswith(tag):
                # What a script has mounted cannot be moved, and is not emptied therefore.
                path = f"{root}/{tag}{next(serial)}"
                _forced(functools.partial(_move, path), entry.path)
            while some := _entries_to_remove(path):
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


def _entries_to_remove(directory: str) -> list[os.DirEntry[str]]:
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
        if stat.S_ISDIR(_lstat_mode(path)):
            os.chmod(path, 0o700)
        remove(path)


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
    return OutputUnreadable(f"cannot list the output folder {_shortened(name or 'TMP_OUTPUT_DIR')}: {error.strerror}")


def _cannot_read(name: str, error: OSError) -> OutputUnreadable:
    return OutputUnreadable(f"cannot read the output {_shortened(name)}: {error.strerror}")


def _shortened(name: str) -> str:
    """Return a name for an error: of a path of thousands of characters the begin and the end."""
    return repr(name if len(name) <= _SHOWN_NAME else f"{name[: _SHOWN_NAME // 2]}…{name[-_SHOWN_NAME // 2 :]}")


def _lstat_mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0


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
