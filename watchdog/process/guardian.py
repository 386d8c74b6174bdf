"""Keep a small process that ends the running scripts if the server is killed.

A server that is PID 1 needs no guardian: the kernel ends all processes of the container with it. Elsewhere
(``docker run --init``, an entry point that is a shell, a pod with a shared process namespace) scripts would continue
when ``kill -9`` ends the server, or when the kernel ends it because memory ran out. A parent-death signal would reach
only the script, not the processes that it started, and posix_spawn cannot set such a signal.

::

    server ── a pipe: only the server has the writing end ───► guardian: end of file means that the server is gone
           ── shared memory: running sessions, their marks ──►

For an invocation the server only writes a few bytes into shared memory. The guardian sleeps in a read of the pipe.

The guardian is a fork of the server and executes no program. Scripts run as the same user. After an ``exec`` a script
could access the guardian's memory until the guardian closes it again (prctl(2), PR_SET_DUMPABLE). A script could kill
the guardian, wait for the next guardian, and change the memory of that process in this short time. The memory of a fork
is closed from the start, because the memory of the server is closed.

A process may leave the session, lose its parent, remove its environment and close its memory. The guardian finds it by
its resource limit (``limit_mark.py``). The guardian cannot find a process that lowered this limit below the limits of
all commands of this server. It also cannot find a chain of forks outside the session, if each process of the chain
ends before the guardian reads about it in /proc.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import struct
import time
import warnings
from collections.abc import Callable
from typing import NoReturn

from ..system.proc import Process, environment_of, processes, signal_each
from ..system.spare_descriptor import spare

NAME = "watchdog-guard"  # as /proc/PID/comm shows it, 15 characters at most

_SLOTS = 1024
# Session (0 while it is not known yet), length of the mark, mark. A page that is never used takes no memory.
_SLOT = struct.Struct("=iH250s")
_LONGEST_MARK_BYTES = 250
# The last byte of the table: 1 as soon as the guardian has closed its copies of the server's descriptors.
_CLOSED_AT = _SLOTS * _SLOT.size
_MOST_FDS = (1 << 31) - 1
# The longest time for which the guardian searches for processes, and the pause between two searches, in seconds.
_PATIENCE_S = 5.0
_PAUSE_S = 0.01
# This number of searches in a row must find no process: one search may miss processes that fork and exit all the time.
_QUIET_SEARCHES = 3


class Guardian:
    """Starts and stops the guardian, and notes in shared memory which commands run.

    ``pid``: the guardian's pid; 0 while there is no guardian. ``is_alone``: the guardian certainly has no copies of the
    descriptors of this process; see :meth:`may_have_copies`.

    Args:
        has_limit: returns whether the process with a pid has the resource limit of a command. The server and the
            guardian may have it, too.
    """

    def __init__(self, has_limit: Callable[[int], bool]) -> None:
        self._has_limit = has_limit
        self.pid = 0
        self._pipe_fd = -1
        self._table: mmap.mmap | None = None
        self._free = list(range(_SLOTS))
        self.is_alone = True

    def start(self, running: list[tuple[bytes, int]]) -> list[int]:
        """Start the guardian, and return the slots of the commands that run already.

        Args:
            running: the mark and the session of each of these commands.

        Raises:
            OSError: the system has no process, descriptor or memory for the guardian.
        """
        self.is_alone = False
        table_fd = os.memfd_create("watchdog", os.MFD_CLOEXEC)
        try:
            os.ftruncate(table_fd, _CLOSED_AT + 1)
            self._table = mmap.mmap(table_fd, 0)
            self._free = list(range(_SLOTS))
            slots = []
            # The notes are made before the fork, because the server may be killed directly after it.
            for mark, session in running:
                slots.append(self.note(mark))
                self.note_session(slots[-1], session)
            self.pid, self._pipe_fd = _fork(self._table, self._has_limit)
        except BaseException:
            self._table = None
            raise
        finally:
            os.close(table_fd)
        return slots

    def may_have_copies(self) -> bool:
        """Return whether the guardian may have copies of this process's descriptors. It closes them after its start."""
        self.is_alone = self._table is None or self._table[_CLOSED_AT] == 1
        return not self.is_alone

    def note(self, mark: bytes) -> int:
        """Note a command that will start with this mark in its environment. Return its slot; -1 if none is free.

        A mark that is too long for a slot is not noted, because its beginning may also be the mark of another command.
        The guardian then finds the command only by its session and its limit.
        """
        if self._table is None or not self._free:
            return -1
        length = len(mark)
        if length > _LONGEST_MARK_BYTES:
            mark, length = b"", 0
        slot = self._free.pop()
        _SLOT.pack_into(self._table, slot * _SLOT.size, 0, length, mark)
        return slot

    def note_session(self, slot: int, session: int) -> None:
        """Note the session of a command that has started."""
        if self._table is not None and slot >= 0:
            struct.pack_into("=i", self._table, slot * _SLOT.size, session)

    def forget(self, slot: int) -> None:
        """Remove the note of a command that has ended with its whole tree."""
        if self._table is not None and slot >= 0:
            _SLOT.pack_into(self._table, slot * _SLOT.size, 0, 0, b"")
            self._free.append(slot)

    def exit_code(self) -> int | None:
        """Return the exit code of a dead guardian and forget the guardian; None while it lives.

        If a signal ended the guardian, the code is the negative number of the signal.
        """
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = self.pid, 0
        if not pid:
            return None
        self._forget_process()
        return os.waitstatus_to_exitcode(status)

    def resume(self) -> bool:
        """Let the guardian continue if a signal has stopped it. Return whether a signal had stopped it."""
        found = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG)
        if found is None:
            return False
        os.kill(self.pid, signal.SIGCONT)
        return True

    def stop(self) -> None:
        """End the guardian. Call this when no command runs any more."""
        if not self.pid:
            return
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        self._forget_process()

    def _forget_process(self) -> None:
        os.close(self._pipe_fd)
        self.pid, self._pipe_fd, self._table = 0, -1, None


