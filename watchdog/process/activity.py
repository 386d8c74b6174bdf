"""See whether processes work, because processes that a script left may go on as long as they do.

A process that waits for a processor is working, also if it got none since the last look: under a CPU quota, or on a
busy machine, it may wait for long. So its state is compared, and not only its CPU time. Between two looks a process may
also have run for less than the 10 ms that ``/proc/PID/stat`` counts (proc(5)), and gone to sleep again. So the
``schedstat`` of each thread is compared, too: its nanoseconds on a processor, and how often it was put on one (the
kernel's ``Documentation/scheduler/sched-stats.rst``). Where the kernel has no such file, ``stat`` alone is compared.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from ..system.proc import Process, process

# Runnable, or waiting for a disk, for memory to be read back, or for a child that vfork(2) started.
_WORKING_STATES = "RD"

_ThreadSpent = tuple[int, bytes]


class Activity:
    """What some processes have done, from one look to the next."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], object] | None = None

    def look(self, processes: Iterable[Process]) -> bool:
        """Return whether any of these processes works now, or worked, started or ended since the last look."""
        seen: dict[tuple[int, int], object] = {}
        is_working = False
        for each in processes:
            threads = _threads(each)
            is_working = is_working or each.is_exiting or any(thread.state in _WORKING_STATES for thread in threads)
            seen[each.identity] = (each.cpu_ticks, [_spent(each.pid, thread.pid) for thread in threads])
        has_changed = self._seen is not None and seen != self._seen
        self._seen = seen
        return is_working or has_changed


def _threads(of: Process) -> list[Process]:
    """Return the threads of a process; ``stat`` of the process itself has only the state of its first thread."""
    if of.threads == 1:
        return [of]
    try:
        names = os.listdir(f"/proc/{of.pid}/task")
    except OSError:
        return [of]
    found = (process(int(name), f"{of.pid}/task/{name}") for name in names)
    return [thread for thread in found if thread is not None]


def _spent(pid: int, thread: int) -> _ThreadSpent:
    try:
        with open(f"/proc/{pid}/task/{thread}/schedstat", "rb", buffering=0) as file:
            return thread, file.read(256)
    except OSError:
        return thread, b""
