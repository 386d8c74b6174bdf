"""The peak memory of commands, as far as it can be known.

The kernel counts the memory of the process that forked into the peak of the process that was forked (``exec_mmap`` in
the kernel's fs/exec.c). So a peak that is smaller than this server's own peak cannot be known.
"""

from __future__ import annotations

import resource

from ..system import proc


class PeakMemory:
    """Compares the peak memory of commands with this server's own."""

    def __init__(self) -> None:
        # As it was when it was last read.
        self._own_bytes = 0

    def of_command(self, usage: resource.struct_rusage) -> int | None:
        """Return the peak memory of a command in bytes, or None if it is not above this server's own peak."""
        peak_bytes = usage.ru_maxrss * 1024
        if peak_bytes > self._own_bytes:
            # The server's own peak may have grown. It never becomes smaller, so other commands need no new look.
            self._own_bytes = proc.own_peak_rss_bytes()
        return peak_bytes if peak_bytes > self._own_bytes else None