def _fork(table: mmap.mmap, has_limit: Callable[[int], bool]) -> tuple[int, int]:
    """Start the guardian. Return its pid, and the writing end of the pipe, which only this process may have."""
    server = os.getpid()
    pipe_read, pipe_write = os.pipe()
    # If a signal arrived before the guardian ignores it, the server's handler would run in the guardian.
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns that a thread may hold a lock during a fork. The guardian uses no lock of the server.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _watch(pipe_read, table, has_limit, server)
    except BaseException:
        os.close(pipe_write)
        raise
    finally:
        os.close(pipe_read)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid, pipe_write


def _watch(pipe_fd: int, table: mmap.mmap, has_limit: Callable[[int], bool], server: int) -> NoReturn:
    """Run as the guardian: sleep until the server is gone, then end the commands that it ran."""
    exit_code = 1
    try:
        # Not /proc/self/comm: an ordinary user cannot open it in a process with closed memory.
        with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/comm", "w") as file:
            file.write(NAME)
        # A Ctrl-C, or a signal to the server's process group, does not reach the guardian after this.
        os.setsid()
        _close_all_but(pipe_fd)
        spare.keep_after_fork()
        table[_CLOSED_AT] = 1
        signal.set_wakeup_fd(-1)  # without this, the server's event loop would get signals to the guardian
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.chdir("/")
        os.read(pipe_fd, 1)
        _end_all(*_noted(table), has_limit, server)
        exit_code = 0
    finally:
        os._exit(exit_code)


def _close_all_but(fd: int) -> None:
    """Close the server's files and connections. A connection ends only when the guardian closes it, too."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.closerange(3, fd)
    os.closerange(fd + 1, _MOST_FDS)


def _noted(table: mmap.mmap) -> tuple[set[int], list[bytes]]:
    """Return the sessions and the marks of all commands that ran."""
    sessions, marks = set(), []
    for session, length, mark in _SLOT.iter_unpack(memoryview(table)[:_CLOSED_AT]):
        if session:
            sessions.add(session)
        if length:
            marks.append(mark[:length])
    return sessions, marks


def _end_all(sessions: set[int], marks: list[bytes], has_limit: Callable[[int], bool], server: int) -> None:
    """Kill all processes of these commands, until several searches in a row find none."""
    held: dict[tuple[int, int], Process] = {}
    quiet_searches = 0
    until_s = time.monotonic() + _PATIENCE_S
    while quiet_searches < _QUIET_SEARCHES and time.monotonic() < until_s:
        try:
            found = _belonging(sessions, marks, has_limit, server)
        except OSError:  # now the machine has no free descriptor or no memory to list the processes
            time.sleep(_PAUSE_S)
            continue
        new = {each.identity: each for each in found if each.identity not in held}
        # Stop all processes before the first one is killed: a process that dies makes room for forks of the others.
        signal_each(new.values(), signal.SIGSTOP)
        held |= new
        if not new:
            signal_each(held.values(), signal.SIGKILL)
            quiet_searches = quiet_searches + 1 if not found else 0
            time.sleep(_PAUSE_S)
    signal_each(held.values(), signal.SIGKILL)


def _has_one_of(marks: list[bytes], environment: bytes) -> bool:
    return any(mark in environment for mark in marks)


def _belonging(sessions: set[int], marks: list[bytes], has_limit: Callable[[int], bool], server: int) -> list[Process]:
    """Return the living processes that are in one of these sessions, or have one of these marks or the limit.

    The result also has their living descendants.

    Args:
        server: the pid of the server, which is left out although it has the limit of its last command. When the server
            is killed, the kernel first closes its files, and then gives its children another parent. Between these two
            moments, the other children of the server would otherwise count as descendants of a process
            with the limit.
    """
    table = {each.pid: each for each in processes() if each.pid not in (os.getpid(), server)}
    belonging: set[int] = set()
    for each in table.values():
        ancestors = []
        pid = each.pid
        while pid in table and pid not in belonging:
            ancestors.append(pid)
            if table[pid].session in sessions or has_limit(pid) or _has_one_of(marks, environment_of(pid)):
                break
            pid = table[pid].parent
        else:
            if pid not in belonging:
                continue
        belonging.update(ancestors)
    return [table[pid] for pid in belonging if table[pid].is_alive]
