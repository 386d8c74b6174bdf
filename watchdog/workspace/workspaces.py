"""Make the directories of all calls, use them again, and remove the directories of killed servers."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import math
import os
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple

from ..system.directory_state import DirectoryState, state_of
from ..system.files import NO_DESCRIPTOR
from .remove_tree import entries_to_remove, lstat_mode, remove_tree
from .space import raise_if_no_space
from .workspace import Workspace

_PREFIX = "watchdog-"
_NAME_BYTES = 8  # random, so that no other process can make a directory of the same name first
# If a script has put a device in the place of the lock, an open without O_NONBLOCK may wait.
_LOCK_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# If emptying a directory takes longer than _SLOW_S twice in a row, no directory is emptied for _SLOW_PAUSE_S. One slow
# time does not count, because the whole machine may have paused.
_SLOW_S = 0.01
_SLOW_PAUSE_S = 10.0


class Workspaces:
    """The directory of this server, in which each invocation gets a directory of its own.

    Args:
        tmp_dir: the parent of the server's directory. It must exist and be writable.
        keeps: whether the directories of calls may be kept for later calls. If not, their state is not read.
    """

    def __init__(self, tmp_dir: str, *, keeps: bool = True) -> None:
        self.tmp_dir = os.path.abspath(tmp_dir)
        self._keeps = keeps
        self._roots: list[_Root] = []  # new directories are made in the last one
        self._serial = itertools.count(1)
        self._kept: list[_Kept] = []  # the oldest one is the first
        self._lent = 0
        self._was_slow = False
        self._slow_until_s = 0.0

    def sweep(self) -> tuple[list[str], list[str]]:
        """Remove the directories of dead servers. Return the removed paths, and the paths that cannot be removed."""
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
        """Make the directory of one invocation, or take a kept one.

        Raises:
            NoSpace: the disk of ``tmp_dir`` is full.
            OSError: ``tmp_dir`` is gone or not writable.
        """
        self._lent += 1
        workspace = self._taken_from_kept() or self._new()
        workspace.loan = self._lent
        workspace.is_tree_gone = False
        workspace.input_name = ""
        return workspace

    def _taken_from_kept(self) -> Workspace | None:
        if not self._kept:
            return None
        kept = self._kept.pop()
        # If a script ran meanwhile, it may have put a file there, so the directory must be emptied again.
        is_untouched = kept.lent_before == self._lent - 1 and kept.workspace.is_there()
        if is_untouched or kept.workspace.empty():
            return kept.workspace
        self._kept.insert(0, _Kept(kept.workspace, -math.inf, -1))  # `unused` will return it, to be removed
        return None

    def _new(self) -> Workspace:
        try:
            return Workspace(self._new_path(), is_kept=self._keeps)
        except OSError as error:
            raise_if_no_space(error, f"a workspace in {self.tmp_dir}")
            raise

    def keep(self, workspace: Workspace, *, others_run: bool = False) -> bool:
        """Empty the directory of a small call, and keep it for the next call.

        The caller must be certain that no process of its script writes into it any more. The number of kept directories
        is at most the largest number of directories that were in use at the same time. No directory is kept if the disk
        is slow or has little space.

        Args:
            others_run: other scripts run now. They have the same user, so they may put files into the directory.

        Returns:
            Whether the directory is kept. If not, the caller must remove it: for example, it has many or large files,
            or a script has changed it.
        """
        if not self._is_quick() or not workspace.has_plenty():
            return False
        began_s = time.monotonic()
        # If other scripts run, the next call that takes the directory empties and checks it again.
        is_empty = workspace.empty(is_checked_later=others_run)
        now_s = self._note_time(began_s)
        if is_empty:
            self._kept.append(_Kept(workspace, now_s, -1 if others_run else self._lent))
        return is_empty

    def remove_small(self, workspace: Workspace) -> bool:
        """Remove the directory of a small call at once. Return whether this was done.

        If not, the caller must remove the directory in a thread: it has many or large files, or the disk is slow.
        """
        if not self._is_quick():
            return False
        began_s = time.monotonic()
        is_removed = workspace.remove_small()
        self._note_time(began_s)
        return is_removed

    def _is_quick(self) -> bool:
        """Return whether the disk was not slow when directories were last emptied."""
        return bool(self._roots) and time.monotonic() >= self._slow_until_s

    def _note_time(self, began_s: float) -> float:
        """Note how long it took to empty a directory, and return the time now."""
        now_s = time.monotonic()
        was_slow, self._was_slow = self._was_slow, now_s - began_s > _SLOW_S
        if was_slow and self._was_slow:
            self._slow_until_s = now_s + _SLOW_PAUSE_S
        return now_s

    @property
    def has_kept(self) -> bool:
        return bool(self._kept)

    def unused(self, for_s: float = 0.0) -> list[Workspace]:
        """Return the directories that were kept for at least ``for_s`` seconds. The caller must remove them."""
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
        # A script cannot guess the random part, so it cannot make this directory before the server does.
        return f"{self._root()}/{next(self._serial)}-{os.urandom(6).hex()}"

    def _root(self) -> str:
        """Return this server's directory. Make another one if it is gone or has changed.

        A script, or a program that cleans /tmp, may have removed it. A script may also have changed its mode, or the
        properties that new directories inherit from it. An old one is removed before another one is made, or by
        :meth:`close`. If a call is still in it, it stays until the next of these moments.
        """
        if not self._roots or not self._roots[-1].is_as_made():
            self._remove_empty_roots()
            self._roots.append(self._new_root())
        return self._roots[-1].path

    def _new_root(self) -> _Root:
        while True:
            path = os.path.join(self.tmp_dir, _PREFIX + os.urandom(_NAME_BYTES).hex())
            os.mkdir(path, 0o700)
            try:
                as_made, _ = state_of(path)
                lock_fd = _locked(os.path.join(path, "lock"))
            except OSError:
                # No sweep removes a directory without a lock. This removal needs no descriptor: there may be none.
                with contextlib.suppress(OSError):
                    os.rmdir(path)
                raise
            if lock_fd >= 0:
                return _Root(path, lock_fd, as_made)

    def _remove_empty_roots(self) -> None:
        for root in [*self._roots]:
            with contextlib.suppress(OSError):
                is_directory = stat.S_ISDIR(lstat_mode(root.path))
                if not is_directory or {entry.name for entry in entries_to_remove(root.path)} <= {"lock"}:
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
                # There is no lock file, or not yet: another server may just be making the directory.
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # its server lives, or the file system has no locks
                continue
            else:
                yield entry.path
            finally:
                os.close(fd)


def _locked(path: str) -> int:
    """Make and lock the lock file of a new directory. Return its descriptor.

    Return -1 if a server that starts now took the lock before this one. It removes the directory then.

    Raises:
        OSError: the file cannot be made, or the file system has no locks. Then there is no such file.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.exists(path):
            return fd
    except BlockingIOError:
        pass
    except OSError:
        os.close(fd)
        os.unlink(path)
        raise
    os.close(fd)
    return -1


class _Root(NamedTuple):
    """A directory of this server, and its state when it was made."""

    path: str
    lock_fd: int
    as_made: DirectoryState

    def is_as_made(self) -> bool:
        try:
            return state_of(self.path)[0] == self.as_made
        except OSError as error:
            return error.errno in NO_DESCRIPTOR  # then the state is unknown: it is read again for the next call


class _Kept(NamedTuple):
    """A directory that is kept for the next call.

    Attributes:
        since_s: the time since which it is kept.
        lent_before: how many directories had been lent at that time; -1 if other scripts ran.
    """

    workspace: Workspace
    since_s: float
    lent_before: int
