"""The process that the kernel ends before the server."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from own_descriptors import free_descriptors
from running_server import until

from watchdog.process.decoy import Decoy
from watchdog.process.ended import Ended
from watchdog.process.supervisor import Supervisor
from watchdog.system import proc


@pytest.fixture
async def supervisor(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Supervisor]:
    """Return an object that needs a decoy, whatever the oom_score_adj of this process is."""
    monkeypatch.setattr("watchdog.process.decoy.why_needed", lambda: "for a test")
    monkeypatch.setattr("watchdog.system.cgroup.Cgroup.ends_all_at_once", lambda self: False)
    one = Supervisor()
    yield one
    one.close()


def run(supervisor: Supervisor, *command: str) -> asyncio.Task[Ended]:
    drop = bytearray().extend
    environment = {"PATH": os.environ["PATH"]}
    child = supervisor.start([*command], environment, mark=f"/mark/{command}", stdout=drop, stderr=drop)
    return asyncio.create_task(supervisor.until_ended(child))


async def commands(supervisor: Supervisor, count: int) -> None:
    while supervisor.running < count:
        await asyncio.sleep(0)


def decoy_of(supervisor: Supervisor) -> Decoy:
    return supervisor._decoy


def status_bytes(pid: int, field: str) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split(f"{field}:")[1].split()[0]) << 10


async def test_the_decoy_counts_as_large_and_takes_little(supervisor: Supervisor) -> None:
    pid = decoy_of(supervisor).pid
    until(lambda: status_bytes(pid, "VmRSS") >= 250 << 20, "the decoy to look large")
    assert status_bytes(pid, "RssAnon") < 16 << 20
    until(Path(f"/proc/{pid}/task/{pid}/children").read_text, "the twin")
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"


async def test_the_largest_command_ends_with_the_decoy(supervisor: Supervisor, tmp_path: Path) -> None:
    """The newest command ends with the decoy until the memory of all is known."""
    program = f"x = bytearray(50 << 20); open({str(tmp_path / 'up')!r}, 'w'); import time; time.sleep(300)"
    large = run(supervisor, sys.executable, "-I", "-S", "-c", program)
    await commands(supervisor, 1)
    small = run(supervisor, "/bin/sleep", "300")
    await commands(supervisor, 2)
    pids = [*supervisor._children]
    assert decoy_of(supervisor).aim == pids[1]
    until((tmp_path / "up").exists, "the memory of the first command")
    supervisor._decoy_keeper.aim()
    assert decoy_of(supervisor).aim == pids[0]
    os.kill(decoy_of(supervisor).pid, signal.SIGKILL)
    assert (await large).signal == "SIGKILL"
    assert not small.done()
    small.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await small


async def test_a_decoy_that_the_server_ends_takes_nothing_with_it(supervisor: Supervisor, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    task = run(supervisor, "/bin/cat", str(tmp_path / "fifo"))
    await commands(supervisor, 1)
    assert decoy_of(supervisor).aim
    decoy_of(supervisor).stop()
    await asyncio.to_thread((tmp_path / "fifo").write_bytes, b"")
    assert (await task).exit_code == 0


async def test_the_aim_is_gone_with_the_command(supervisor: Supervisor) -> None:
    assert (await run(supervisor, "/bin/true")).exit_code == 0
    assert decoy_of(supervisor).aim == 0


def test_the_decoy_is_gone_if_it_cannot_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError("no descriptor is free")

    before = children()
    monkeypatch.setattr(os, "pidfd_open", refuse)
    decoy = Decoy()
    with pytest.raises(OSError, match="no descriptor"):
        decoy.start()
    assert decoy.pid == 0
    assert children() == before


@pytest.mark.parametrize("free", range(7))
def test_a_start_without_enough_descriptors_leaves_none_open(free: int) -> None:
    decoy = Decoy()
    before = os.listdir("/proc/self/fd")
    with free_descriptors(free), pytest.raises(OSError) as caught:
        decoy.start()
    assert caught.value.errno == errno.EMFILE
    assert os.listdir("/proc/self/fd") == before
    assert decoy.pid == 0


async def test_a_server_without_a_known_executable_has_no_decoy(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoy_of(supervisor).stop()
    monkeypatch.setattr(sys, "executable", None)
    supervisor._decoy_keeper.start()
    assert decoy_of(supervisor).pid == 0


def children() -> list[int]:
    return [each.pid for each in proc.processes() if each.parent == os.getpid()]
