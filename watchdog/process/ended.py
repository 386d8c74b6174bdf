"""Describe how a command ended."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Mapping

import msgspec

from ..system import proc

_KILLED_CHILD = 128 + signal.SIGKILL  # the exit code of a shell whose last child was killed


class Ended(msgspec.Struct, frozen=True):
    """How a command ended.

    Attributes:
        exit_code: the exit code; None if a signal ended the command.
        signal: the name of the signal that ended the command; None if it exited.
        timed_out: the time of the command was over, so the server ended the command. Also true if the command had
            exited and a process that it had started was still working.
        ended_early: :meth:`Supervisor.end_all` ended the command.
        duration_s: the time until the command had ended. It includes the time in which processes that the command left
            could finish.
        cpu_s: user and system time of the command and of the children that it waited for.
        peak_rss_bytes: the memory of its largest process; None if it is not known (see :class:`PeakMemory`).
        survivors: the number of processes that even SIGKILL did not end.
        is_tree_gone: it is certain that no process of the command lives any more. This is never certain if orphans do
            not become children of this server.
        left: the processes that the command left when it exited by itself, and that had to be ended. For each name, the
            value is the number of these processes.
        were_working: these processes still worked when ``linger_timeout_s`` was over. The output may lack their last
            bytes.
        served_before: the number of calls that the worker of a warm function had served before; None if the command ran
            for one call only.
        broken: how a worker broke the protocol, else None. If the protocol was broken, it is not known whether the call
            succeeded.
    """

    exit_code: int | None
    signal: str | None
    timed_out: bool
    ended_early: bool
    duration_s: float
    cpu_s: float
    peak_rss_bytes: int | None
    survivors: int
    is_tree_gone: bool
    left: Mapping[str, int] = {}
    were_working: bool = False
    served_before: int | None = None
    broken: str | None = None

    @property
    def was_killed(self) -> bool:
        """Whether SIGKILL ended the command or the last child of its shell, and the server did not send it."""
        by_us = self.timed_out or self.ended_early
        return not by_us and (self.signal == "SIGKILL" or self.exit_code == _KILLED_CHILD)


def ended(
    status: int,
    usage: resource.struct_rusage,
    *,
    peak_rss_bytes: int | None,
    duration_s: float,
    timed_out: bool = False,
    ended_early: bool = False,
    survivors: int = 0,
    is_tree_gone: bool,
    left: Mapping[str, int] | None = None,
    were_working: bool = False,
) -> Ended:
    """Return how a command ended, from the status and the usage that wait4(2) returned."""
    code = os.waitstatus_to_exitcode(status)
    return Ended(
        exit_code=code if code >= 0 else None,
        signal=proc.signal_name(-code) if code < 0 else None,
        timed_out=timed_out,
        ended_early=ended_early,
        duration_s=duration_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_rss_bytes=peak_rss_bytes,
        survivors=survivors,
        is_tree_gone=is_tree_gone,
        left=left or {},
        were_working=were_working,
    )
