"""Make control groups for tests, in the version (1 or 2) of this machine."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_server import until

ControlGroup = Path
_serial = itertools.count()
_TOP = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def made_control_group(controller: str, limits: tuple[str, str], value: str) -> Iterator[ControlGroup]:
    """Make a group of one controller with one limit: the names of its file in versions 1 and 2, and its value."""
    name = f"watchdog-test-{os.getpid()}-{next(_serial)}"
    try:
        if (_TOP / controller).is_dir():
            group, limit = _TOP / controller / name, limits[0]
        else:
            (_TOP / "cgroup.subtree_control").write_text(f"+{controller}")
            group, limit = _TOP / name, limits[1]
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    (group / limit).write_text(value)
    yield group
    held: set[int] = set()
    until(lambda: _is_emptied(group, held), "the control group to be empty")
    group.rmdir()


def _is_emptied(group: ControlGroup, held: set[int]) -> bool:
    """End processes that survived because a guard was missing. Stop them first, because some fork all the time."""
    pids = set(members(group))
    new = pids - held
    _signal(new or pids, signal.SIGSTOP if new else signal.SIGKILL)
    held |= new
    return not pids


def _signal(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def members(group: ControlGroup) -> list[int]:
    return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]


def joining(group: ControlGroup) -> tuple[str, ...]:
    """Return the prefix of a command that must run in the group."""
    return ("/bin/sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
