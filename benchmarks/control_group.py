"""Make a control group that limits processor time. The machine may have version 1 or 2 of control groups."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from contenders import PATIENCE_S

_TOP = Path("/sys/fs/cgroup")
# The kernel's default, which Kubernetes uses, too. A group that has used its share waits for the next period.
PERIOD_S = 0.1


class NoControlGroup(Exception):
    """No control group can be made here; the message says why."""


@contextlib.contextmanager
def limited_to(cpus: float) -> Iterator[tuple[str, ...]]:
    """Make a group, and remove it at the end. Yield words: a command after these words starts in the group.

    Raises:
        NoControlGroup: this user must not make one, or the kernel has no such groups.
    """
    quota_us, period_us = round(cpus * PERIOD_S * 1e6), round(PERIOD_S * 1e6)
    is_version_1 = (_TOP / "cpu").is_dir()
    group = (_TOP / "cpu" if is_version_1 else _TOP) / f"watchdog-bench-{os.getpid()}"
    try:
        if not is_version_1:
            (_TOP / "cgroup.subtree_control").write_text("+cpu")
        group.mkdir()
    except OSError as error:
        raise NoControlGroup(f"no control group can be made: {error}") from error
    try:
        if is_version_1:
            (group / "cpu.cfs_period_us").write_text(str(period_us))
            (group / "cpu.cfs_quota_us").write_text(str(quota_us))
        else:
            (group / "cpu.max").write_text(f"{quota_us} {period_us}")
        yield ("/bin/sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
    finally:
        _empty(group)
        group.rmdir()


def wait_for_share() -> None:
    """Wait until the group may use processor time again, whatever it has used before."""
    time.sleep(2 * PERIOD_S)


def _empty(group: Path) -> None:
    """Wait until all processes of the group have ended. Kill those that a stopped server has left."""
    deadline = time.monotonic() + PATIENCE_S
    while (pids := (group / "cgroup.procs").read_text().split()) and time.monotonic() < deadline:
        time.sleep(PERIOD_S)
        for pid in set(pids) & set((group / "cgroup.procs").read_text().split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
