"""List the processes, descriptors and threads of a server and its scripts."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from watchdog.system.threads import LISTINGS, METRICS, OUTPUTS, PROCESSES, REMOVALS, SEARCHES, Threads


def processes_with(*marks: bytes) -> list[int]:
    """Return the pids of living processes that have all of these marks in their environment."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            if all(mark in environment for mark in marks):
                found.append(int(pid))
    return found


def children(pid: int) -> list[str]:
    """Return the children of a process except its guardian, each as ``PID name state``. Dead ones are included."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{child}/stat").read_text()
                name, state = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2]
                if name != "watchdog-guard":
                    found.append(f"{child} {name} {state}")
    return found


def descriptors(pid: int) -> list[str]:
    """Return the names of the open files of a process."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


# The main thread, the thread of the log, and the largest number of threads in each group. A group starts a thread when
# all its other threads are busy.
_GROUPS = (LISTINGS, SEARCHES, OUTPUTS, REMOVALS, PROCESSES, METRICS, Threads("files"))
MOST_THREADS = 2 + sum(group.most for group in _GROUPS)


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def described(pid: int) -> str:
    """Return the pid with the command line of the process."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return f"{pid} ({b' '.join(words).decode(errors='replace').strip()[:100]})"
    return f"{pid} (gone by now)"
