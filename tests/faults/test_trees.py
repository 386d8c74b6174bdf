"""All processes that a script starts are gone before its call is answered, even if they hide."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from control_groups import ControlGroup, joining, made_control_group
from lifeline import Lifeline
from running_server import AS_PID_1, WITHOUT_PRIVILEGES, RunningServer, StartServer, is_guardian, problem, until

from watchdog.system import proc

PR_SET_DUMPABLE = 4  # linux/prctl.h
# This process holds the lifeline (descriptor 9), and ends by itself when the test has removed the lifeline.
CHAIN = f"""{sys.executable} -c '
import os, time
end = time.monotonic() + 120
while os.fstat(9).st_nlink and time.monotonic() < end:
    if os.fork():
        os._exit(0)
    os.setsid()
' &"""
KINDS = {
    "background": "sleep 60 &",
    "ignores SIGTERM": "(trap '' TERM; echo trapped; sleep 60; sleep 60) &",
    "own group": "set -m; sleep 60 &",
    "nohup": "nohup sleep 60 >/dev/null 2>&1 &",
    "setsid": "setsid sleep 60 &",
    "daemon": "(setsid bash -c 'setsid sleep 60 >/dev/null 2>&1 <&- & exit 0' &)",
    "tree": "setsid bash -c 'sleep 60 & setsid sleep 60 & wait' &",
    "no environment": "env -i setsid sleep 60 &",
    "chain of forks": CHAIN,
}
PREFIXES = {"plain": (), "pid 1": AS_PID_1, "no privileges": WITHOUT_PRIVILEGES}


def leaving(lifeline: Lifeline, kind: str) -> str:
    # Wait a moment, so that the processes have left the session before the script ends.
    return f"#!/bin/bash\n{lifeline.script_line}{KINDS[kind]}\nsleep 0.15; echo said; exit 3\n"


@pytest.mark.guard("straggler-search")
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_survives(start_server: StartServer, lifeline: Lifeline, kind: str) -> None:
    server = start_server(leaving(lifeline, kind))
    assert problem(server.call(b""), 500)["exit_code"] == 3
    assert lifeline.was_held()
    assert not lifeline.is_held()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["pid 1", "no privileges"])
def test_nothing_survives_wherever_it_runs(start_server: StartServer, lifeline: Lifeline, kind: str, mode: str) -> None:
    server = start_server(leaving(lifeline, kind), prefix=PREFIXES[mode])
    assert problem(server.call(b""), 500)["exit_code"] == 3
    assert lifeline.was_held()
    assert not lifeline.is_held()


@pytest.mark.guard("subreaper")
def test_a_daemon_without_environment_or_pipes(start_server: StartServer, lifeline: Lifeline, tmp_path: Path) -> None:
    """Only that it becomes our child when it loses its parent still tells whose it is."""
    daemon = f"env -i setsid sh -c 'echo > {tmp_path}/up; exec sleep 60' >/dev/null 2>&1"
    script = f"{lifeline.script_line}({daemon} &); until [ -e {tmp_path}/up ]; do sleep 0.02; done"
    server = start_server(script, prefix=PREFIXES["plain"])
    assert server.call(b"").status == 200
    assert not lifeline.is_held()


def test_a_chain_of_forks_without_end(start_server: StartServer, lifeline: Lifeline) -> None:
    """Each process of the chain lives for a shorter time than it takes to list all processes.

    Without the special search, the chain is sometimes found on a busy machine, which slows it down. So there is no
    guard to take out.
    """
    server = start_server(leaving(lifeline, "chain of forks"))
    for _ in range(3):
        assert problem(server.call(b""), 500)["exit_code"] == 3
        assert not lifeline.is_held()


@pytest.mark.guard("exit-not-eof", never="no answer came")
def test_a_process_that_holds_stdout_open_does_not_delay_the_answer(start_server: StartServer) -> None:
    server = start_server("(trap '' TERM; sleep 60; sleep 60) & echo said")
    assert server.call(b"").body == b"said\n"


@pytest.mark.guard("sigterm-first")
def test_sigterm_comes_first_and_a_last_file_changes_nothing(start_server: StartServer, tmp_path: Path) -> None:
    script = f"trap 'echo late > $TMP_OUTPUT_DIR/x; touch {tmp_path}/asked; exit 0' TERM; sleep 60 & wait"
    server = start_server(script, WATCHDOG_KILL_GRACE="60")
    document = problem(server.call(b"", headers={"X-Timeout": "2s"}), 504)
    assert document["exit_code"] == 0
    assert (tmp_path / "asked").exists()


