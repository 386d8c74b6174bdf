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

    ``stat`` is read only at the end of a call, because this takes longer than the other steps. So the children that end
    while the worker is idle count for its next call. ``status`` takes three times as long again. It is read only if the
    process had a page fault since the end of the last call, or if its memory is not the same as then. Without a page
    fault, memory only shrinks. So if it is the same as then, it was the same all the time. ``stat`` shows only whether
    the memory is the same: on Linux 6.18, its value can be wrong by dozens of pages for each CPU, and that of
    ``status`` is exact.

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
        # The numbers of minor and major page faults, and the memory in pages; empty if faults are not counted.
        self._memory_state: list[bytes] = []
        self._rss_bytes: int | None = None  # the memory at the end of the last call
        self.began_cpu_s = 0.0

    def begin(self) -> None:
        """Note the CPU time so far, and forget the peak so far."""
        self.began_cpu_s = self._own_cpu_s() + self._children_cpu_s
        try:
            os.pwrite(self._clear_fd, _RESET_PEAK, 0)
        except OSError:
            return  # then the peak of a call with a page fault is that of the whole life of the process

    def of_call(self) -> tuple[float, int | None]:
        """Return the CPU time since :meth:`begin`, and the peak memory in bytes, which is None if it cannot be read.

        The CPU time is that of the process and of the children for which it waited. The memory is that of the process.
        """
        memory_state = self._memory_state
        self.read_stat()
        cpu_s = max(0.0, self._own_cpu_s() + self._children_cpu_s - self.began_cpu_s)
        if memory_state and memory_state == self._memory_state and self._rss_bytes is not None:
            return cpu_s, self._rss_bytes
        try:
            status = os.pread(self._status_fd, _LARGEST_FILE_BYTES, 0)
        except OSError:
            status = b""
        self._rss_bytes = proc.memory_bytes_in(status, b"VmRSS")
        return cpu_s, proc.memory_bytes_in(status, b"VmHWM")

    def read_stat(self) -> None:
        """Read the CPU time of the children for which the process has waited so far, and the state of its memory."""
        try:
            stat = os.pread(self._stat_fd, _LARGEST_FILE_BYTES, 0)
        except OSError:
            self._memory_state = []
            return
        # The fields from the third on (proc(5), /proc/pid/stat).
        fields = stat[stat.rindex(b")") + 2 :].split(None, 22)
        self._children_cpu_s = (int(fields[13]) + int(fields[14])) / _TICKS_PER_S  # cutime, cstime
        faults = fields[7:10:2]  # minflt, majflt
        # Each process begins with page faults. gVisor does not count them, and shows 0 (fsimpl/proc/task_files.go).
        self._memory_state = [*faults, fields[21]] if faults != [b"0", b"0"] else []

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
