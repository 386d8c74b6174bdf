"""Determine the peak memory of commands, if it is larger than the server's own.

A new process begins with the memory of the server, so its peak includes the memory of the server (``exec_mmap`` in the
kernel's fs/exec.c). So a peak that is not larger than the server's own peak says nothing about the command.
"""

from __future__ import annotations

import resource

from ..system import proc


class PeakMemory:
    """Compares the peak memory of commands with this server's own."""

    def __init__(self) -> None:
        self._own_bytes = 0  # the server's own peak, as it was last read

    def of_command(self, usage: resource.struct_rusage) -> int | None:
        """Return the peak memory of a command in bytes; None if it is not larger than the server's own peak."""
        peak_bytes = usage.ru_maxrss * 1024
        if peak_bytes > self._own_bytes:
            # The server's own peak may have grown. It never becomes smaller, so it is read again only in this case.
            self._own_bytes = proc.own_peak_rss_bytes()
        return peak_bytes if peak_bytes > self._own_bytes else None
