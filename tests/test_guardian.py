"""The processes that the guardian ends when the server was killed."""

from __future__ import annotations

import errno
import signal
import subprocess
from collections.abc import Iterator

import pytest

from watchdog.process import guardian
from watchdog.system import proc


@pytest.fixture
def server_and_daemon() -> Iterator[tuple[int, int]]:
    """Return the pids of a process and of its child, like those of a server and a daemon of its entry point."""
    with subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        daemon = int(process.stdout.readline())
        yield process.pid, daemon
        for pid in (daemon, process.pid):
            subprocess.run(["kill", "-KILL", str(pid)], check=True)


def test_other_children_of_the_server_do_not_belong_to_a_script(server_and_daemon: tuple[int, int]) -> None:
    """The server has the limit of its last command, and may still be their parent when the guardian looks."""
    server, daemon = server_and_daemon

    def belonging(known_server: int) -> set[int]:
        found = guardian._belonging(set(), [], lambda pid: pid == server, known_server)
        return {each.pid for each in found}

    assert belonging(server).isdisjoint({server, daemon})
    assert belonging(known_server=0) >= {server, daemon}, "the test proves nothing"


def test_a_child_of_the_server_with_the_limit_belongs_to_a_script(server_and_daemon: tuple[int, int]) -> None:
    server, daemon = server_and_daemon
    found = guardian._belonging(set(), [], lambda pid: pid in (server, daemon), server)
    assert {each.pid for each in found} == {daemon}


def test_what_could_not_be_listed_at_first_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a moment the machine has no free descriptor."""
    listed = proc.processes
    faults = [OSError(errno.ENFILE, "Too many open files in system")]

    def processes() -> Iterator[proc.Process]:
        if faults:
            raise faults.pop()
        return listed()

    monkeypatch.setattr(guardian, "processes", processes)
    with subprocess.Popen(["sleep", "600"]) as process:
        guardian._end_all(set(), [], lambda pid: pid == process.pid, 0)
        assert process.wait() == -signal.SIGKILL
    assert not faults
