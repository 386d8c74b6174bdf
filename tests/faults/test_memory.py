"""Memory runs out in a container in which scripts cannot have a higher oom_score_adj than the server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from control_groups import ControlGroup, joining, made_control_group
from live_call import LiveCall
from running_server import WITHOUT_PRIVILEGES, RunningServer, StartServer, arguments_of, problem, until

from watchdog.process import decoy

pytestmark = pytest.mark.executed

# The oom_score_adj that the kubelet gives to a container of a Burstable pod with a small request.
BURSTABLE = ("/bin/sh", "-c", 'echo 990 > /proc/self/oom_score_adj && exec "$@"', "sh")
# 60 processes of 5 MiB at the same time, each of them smaller than the server. They wait until they are killed, so none
# gives its memory back before the last one has started, however long that takes.
MANY_SMALL = "for i in $(seq 60); do (head -c 4M /dev/zero; sleep 1000) | tail -c 5000000 >/dev/null & done; wait"


@pytest.fixture
def little_memory() -> Iterator[ControlGroup]:
    with made_control_group("memory", ("memory.limit_in_bytes", "memory.max"), str(160 << 20)) as group:
        yield group


@pytest.fixture
def as_burstable(little_memory: ControlGroup) -> tuple[str, ...]:
    """The prefix of a command that runs as in a Burstable pod."""
    return (*joining(little_memory), *BURSTABLE)


def all_decoys(server: RunningServer) -> list[int]:
    pid = server.process.pid
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [child for child in children if decoy.__name__.encode() in arguments_of(child)]


def decoys(server: RunningServer) -> list[int]:
    """Return the decoys that the kernel already counts as large."""
    return [pid for pid in all_decoys(server) if counted_bytes(pid) >= 200 << 20]


def counted_bytes(pid: int) -> int:
    """Return the memory that the kernel counts for a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# Slow tests run one after the other. Beside other tests, the kernel may choose once more before the processes of the
# script have ended.
@pytest.mark.slow
@pytest.mark.guard("decoy")
@pytest.mark.parametrize("is_classic", [False, True], ids=["script", "classic"])
def test_many_small_processes_of_a_script_do_not_cost_the_server(
    start_server: StartServer,
    as_burstable: tuple[str, ...],
    tmp_path: Path,
    removed_guard: str | None,
    is_classic: bool,
) -> None:
    (tmp_path / "function.sh").write_text(MANY_SMALL)
    fprocess = {"fprocess": f"/bin/sh {tmp_path}/function.sh"} if is_classic else {}
    server = start_server(MANY_SMALL, prefix=as_burstable, **fprocess)
    if removed_guard is None:  # without the guard there is no decoy, and the call must fail
        until(lambda: decoys(server), "the decoy")
    answer = problem(server.call(b""), 500)
    assert "out of memory" in str(answer["detail"])
    assert answer["signal"] == "SIGKILL"
    server.event("invocation ended", outcome="out_of_memory")
    assert server.call(None, "/_/health", "GET").status == 200
    if not is_classic:
        server.script.write_text("echo fine")
        assert server.call(b"").body == b"fine\n"


def test_verdict_of_a_live_call_says_that_memory_ran_out(
    start_server: StartServer, little_memory: ControlGroup
) -> None:
    script = f"echo here; exec {sys.executable} -c 'bytearray(400 << 20)'"
    server = start_server(script, prefix=joining(little_memory))
    with LiveCall(server.port) as call:
        assert call.next("log").data["text"] == "here"
        verdict = call.rest()[-1].data
    assert (verdict["status"], verdict["outcome"]) == (500, "out_of_memory")
    assert verdict["error"]["out_of_memory"] is True
    server.kill()


def test_a_server_that_may_be_ended_in_place_of_a_script_warns(
    start_server: StartServer, as_burstable: tuple[str, ...], tmp_path: Path
) -> None:
    server = start_server("echo hi", prefix=as_burstable)
    (warning,) = [event["event"] for event in server.logs if "oom_score_adj is 990, and" in event["event"]]
    checked = subprocess.run(
        [*as_burstable, sys.executable, "-m", "watchdog", "check"],
        env={"WATCHDOG_SCRIPT_PATH": str(server.script), "WATCHDOG_TMP_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout
    assert warning in checked.stdout


def test_there_is_no_decoy_where_scripts_can_be_preferred(
    start_server: StartServer, little_memory: ControlGroup
) -> None:
    server = start_server("echo hi", prefix=joining(little_memory))
    assert server.call(b"").body == b"hi\n"
    assert all_decoys(server) == []
    assert not [event for event in server.logs if "oom_score_adj" in event["event"]]


def test_a_call_does_not_find_the_decoy_among_its_processes(
    start_server: StartServer, as_burstable: tuple[str, ...]
) -> None:
    """A process that a script leaves is ended, and nothing else is."""
    server = start_server("setsid env -i sleep 60 & echo hi", prefix=as_burstable)
    until(lambda: decoys(server), "the decoy")
    before = decoys(server)
    for _ in range(3):
        assert server.call(b"").body == b"hi\n"
    assert decoys(server) == before


ATTACH = """
import ctypes, os, sys
try:
    open(f"/proc/{sys.argv[1]}/mem", "r+b")
    print("opened the memory")
except PermissionError:
    pass
if ctypes.CDLL(None).ptrace(0x4206, int(sys.argv[1]), 0, 0) == 0:  # PTRACE_SEIZE
    print("attached")
"""


@pytest.mark.guard("hidden-decoy")
def test_script_cannot_change_the_decoy(
    start_server: StartServer, as_burstable: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "attach.py").write_text(ATTACH)
    server = start_server("", prefix=(*as_burstable, *WITHOUT_PRIVILEGES))
    until(lambda: decoys(server), "the decoy")
    (pid,) = decoys(server)
    server.script.write_text(f"exec {sys.executable} {tmp_path}/attach.py {pid}")
    assert server.call(b"").body == b""


@pytest.mark.parametrize("by", ["SIGTERM", "SIGKILL"])
def test_the_decoy_ends_with_the_server(start_server: StartServer, as_burstable: tuple[str, ...], by: str) -> None:
    server = start_server("echo hi", prefix=as_burstable)
    until(lambda: decoys(server), "the decoy")
    (pid,) = decoys(server)
    server.signal(signal.Signals[by])
    server.wait()
    until(lambda: not arguments_of(pid), "the decoy's end")


def test_a_decoy_that_was_ended_is_replaced(start_server: StartServer, as_burstable: tuple[str, ...]) -> None:
    server = start_server("echo hi", prefix=as_burstable)
    until(lambda: decoys(server), "the decoy")
    (before,) = decoys(server)
    os.kill(before, signal.SIGKILL)
    server.event("memory has run out: the kernel ended the decoy, and a script with it")
    until(lambda: decoys(server) not in ([], [before]), "another decoy")
    assert server.call(b"").body == b"hi\n"
