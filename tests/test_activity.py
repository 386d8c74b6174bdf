"""Processes that work count as working, however little they do. Idle processes count as idle."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import IO

import pytest
from control_groups import joining, made_control_group
from running_server import until

from watchdog.process import activity
from watchdog.process.activity import Activity
from watchdog.system import proc

# The first thread of this process waits, and the second one copies.
COPYING_THREAD = """
import os, threading

def copy():
    while data := os.read(0, 100):
        os.write(1, data)

thread = threading.Thread(target=copy)
thread.start()
thread.join()
"""


@pytest.fixture(params=["one thread", "its second thread"])
def copier(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """A process that copies its input, and sleeps otherwise."""
    command = ["cat"] if request.param == "one thread" else [sys.executable, "-S", "-c", COPYING_THREAD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def check(seen: Activity, process: subprocess.Popen[bytes]) -> bool:
    found = proc.process(process.pid)
    return seen.check([] if found is None else [found])


def copy_a_byte(process: subprocess.Popen[bytes]) -> None:
    """Return when the process sleeps again."""
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None
    stdin.write(b"x")
    assert stdout.read(1) == b"x"
    until(lambda: all(thread.state == "S" for thread in threads(process)), "the process to sleep")


def threads(process: subprocess.Popen[bytes]) -> list[proc.Process]:
    found = proc.process(process.pid)
    assert found is not None
    return activity._threads(found)


def test_one_byte_that_was_copied_between_two_looks_is_work(copier: subprocess.Popen[bytes]) -> None:
    seen = Activity()
    copy_a_byte(copier)
    check(seen, copier)
    for _ in range(5):
        assert not check(seen, copier)
        copy_a_byte(copier)
        assert check(seen, copier)


def test_a_sleeping_process_is_idle_at_the_first_look(copier: subprocess.Popen[bytes]) -> None:
    copy_a_byte(copier)
    assert not check(Activity(), copier)


def test_a_process_that_came_or_went_is_work(copier: subprocess.Popen[bytes]) -> None:
    copy_a_byte(copier)
    seen = Activity()
    assert not seen.check([])
    assert check(seen, copier)
    assert not check(seen, copier)
    assert seen.check([])
    assert not seen.check([])


@pytest.mark.parametrize("states", [activity._WORKING_STATES, ""], ids=["states count", "only time counts"])
def test_a_process_that_waits_for_a_processor_works(states: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may run for one millisecond in a hundred, so at most checks it got no CPU time since the last check."""
    monkeypatch.setattr(activity, "_WORKING_STATES", states)
    command = ["/bin/sh", "-c", "echo; while :; do :; done"]
    with (
        made_control_group("cpu", ("cpu.cfs_quota_us", "cpu.max"), "1000") as group,
        subprocess.Popen([*joining(group), *command], stdout=subprocess.PIPE) as process,
    ):
        stdout: IO[bytes] | None = process.stdout
        assert stdout is not None
        stdout.readline()
        seen = Activity()
        looks = [check(seen, process) for _ in range(200)]
        process.kill()
    assert all(looks) is bool(states)