def test_what_a_shell_ran_has_the_grace_too(start_server: StartServer, tmp_path: Path) -> None:
    """The shell has no trap and ends at once. Its child saves its work first."""
    (tmp_path / "train.py").write_text(f"""
import signal, sys, time

def save(*_):
    time.sleep(0.5)
    open({str(tmp_path / "saved")!r}, "w").close()
    sys.exit()

signal.signal(signal.SIGTERM, save)
open({str(tmp_path / "up")!r}, "w").close()
time.sleep(60)
""")
    server = start_server(f"{sys.executable} {tmp_path}/train.py\necho never", WATCHDOG_KILL_GRACE="60")
    with server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        until((tmp_path / "up").exists, "the program")
    server.event("invocation ended", outcome="caller_gone")
    assert (tmp_path / "saved").exists()


@pytest.mark.guard("sigkill", never="no answer came", never_s=8)
def test_sigkill_comes_after_the_grace(start_server: StartServer, lifeline: Lifeline) -> None:
    script = lifeline.script_line + "trap '' TERM; (trap '' TERM; setsid sleep 60) & while :; do sleep 0.1; done"
    server = start_server(script, WATCHDOG_KILL_GRACE="300ms")
    problem(server.call(b"", headers={"X-Timeout": "2s"}), 504)
    server.event("invocation ended", outcome="timeout", signal="SIGKILL")
    assert not lifeline.is_held()


@pytest.mark.guard("ownership")
def test_never_the_wrong_ones_child(start_server: StartServer, tmp_path: Path) -> None:
    script = f"""#!/bin/bash
case $CALL_ID in
long)
    for n in 1 2 3; do setsid sleep 60 & echo $! >> {tmp_path}/pids; done
    (setsid bash -c 'echo $$ >> {tmp_path}/pids; exec sleep 60' &)
    while [ $(wc -l < {tmp_path}/pids) -lt 4 ]; do sleep 0.02; done
    touch {tmp_path}/up
    until [ -e {tmp_path}/go ]; do sleep 0.05; done
    for pid in $(cat {tmp_path}/pids); do kill -0 $pid && echo lives; done;;
*)
    setsid sleep 60 & (setsid sleep 60 &); sleep 0.1;;
esac
"""
    server = start_server(script, WATCHDOG_MAX_INFLIGHT="4")
    with ThreadPoolExecutor(3) as pool:
        long = pool.submit(server.call, b"", headers={"X-Call-Id": "long"})
        until((tmp_path / "up").exists, "the children of the long one")
        for answer in pool.map(lambda _: server.call(b""), range(8)):
            assert answer.status == 200
        (tmp_path / "go").touch()
        assert long.result().body == b"lives\n" * 4


@pytest.mark.guard("own-status")
def test_no_status_is_lost_to_the_reaper(start_server: StartServer) -> None:
    server = start_server("for n in 1 2 3; do (setsid true &); done; exit $Http_X_Code", WATCHDOG_MAX_INFLIGHT="8")
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda n: server.call(b"", headers={"X-Code": str(n)}), range(1, 60))
        assert [answer.headers["X-Exit-Code"] for answer in answers] == [str(n) for n in range(1, 60)]


def test_a_parent_that_ignores_the_end_of_children_changes_nothing(start_server: StartServer) -> None:
    """The kernel would then reap children before the server. A process inherits an ignored SIGCHLD through exec."""
    ignoring = ("/bin/bash", "-c", "trap '' CHLD; exec \"$@\"", "bash")
    server = start_server("(setsid sleep 60 &); exit 7", prefix=ignoring)
    for _ in range(3):
        assert problem(server.call(b""), 500)["exit_code"] == 7
    assert server.stop() == 0
    assert server.leftovers() == []


