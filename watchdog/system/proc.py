"""Read about processes in ``/proc`` (proc(5)), and send signals that cannot reach another process."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Iterable, Iterator

_PF_EXITING = 0x4  # linux/sched.h
_PR_SET_DUMPABLE = 4  # linux/prctl.h


class Process:
    """One process at the moment of reading.

    ``name``: up to 15 bytes of the program's name, or what it calls itself. ``started``: in clock ticks after boot.
    ``state``: one letter, ``Z`` for a zombie. ``cpu_ticks``: user and system time,
    in clock ticks. ``is_exiting``: it runs no code of its own any more; its environment is gone, or soon will be, and
    until it is a zombie, its children are still its own. ``resident_pages``: of its memory, shared ones too.
    """

    __slots__ = (
        "cpu_ticks",
        "group",
        "is_exiting",
        "name",
        "parent",
        "pid",
        "resident_pages",
        "session",
        "started",
        "state",
        "threads",
    )

    def __init__(self, pid: int, stat: bytes) -> None:
        # The name, second, is in parentheses and may hold any byte, parentheses and spaces too (proc(5)).
        end_of_name = stat.rindex(b")")
        fields = stat[end_of_name + 2 :].split()
        self.pid = pid
        self.name = stat[stat.index(b"(") + 1 : end_of_name].decode("utf-8", "backslashreplace")
        self.state = fields[0].decode()
        self.parent = int(fields[1])
        self.group = int(fields[2])
        self.session = int(fields[3])
        self.is_exiting = bool(int(fields[6]) & _PF_EXITING)
        self.cpu_ticks = int(fields[11]) + int(fields[12])
        self.threads = int(fields[17])
        self.started = int(fields[19])
        self.resident_pages = int(fields[21])

    @property
    def identity(self) -> tuple[int, int]:
        """The pid and the start time: no other process ever has both."""
        return self.pid, self.started

    @property
    def is_alive(self) -> bool:
        """Whether any thread of it lives: the first thread may have ended before the others, and is a zombie then."""
        return self.state not in "ZX" or self.threads > 1


def processes() -> Iterator[Process]:
    """All that can be seen. Raises ``OSError`` if /proc cannot be listed."""
    for name in os.listdir("/proc"):
        if name.isdigit() and (found := process(int(name))) is not None:
            yield found


def process(pid: int, place: str = "") -> Process | None:
    """One process, or None if it is gone. ``place``: of its directory below /proc, for a thread."""
    try:
        with open(f"/proc/{place or pid}/stat", "rb", buffering=0) as file:
            return Process(pid, file.read())
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # hidepid, or another user's
        return None


def environment_of(pid: int) -> bytes:
    """The environment that it was started with, ``NAME=value`` each ended by a NUL; nothing if that cannot be read."""
    for place in _places(pid):
        with contextlib.suppress(OSError), open(f"{place}/environ", "rb") as file:
            if environment := file.read():
                return environment
    return b""


def own_peak_rss_bytes() -> int:
    """Return the peak memory of this program.

    ``getrusage`` would return more if this process executed a larger program before: the kernel keeps that program's
    peak (``exec_mmap`` in fs/exec.c). A process of pytest, for one, starts the server in its own memory (vfork(2)).
    """
    with contextlib.suppress(OSError), open("/proc/self/status", "rb", buffering=0) as file:
        _, found, rest = file.read().partition(b"\nVmHWM:")
        if found:
            return int(rest.split(None, 1)[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def is_starting(pid: int) -> bool:
    """Whether ``exec`` is replacing the memory of a living process: it has no arguments and no environment then."""
    for place in _places(pid):
        with contextlib.suppress(OSError), open(f"{place}/cmdline", "rb") as file:
            if file.read(1):
                return False
    return True


def open_files_of(pid: int) -> set[str]:
    """Return what its descriptors refer to, as /proc shows it: a path, ``pipe:[123]``; nothing if unreadable."""
    for place in _places(pid):
        found = set()
        with contextlib.suppress(OSError), os.scandir(f"{place}/fd") as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    found.add(os.readlink(entry.path))
        if found:
            return found
    return set()


def _places(pid: int) -> Iterator[str]:
    """Yield the /proc paths of a process and its threads: a first thread that ended shows no memory or files."""
    yield f"/proc/{pid}"
    with contextlib.suppress(OSError):
        yield from (f"/proc/{pid}/task/{name}" for name in os.listdir(f"/proc/{pid}/task") if name != str(pid))


def hide_memory() -> bool:
    """Close this process's memory, descriptors and first environment to other processes; return whether that worked.

    A script runs as the same user: it could read all three in ``/proc``, attach to this process with ptrace(2) and
    change what it does. Root can do so only with the capability to trace (CAP_SYS_PTRACE). ``exec`` opens them again,
    so a script is not affected. From now on the files of this process in ``/proc`` belong to root: those that are
    not for everybody can no longer be opened by an ordinary user, this process included.
    """
    return prctl(_PR_SET_DUMPABLE, 0)


def open_own(name: str) -> int:
    """Open a file of this process in ``/proc`` for writing, also after :func:`hide_memory`; return the descriptor.

    Raises:
        OSError: it cannot be opened, for instance because /proc is read-only.
    """
    flags = os.O_WRONLY | os.O_CLOEXEC
    try:
        return os.open(f"/proc/self/{name}", flags)
    except PermissionError:
        # The kernel asks whose file it is at the opening only.
        prctl(_PR_SET_DUMPABLE, 1)
        try:
            return os.open(f"/proc/self/{name}", flags)
        finally:
            hide_memory()


def descriptor_limit() -> int:
    """Return how many descriptors this process may have open (``ulimit -n``)."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if limit == resource.RLIM_INFINITY else limit


def prctl(option: int, value: int) -> bool:
    """Set a property of this process (prctl(2)); whether that was possible."""
    # Not at the top: it is slow to import.
    import ctypes

    try:
        return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def signal_each(processes: Iterable[Process], number: int, *, except_group: int = 0) -> None:
    """Signal processes, except those of one process group."""
    for each in processes:
        # The pid may belong to another process since the list was read.
        found = process(each.pid)
        if found is not None and found.identity == each.identity and found.group != except_group:
            signal_one(each.pid, number)


def signal_one(pid: int, number: int) -> None:
    """Signal a process that is known to be the right one, if it is still there and ours to signal."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def signal_name(number: int) -> str:
    """Return the name of a signal; of a real-time signal (signal(7)) as bash shows it, ``SIGRTMIN+6``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN{number - signal.SIGRTMIN:+}"


def signal_number(name: str) -> int:
    """Return the number of a signal that :func:`signal_name` has named."""
    return next(number for number in range(1, signal.NSIG) if signal_name(number) == name)
