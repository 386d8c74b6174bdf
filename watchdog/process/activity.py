"""Find out whether processes are working. Processes that a script left may continue as long as they work.

A process that waits for a processor is working, even if it got no CPU time since the last check: under a CPU quota, or
on a busy machine, the wait may be long. So the check reads the state of a process, and not only its CPU time.
``/proc/PID/stat`` counts CPU time in steps of 10 ms (proc(5)). Between two checks a process may run for less than one
step, and sleep again. So the check also compares the ``schedstat`` of each thread: its nanoseconds on a processor, and
how often it ran (the kernel's ``Documentation/scheduler/sched-stats.rst``). If the kernel has no such file, the check
uses ``stat`` alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..system import proc
from ..system.proc import Process

# R: the process can run. D: it waits for a disk, for swapped memory, or for a child that vfork(2) started.
_WORKING_STATES = "RD"

_ThreadSchedstat = tuple[int, bytes]


class Activity:
    """The work of some processes, compared from one check to the next."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], object] | None = None

    def check(self, processes: Iterable[Process]) -> bool:
        """Return whether any of these processes works now, or worked, started or ended since the last check."""
        seen: dict[tuple[int, int], object] = {}
        is_working = False
        for each in processes:
            threads = _threads(each)
            is_working = is_working or each.is_exiting or any(thread.state in _WORKING_STATES for thread in threads)
            seen[each.identity] = (each.cpu_ticks, [_schedstat(each.pid, thread.pid) for thread in threads])
        has_changed = self._seen is not None and seen != self._seen
        self._seen = seen
        return is_working or has_changed


def _threads(of: Process) -> list[Process]:
    """Return the threads of a process. The ``stat`` file of the process has only the state of its first thread."""
    if of.threads == 1:
        return [of]
    try:
        names = proc.names(f"{of.pid}/task")
    except OSError:
        return [of]
    found = (proc.process(int(name), f"{of.pid}/task/{name}") for name in names)
    return [thread for thread in found if thread is not None]


def _schedstat(pid: int, thread: int) -> _ThreadSchedstat:
    try:
        return thread, proc.content(f"{pid}/task/{thread}/schedstat")
    except OSError:
        return thread, b""
