"""Read the state of processes in ``/proc`` (proc(5)), and send signals that cannot reach a wrong process.

If no descriptor is free, the functions use the spare one (``spare_descriptor.py``). They raise ``OSError`` with a
number of ``NO_DESCRIPTOR`` only if another thread or process took that one, too.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from .files import NO_DESCRIPTOR
from .spare_descriptor import spare

_PF_EXITING = 0x4  # linux/sched.h
_PR_SET_DUMPABLE = 4  # linux/prctl.h
_Read = TypeVar("_Read", bytes, list[str])


class Process:
    """The state of one process at one time.

    Attributes:
        name: up to 15 bytes of the program's name, or the name that the process gave itself.
        started: the start time, in clock ticks after boot.
        state: one letter, ``Z`` for a zombie.
        cpu_ticks: user and system time, in clock ticks.
        is_exiting: the process runs no code of its own any more. Its environment is gone or soon will be. Its children
            get another parent only when it becomes a zombie.
        resident_pages: the number of its pages in memory, including shared pages.
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
        # The second field, the name, is in parentheses. It may contain any byte, even parentheses or spaces (proc(5)).
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
        """The pid and the start time. No other process has the same pair."""
        return self.pid, self.started

    @property
    def is_alive(self) -> bool:
        """Whether a thread of the process lives. If the first thread ended before others, the state shows a zombie."""
        return self.state not in "ZX" or self.threads > 1


def processes() -> Iterator[Process]:
    """Yield all processes that this process can see. Raises ``OSError`` if /proc cannot be listed."""
    for name in names(""):
        if name.isdigit() and (found := process(int(name))) is not None:
            yield found


def process(pid: int, place: str = "") -> Process | None:
    """Return one process; None if it is gone or hidden.

    Args:
        place: for a thread, the path of its directory below /proc.
    """
    try:
        return Process(pid, content(f"{place or pid}/stat"))
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # gone, or hidden by the mount option hidepid
        return None


def environment_of(pid: int) -> bytes:
    """Return the environment that a process was started with: each ``NAME=value`` with a NUL after it.

    The result is empty if it cannot be read.
    """
    for place in _places(pid):
        with _unless_hidden():
            if environment := content(f"{place}/environ"):
                return environment
    return b""


def own_peak_rss_bytes() -> int:
    """Return the peak memory of this program in bytes.

    ``getrusage`` returns a larger value if this process executed a larger program before: the kernel keeps the peak of
    that program (``exec_mmap`` in fs/exec.c). For example, pytest starts the server with vfork(2) in its own memory.
    """
    with contextlib.suppress(OSError):
        if (peak_rss_bytes := memory_bytes_in(content("self/status"), b"VmHWM")) is not None:
            return peak_rss_bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_bytes_in(status: bytes, name: bytes) -> int | None:
    """Return a size in bytes from the content of a file ``status``; None if the file does not show it.

    Args:
        name: ``VmRSS`` for the memory now, ``VmHWM`` for its peak.
    """
    _, found, rest = status.partition(b"\n%b:" % name)
    return int(rest.split(None, 1)[0]) * 1024 if found else None


def is_starting(pid: int) -> bool:
    """Return whether ``exec`` is replacing the memory of a process, which then shows no arguments or environment."""
    for place in _places(pid):
        with _unless_hidden():
            if content(f"{place}/cmdline"):
                return False
    return True


def open_files_of(pid: int) -> set[str]:
    """Return the open files of a process as /proc shows them: paths, and names such as ``pipe:[123]``.

    The set is empty if they cannot be read.
    """
    for place in _places(pid):
        found = set()
        with _unless_hidden():
            for name in names(f"{place}/fd"):
                with contextlib.suppress(OSError):
                    found.add(os.readlink(f"/proc/{place}/fd/{name}"))
        if found:
            return found
    return set()


def content(place: str) -> bytes:
    """Return the content of a file, given by its path below ``/proc``."""
    return _with_spare(_content, f"/proc/{place}")


def names(place: str) -> list[str]:
    """Return the names in a directory, given by its path below ``/proc``."""
    return _with_spare(os.listdir, f"/proc/{place}")


def _with_spare(read: Callable[[str], _Read], path: str) -> _Read:
    """Call a function that needs one descriptor, and call it again with the spare descriptor if no other is free."""
    try:
        return read(path)
    except OSError as error:
        if error.errno not in NO_DESCRIPTOR:
            raise
    with spare.lent():
        return read(path)


def _content(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


@contextlib.contextmanager
def _unless_hidden() -> Iterator[None]:
    """Ignore that a process is gone or hidden, but not that no descriptor is free to read about it."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_DESCRIPTOR:
            raise


def _places(pid: int) -> Iterator[str]:
    """Yield the directories of a process and its threads: if the first thread ended, only the others show files."""
    yield str(pid)
    with _unless_hidden():
        yield from (f"{pid}/task/{name}" for name in names(f"{pid}/task") if name != str(pid))


def hide_memory() -> bool:
    """Close this process's memory, descriptors and environment to other processes. Return whether this worked.

    A script runs as the same user. It could read all three in ``/proc``, or attach to this process with ptrace(2) and
    change it. After this, even root needs the capability CAP_SYS_PTRACE for that. ``exec`` opens them again, so a
    script is not affected. From now on the files of this process in ``/proc`` belong to root. An ordinary user, and so
    also this process, can open only those that everybody may open.
    """
    return prctl(_PR_SET_DUMPABLE, 0)


def open_own(name: str) -> int:
    """Open a file of this process in ``/proc`` for writing, also after :func:`hide_memory`; return the descriptor.

    Raises:
        OSError: the file cannot be opened, for instance because /proc is read-only.
    """
    flags = os.O_WRONLY | os.O_CLOEXEC
    try:
        return os.open(f"/proc/self/{name}", flags)
    except PermissionError:
        # The kernel checks the owner only when the file is opened.
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
    """Set a property of this process (prctl(2)). Return whether this was possible."""
    # Imported here and not at the top, because the import is slow.
    import ctypes

    try:
        return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def signal_each(processes: Iterable[Process], number: int, *, except_group: int = 0) -> None:
    """Send a signal to processes, except those of one process group.

    A process gets no signal if no descriptor is free to check that its pid still belongs to it.
    """
    for each in processes:
        with contextlib.suppress(OSError):
            # The process may have ended after the list was read, and another one may have its pid.
            found = process(each.pid)
            if found is not None and found.identity == each.identity and found.group != except_group:
                signal_one(each.pid, number)


def signal_one(pid: int, number: int) -> None:
    """Send a signal to a process, if it still exists and this process may do so. The caller has checked the pid."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def signal_name(number: int) -> str:
    """Return the name of a signal. The name of a real-time signal (signal(7)) is as in bash: ``SIGRTMIN+6``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN{number - signal.SIGRTMIN:+}"


def signal_number(name: str) -> int | None:
    """Return the number of the signal with this name, as in :func:`signal_name`. Return None if there is none."""
    return next((number for number in range(1, signal.NSIG) if signal_name(number) == name), None)
