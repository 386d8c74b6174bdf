"""What the kernel tells of processes in ``/proc`` (proc(5)), and signals that cannot meet a stranger."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

_PF_EXITING = 0x4  # linux/sched.h


class Process:
    """One process at the moment of reading.

    ``started``: in clock ticks after boot; with it, a pid names one process for ever. ``state``: one letter, ``Z`` for
    a zombie. ``is_exiting``: it runs no code of its own any more; its environment is gone, or soon will be, and until
    it is a zombie, its children are still its own.
    """

    __slots__ = ("group", "is_exiting", "parent", "pid", "session", "started", "state")

    def __init__(
        self, pid: int, parent: int, group: int, session: int, state: str, started: int, *, is_exiting: bool = False
    ) -> None:
        self.pid = pid
        self.parent = parent
        self.group = group
        self.session = session
        self.state = state
        self.started = started
        self.is_exiting = is_exiting

    @property
    def is_alive(self) -> bool:
        return self.state not in "ZX"


def processes() -> Iterator[Process]:
    """All that can be seen. Raises ``OSError`` if /proc cannot be listed."""
    for name in os.listdir("/proc"):
        if name.isdigit() and (found := process(int(name))) is not None:
            yield found


def process(pid: int) -> Process | None:
    """One process, or None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # hidepid, or another user's
        return None
    # The name, second, is in parentheses and may hold any byte, parentheses and spaces too (proc(5)).
    fields = text[text.rindex(b")") + 2 :].split()
    return Process(
        pid,
        int(fields[1]),
        int(fields[2]),
        int(fields[3]),
        fields[0].decode(),
        int(fields[19]),
        is_exiting=bool(int(fields[6]) & _PF_EXITING),
    )


def environment_of(pid: int) -> bytes:
    """The environment that it was started with, ``NAME=value`` each ended by a NUL; nothing if that cannot be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read()
    except OSError:
        return b""


def prctl(option: int, value: int) -> bool:
    """Set a property of this process (prctl(2)); whether that was possible."""
    # Not at the top: the guardian needs none of it, and it is slow to import.
    import ctypes

    try:
        return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def signal_each(started_by_pid: Mapping[int, int], number: int, *, except_group: int = 0) -> None:
    """Signal processes, given as pids with their start times, except those of one process group."""
    for pid, started in started_by_pid.items():
        # Between the listing and now the pid may have become somebody else's.
        found = process(pid)
        if found is not None and found.started == started and found.group != except_group:
            signal_one(pid, number)


def signal_one(pid: int, number: int) -> None:
    """Signal a process that is known to be the right one, if it is still there and ours to signal."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return