@pytest.mark.guard("reap-timer", never="the orphans to be reaped")
def test_orphans_are_reaped_while_a_long_script_runs(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(f"for n in 1 2 3 4 5; do (setsid true &); done; touch {tmp_path}/up; sleep 60")
    with server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        until((tmp_path / "up").exists, "the script")
        until(lambda: zombies(server) == [], "the orphans to be reaped")


def zombies(server: RunningServer) -> list[int]:
    pid = server.process.pid
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    # A child that was reaped meanwhile does not exist any more.
    return [child for child in children if (found := proc.process(child)) is not None and found.state == "Z"]


# ---- the limits of the container


@pytest.fixture
def few_processes() -> Iterator[ControlGroup]:
    with made_control_group("pids", ("pids.max", "pids.max"), "200") as group:
        yield group


BOMB = f"""{sys.executable} -c '
import os, time
end = time.monotonic() + 20
while time.monotonic() < end:
    try:
        if os.fork() == 0:
            LEAVE
    except OSError:
        time.sleep(0.001)
' & sleep 60"""


@pytest.mark.slow
@pytest.mark.parametrize("leave", ["pass", "os.setsid()"])
def test_a_fork_bomb_ends_with_its_timeout(
    start_server: StartServer, lifeline: Lifeline, few_processes: ControlGroup, leave: str
) -> None:
    """This has no run without the search, unlike `test_nothing_survives`: the bomb would then use the whole machine."""
    server = start_server(lifeline.script_line + BOMB.replace("LEAVE", leave), prefix=joining(few_processes))
    problem(server.call(b"", headers={"X-Timeout": "1s"}), 504)
    assert not lifeline.is_held()
    server.script.write_text("echo fine")
    assert server.call(b"").body == b"fine\n"


@pytest.fixture
def little_memory() -> Iterator[ControlGroup]:
    with made_control_group("memory", ("memory.limit_in_bytes", "memory.max"), str(150 << 20)) as group:
        yield group


@pytest.mark.guard("oom-preference")
def test_when_memory_runs_out_the_kernel_kills_the_script(
    start_server: StartServer, little_memory: ControlGroup
) -> None:
    """This also holds if the server is the largest of many processes. Afterwards the server works as before."""
    one = f"{sys.executable} -S -c 'x = bytearray(8 << 20); input()' <&8"
    many = f"for n in $(seq 30); do ({one} || kill -KILL $$) & done; wait"
    server = start_server(f"mkfifo $TMP_INPUT_DIR/f; exec 8<>$TMP_INPUT_DIR/f; {many}", prefix=joining(little_memory))
    before = Path("/proc/self/oom_score_adj").read_text()
    assert problem(server.call(b""), 500)["out_of_memory"]
    server.script.write_text("cat /proc/self/oom_score_adj")
    assert int(server.call(b"").body) == min(1000, int(before) + 500)
    assert Path(f"/proc/{server.process.pid}/oom_score_adj").read_text() == before


# ---- the server is killed


@pytest.mark.guard("guardian", never="the script's end")
@pytest.mark.parametrize("kind", ["background", "setsid", "daemon", "ignores SIGTERM", "tree"])
def test_a_killed_server_leaves_no_script(
    start_server: StartServer, lifeline: Lifeline, tmp_path: Path, kind: str
) -> None:
    script = f"#!/bin/bash\n{lifeline.script_line}{KINDS[kind]}\ntrap '' TERM; touch {tmp_path}/up; sleep 60; sleep 60"
    server = start_server(script)
    with server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        until((tmp_path / "up").exists, "the script")
        server.process.kill()
        until(lambda: not lifeline.is_held(), "the script's end")


def hiding(directory: Path, lifeline: Lifeline) -> str:
    """A script that leaves a daemon with closed memory and without session, parent, environment and pipes."""
    (directory / "hidden.py").write_text(f"""
import ctypes, time

ctypes.CDLL(None).prctl({PR_SET_DUMPABLE}, 0)
open({str(directory / "hidden")!r}, "w").close()
time.sleep(60)
""")
    daemon = f"env -i setsid {sys.executable} -S {directory}/hidden.py >/dev/null 2>&1 </dev/null"
    wait = f"until [ -e {directory}/hidden ]; do sleep 0.02; done; touch {directory}/up; sleep 60"
    return f"{lifeline.script_line}({daemon} &)\n{wait}"


@contextlib.contextmanager
def running_script(server: RunningServer, up: Path) -> Iterator[None]:
    """Make a call, and wait until its script has made the file ``up``."""
    with server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        until(up.exists, "the script")
        yield


@pytest.mark.guard("guardian-limit", never="the end of the hidden process")
@pytest.mark.parametrize("mode", ["plain", "no privileges"])
def test_a_killed_server_leaves_no_hidden_process(
    start_server: StartServer, lifeline: Lifeline, tmp_path: Path, mode: str
) -> None:
    server = start_server(hiding(tmp_path, lifeline), prefix=PREFIXES[mode])
    with running_script(server, tmp_path / "up"):
        server.process.kill()
        until(lambda: not lifeline.is_held(), "the end of the hidden process")


def test_a_killed_server_that_is_pid_1_leaves_no_hidden_process(
    start_server: StartServer, lifeline: Lifeline, tmp_path: Path
) -> None:
    """The kernel ends all processes with PID 1, so there is no guardian."""
    server = start_server(hiding(tmp_path, lifeline), prefix=AS_PID_1)
    with running_script(server, tmp_path / "up"):
        server.process.kill()
        until(lambda: not lifeline.is_held(), "the end of the hidden process")


def test_guardian_ends_no_process_of_others(start_server: StartServer, lifeline: Lifeline, tmp_path: Path) -> None:
    """These are a daemon of the entry point, which is a child of the server, and the script of another server."""
    go_on = tmp_path / "go on"
    other = start_server(f"touch {tmp_path}/other; until [ -e '{go_on}' ]; do sleep 0.02; done; echo answer")
    daemon = f"sleep 3600 & echo $! >{tmp_path}/pid; "
    server = start_server(hiding(tmp_path, lifeline), prefix=("sh", "-c", daemon + 'exec "$@"', "sh"))
    entry = int((tmp_path / "pid").read_text())
    try:
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(other.call, b"")
            until((tmp_path / "other").exists, "the script of the other server")
            with running_script(server, tmp_path / "up"):
                (guardian,) = guardians(server)
                server.process.kill()
                until(lambda: not lifeline.is_held(), "the end of the hidden process")
                # By then, the guardian has finished its search.
                until(lambda: not is_alive(guardian), "the end of the guardian")
            assert is_alive(entry)
            go_on.touch()
            assert (answer.result().status, answer.result().body) == (200, b"answer\n")
    finally:
        go_on.touch()
        os.kill(entry, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    found = proc.process(pid)
    return found is not None and found.is_alive


@pytest.mark.guard("guardian-restart", never="another guardian")
def test_a_guardian_that_died_is_replaced(start_server: StartServer, lifeline: Lifeline, tmp_path: Path) -> None:
    server = start_server("echo hi")
    assert server.call(b"").status == 200
    (child,) = guardians(server)
    os.kill(child, signal.SIGKILL)
    assert server.event("the guardian died", pid=child)["signal"] == "SIGKILL"
    server.script.write_text(f"{lifeline.script_line}touch {tmp_path}/up; sleep 60")
    with server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        until((tmp_path / "up").exists, "the script")
        until(lambda: guardians(server), "another guardian")
        server.process.kill()
        until(lambda: not lifeline.is_held(), "the script's end")


@pytest.mark.guard("guardian-restart", never="a guardian")
def test_guardian_killed_again_and_again_is_replaced_each_time(start_server: StartServer) -> None:
    server = start_server("echo hi")
    for number, name in ((9, "SIGKILL"), (40, "SIGRTMIN+6"), (11, "SIGSEGV"), (9, "SIGKILL")):
        until(lambda: server.call(b"").status == 200 and guardians(server), "a guardian")
        (child,) = guardians(server)
        os.kill(child, number)
        event = server.event("the guardian died", pid=child)
        assert (event["level"], event["signal"]) == ("warning", name)


@pytest.mark.guard("guardian-resumption", never="the event 'the guardian was stopped by a signal")
def test_stopped_guardian_continues(start_server: StartServer, lifeline: Lifeline, tmp_path: Path) -> None:
    server = start_server(f"{lifeline.script_line}touch {tmp_path}/up; sleep 60")
    with server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        until((tmp_path / "up").exists, "the script")
        (child,) = guardians(server)
        os.kill(child, signal.SIGSTOP)
        try:
            server.event("the guardian was stopped by a signal, and now continues", pid=child)
            server.process.kill()
            until(lambda: not lifeline.is_held(), "the script's end")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGCONT)


def test_the_guardian_ends_with_the_server(start_server: StartServer) -> None:
    server = start_server("echo hi")
    assert server.call(b"").status == 200
    (child,) = guardians(server)
    server.stop()
    assert not Path(f"/proc/{child}").exists()


def guardians(server: RunningServer) -> list[int]:
    pid = server.process.pid
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [child for child in children if is_guardian(child, of=pid)]


# ---- each kind of end has its own outcome

ENDS: dict[str, tuple[str, dict[str, str], int, dict[str, object]]] = {
    "ok": ("exit 0", {}, 200, {"exit_code": 0}),
    "failed": ("exit 7", {}, 500, {"exit_code": 7}),
    "killed": ("kill -SEGV $$", {}, 500, {"signal": "SIGSEGV"}),
    "timeout": ("sleep 60", {"X-Timeout": "200ms"}, 504, {"signal": "SIGTERM"}),
    "no_script": ("#!/no/such/interpreter", {}, 500, {}),
    "bad_input": ("exit 0", {"Content-Encoding": "gzip"}, 400, {}),
}


def test_each_end_has_its_name_in_answer_log_and_metrics(start_server: StartServer, free_port: int) -> None:
    server = start_server("", WATCHDOG_METRICS_PORT=str(free_port))
    for outcome, (script, headers, status, fields) in ENDS.items():
        server.script.write_text(script)
        answer = server.call(b"AAAA", headers={"X-Call-Id": outcome, **headers})
        assert answer.status == status
        event = server.event("invocation ended", call_id=outcome)
        assert {"outcome": outcome, **fields}.items() <= event.items()
    metrics = server.call(None, "/metrics", "GET", port=free_port).body.decode().splitlines()
    for outcome in ENDS:
        assert f'watchdog_invocations_total{{outcome="{outcome}"}} 1.0' in metrics
