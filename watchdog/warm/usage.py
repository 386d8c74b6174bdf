"""Measure the CPU time and the peak memory of a worker during one call."""

from __future__ import annotations

import os
import time

from ..system import proc

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_LARGEST_FILE_BYTES = 4096
_CPUCLOCK_SCHED = 2  # linux/posix-timers.h
_RESET_PEAK = b"5"  # proc(5), /proc/pid/clear_refs


class Usage:
    """Reads the usage of one process from files in ``/proc`` that stay open. A value that cannot be read is left out.

    The time of the children is read only at the end of a call, because this takes longer than the other steps. So the
    children that end while the worker is idle count for its next call.

    Args:
        pid: a child of this process that is not reaped before :meth:`close`.

    Attributes:
        began_cpu_s: the CPU time at the last :meth:`begin`.
    """

    def __init__(self, pid: int) -> None:
        # The clock of all threads of the process, in nanoseconds: clock_getcpuclockid(3), which Python does not have.
        # The times in /proc are in units of 10 ms, which is longer than many calls.
        self._clock = ~pid << 3 | _CPUCLOCK_SCHED
        self._stat_fd = _opened(f"/proc/{pid}/stat", os.O_RDONLY)
        self._status_fd = _opened(f"/proc/{pid}/status", os.O_RDONLY)
        self._clear_fd = _opened(f"/proc/{pid}/clear_refs", os.O_WRONLY)
        self._children_cpu_s = 0.0
        self.began_cpu_s = 0.0

    def begin(self) -> None:
        """Note the CPU time so far, and forget the peak so far."""
        self.began_cpu_s = self._own_cpu_s() + self._children_cpu_s
        try:
            os.pwrite(self._clear_fd, _RESET_PEAK, 0)
        except OSError:
            return  # then the peak is that of the whole life of the process

    def note_children(self) -> None:
        """Read the CPU time of the children for which the process has waited so far."""
        try:
            stat = os.pread(self._stat_fd, _LARGEST_FILE_BYTES, 0)
        except OSError:
            return
        # cutime and cstime, counted from the end of the name (proc(5), /proc/pid/stat).
        self._children_cpu_s = sum(map(int, stat[stat.rindex(b")") + 2 :].split()[13:15])) / _TICKS_PER_S

    def cpu_s(self) -> float:
        """Return the CPU time since :meth:`begin`, of the process and of the children for which it waited."""
        self.note_children()
        return max(0.0, self._own_cpu_s() + self._children_cpu_s - self.began_cpu_s)

    def peak_rss_bytes(self) -> int | None:
        """Return the peak memory of the process since :meth:`begin`; None if it cannot be read."""
        try:
            return proc.peak_rss_bytes_in(os.pread(self._status_fd, _LARGEST_FILE_BYTES, 0))
        except OSError:
            return None

    def close(self) -> None:
        """Close the files."""
        for fd in (self._stat_fd, self._status_fd, self._clear_fd):
            if fd >= 0:
                os.close(fd)
        self._stat_fd = self._status_fd = self._clear_fd = -1

    def _own_cpu_s(self) -> float:
        try:
            return time.clock_gettime(self._clock)
        except OSError:
            return 0.0


def _opened(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError:
        return -1
