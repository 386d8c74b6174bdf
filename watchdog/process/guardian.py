"""Keep a small process that ends the running scripts if the server is killed.

A server that is PID 1 needs no guardian: the kernel ends all processes of the container with it. Elsewhere
(``docker run --init``, an entry point that is a shell, a pod with a shared process namespace) scripts would outlive a
server that is ended by ``kill -9``, or by the kernel when memory runs out. A parent-death signal would reach only the
script, not the processes that it started, and posix_spawn cannot set one.

::

    server ── a pipe, of which it holds the only writing end ──► guardian: end of file means that the server is gone
           ── shared memory: the sessions that run, with their marks ──►

For an invocation the server only writes a few bytes into shared memory. The guardian sleeps in a read of the pipe.

The guardian is forked and executes no program. A script runs as the same user, and ``exec`` would make the guardian's
memory accessible to the script until the guardian closes it again (prctl(2), PR_SET_DUMPABLE). A script can kill the
guardian, wait for the next one, and change it in that time. A fork is closed from its start, because the server is.

A process that left the session, lost its parent, threw its environment away and closed its memory is found by its
resource limit (``limit_mark.py``). The guardian cannot find a process that lowered this limit below the limits of all
commands of this server, nor a chain of forks outside the session, each link of which ends before /proc is read.
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

NAME = "watchdog-guard"  # as /proc/PID/comm shows it, 15 characters at most

_SLOTS = 1024
# Session (0 while it is not known yet), length of the mark, mark. A page that is never used takes no memory.
_SLOT = struct.Struct("=iH250s")
_LONGEST_MARK_BYTES = 250
_MOST_FDS = (1 << 31) - 1
_PATIENCE_S = 5.0
_PAUSE_S = 0.01
_QUIET_LOOKS = 3


class Guardian:
    """The server's end of it. ``pid``: of the guardian; 0 while there is none.

    Args:
        has_limit: whether the process with a pid has the resource limit of a command. The guardian itself may have it.
    """

    def __init__(self, has_limit: Callable[[int], bool]) -> None:
        self._has_limit = has_limit
        self.pid = 0
        self._pipe_fd = -1
        self._table: mmap.mmap | None = None
        self._free = list(range(_SLOTS))

    def start(self, running: list[tuple[bytes, int]]) -> list[int]:
        """Start it, and return the slots of what runs already, given as marks and sessions.

        Raises:
            OSError: no process, descriptor or memory can be had for it.
        """
        table_fd = os.memfd_create("watchdog", os.MFD_CLOEXEC)
        try:
            os.ftruncate(table_fd, _SLOTS * _SLOT.size)
            self._table = mmap.mmap(table_fd, 0)
            self._free = list(range(_SLOTS))
            slots = []
            # Before it is there: the server may be killed in the very moment in which it is.
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

    def note(self, mark: bytes) -> int:
        """A command is about to start with this in its environment; returns its slot, -1 if none is free.

        Of a mark that is too long for a slot nothing is noted: a part of it could be another's. The session has to do.
        """
        if self._table is None or not self._free:
            return -1
        if len(mark) > _LONGEST_MARK_BYTES:
            mark = b""
        slot = self._free.pop()
        _SLOT.pack_into(self._table, slot * _SLOT.size, 0, len(mark), mark)
        return slot

    def note_session(self, slot: int, session: int) -> None:
        """It has started."""
        if self._table is not None and slot >= 0:
            struct.pack_into("=i", self._table, slot * _SLOT.size, session)

    def forget(self, slot: int) -> None:
        """It has ended, and so has its tree."""
        if self._table is not None and slot >= 0:
            _SLOT.pack_into(self._table, slot * _SLOT.size, 0, 0, b"")
            self._free.append(slot)

    def exit_code(self) -> int | None:
        """Return how it died, a signal as a negative number, and forget it; None while it lives."""
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = self.pid, 0
        if not pid:
            return None
        self._forget_process()
        return os.waitstatus_to_exitcode(status)

    def resume(self) -> bool:
        """Let it go on if a signal has stopped it; return whether one had."""
        found = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG)
        if found is None:
            return False
        os.kill(self.pid, signal.SIGCONT)
        return True

    def stop(self) -> None:
        """End it: nothing runs any more."""
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
    """Start the process; return its pid, and the end of the pipe that only this process may have."""
    pipe_read, pipe_write = os.pipe()
    # A signal that comes before the guardian ignores it would run the server's handler in the guardian.
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns that a thread may hold a lock during a fork. The guardian uses no lock of the server.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _watch(pipe_read, table, has_limit)
    except BaseException:
        os.close(pipe_write)
        raise
    finally:
        os.close(pipe_read)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid, pipe_write


def _watch(pipe_fd: int, table: mmap.mmap, has_limit: Callable[[int], bool]) -> NoReturn:
    """Be the guardian: sleep until the server is gone, then end what it ran."""
    exit_code = 1
    try:
        # Not /proc/self/comm: an ordinary user cannot open it in a process with closed memory.
        with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/comm", "w") as file:
            file.write(NAME)
        # Out of reach of a Ctrl-C, and of a signal to the server's group.
        os.setsid()
        _close_all_but(pipe_fd)
        signal.set_wakeup_fd(-1)  # or signals to the guardian would arrive at the server's event loop
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.chdir("/")
        os.read(pipe_fd, 1)
        _end_all(*_noted(table), has_limit)
        exit_code = 0
    finally:
        os._exit(exit_code)


def _close_all_but(fd: int) -> None:
    """Close the server's files and connections: their other ends would wait for the guardian, too."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.closerange(3, fd)
    os.closerange(fd + 1, _MOST_FDS)


def _noted(table: mmap.mmap) -> tuple[set[int], list[bytes]]:
    """The sessions and the marks of all that ran."""
    sessions, marks = set(), []
    for session, length, mark in _SLOT.iter_unpack(table):
        if session:
            sessions.add(session)
        if length:
            marks.append(mark[:length])
    return sessions, marks


def _end_all(sessions: set[int], marks: list[bytes], has_limit: Callable[[int], bool]) -> None:
    held: dict[tuple[int, int], Process] = {}
    quiet_looks = 0
    until_s = time.monotonic() + _PATIENCE_S
    while quiet_looks < _QUIET_LOOKS and time.monotonic() < until_s:
        found = _belonging(sessions, marks, has_limit)
        new = {each.identity: each for each in found if each.identity not in held}
        # First all are held still, then they die: who dies at once makes room for what others fork.
        signal_each(new.values(), signal.SIGSTOP)
        held |= new
        if not new:
            signal_each(held.values(), signal.SIGKILL)
            quiet_looks = quiet_looks + 1 if not found else 0
            time.sleep(_PAUSE_S)
    signal_each(held.values(), signal.SIGKILL)


def _has_one_of(marks: list[bytes], environment: bytes) -> bool:
    return any(mark in environment for mark in marks)


def _belonging(sessions: set[int], marks: list[bytes], has_limit: Callable[[int], bool]) -> list[Process]:
    """Return the living processes of these sessions, or with one of these marks or the limit, and their descendants."""
    table = {each.pid: each for each in processes() if each.pid != os.getpid()}
    ours: set[int] = set()
    for each in table.values():
        way = []
        pid = each.pid
        while pid in table and pid not in ours:
            way.append(pid)
            if table[pid].session in sessions or has_limit(pid) or _has_one_of(marks, environment_of(pid)):
                break
            pid = table[pid].parent
        else:
            if pid not in ours:
                continue
        ours.update(way)
    return [table[pid] for pid in ours if table[pid].is_alive]
