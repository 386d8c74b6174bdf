"""Warm workers that crash, hang, lie or never load. Each call gets its own answer, and the next is served."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from control_groups import joining, made_control_group
from guards import changed_program
from lifeline import Lifeline
from running_server import (
    AS_PID_1,
    PATIENT_STOP,
    WITHOUT_PRIVILEGES,
    Answer,
    RunningServer,
    StartServer,
    problem,
    read_answer,
    until,
)

from watchdog.system import proc

# A worker in bash. It does what the case of its call's id says. Its output names the call.
WORKER = r"""#!/bin/bash
cd {there}
{before}
echo "ready sh" >&4
{after}
while IFS= read -r call <&3; do eval "export $call"
  echo "$$" > pid-of-$CALL_ID
  case $CALL_ID in
  {cases}
  *) echo "$CALL_ID" > "$TMP_OUTPUT_DIR/name"; echo "done" >&4 ;;
  esac
done
{end}
"""
PREFIXES = {"plain": (), "pid 1": AS_PID_1, "no privileges": WITHOUT_PRIVILEGES}


class Author:
    """Writes workers, whose files are in ``there``."""

    def __init__(self, there: Path) -> None:
        self.there = there

    def worker(self, cases: str = "", *, before: str = "", after: str = "", end: str = "") -> str:
        text = WORKER.replace("{there}", str(self.there)).replace("{before}", before).replace("{after}", after)
        return text.replace("{cases}", cases).replace("{end}", end)

    def forking_worker(self, body: str) -> str:
        """A worker that runs each call in a child process of its own, in bash."""
        return f"""#!{sys.executable}
import json, os
os.chdir({str(self.there)!r})
os.write(4, b"ready fork\\n")
for line in open(3, closefd=False):
    call = json.loads(line)
    child = os.fork()
    if not child:
        os.environ.update(call["env"])
        os.execv("/bin/bash", ["bash", "-c", {body!r}])
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os.write(4, b"done %d\\n" % (code if code >= 0 else 128 - code))
"""

    def gate(self, name: str) -> Path:
        """A FIFO. ``read < NAME`` in a worker waits until a test writes to it."""
        os.mkfifo(self.there / name)
        return self.there / name

    def await_file(self, name: str) -> str:
        """Wait until a worker has written a line to a file, and return it."""
        path = self.there / name
        until(lambda: path.exists() and path.read_text().endswith("\n"), name)
        return path.read_text().strip()

    def pid_of(self, call_id: str) -> int:
        """The worker that serves a call or has served it."""
        return int(self.await_file(f"pid-of-{call_id}"))


@pytest.fixture
def author(tmp_path: Path) -> Author:
    (tmp_path / "there").mkdir()
    return Author(tmp_path / "there")


def call(server: RunningServer, call_id: str, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.call(b"", headers={"X-Call-Id": call_id, "Accept": "application/octet-stream"} | named)


def assert_serves(server: RunningServer, call_id: str = "good") -> Answer:
    """The next call is served, and its answer has its own name."""
    answer = call(server, call_id)
    assert (answer.status, answer.body) == (200, f"{call_id}\n".encode()), answer.body
    return answer


def until_stopped(pid: int) -> None:
    until(lambda: (process := proc.process(pid)) is not None and process.state == "T", "the process to be stopped")


def until_gone(pid: int, what: str) -> None:
    until(lambda: is_gone(pid), what)


def is_gone(pid: int) -> bool:
    process = proc.process(pid)
    return process is None or not process.is_alive


@contextlib.contextmanager
def calls_in_background(count: int = 4) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(count) as pool:
        yield pool


def leave(server: RunningServer, call_id: str) -> socket.socket:
    """Send a call whose caller will hang up: close the socket for that."""
    sock = server.connect()
    sock.sendall(f"POST / HTTP/1.1\r\nHost: x\r\nX-Call-Id: {call_id}\r\nContent-Length: 0\r\n\r\n".encode())
    return sock


# ---- a worker is killed at each step

STEPS = {
    # The step, what the worker does in it, and what the caller gets.
    "after it read the call": ("kill -9 $$", 500),
    "while it writes outputs": ('echo half > "$TMP_OUTPUT_DIR/a"; echo half; kill -9 $$', 500),
    "after the outputs": ('echo victim > "$TMP_OUTPUT_DIR/name"; kill -9 $$', 500),
    "after done": ('echo victim > "$TMP_OUTPUT_DIR/name"; echo "done" >&4; kill -9 $$', 200),
}


@pytest.mark.parametrize("step", STEPS)
def test_worker_that_is_killed_in_a_call_fails_only_this_call(
    start_server: StartServer, author: Author, step: str
) -> None:
    does, status = STEPS[step]
    server = start_server(author.worker(f"victim) {does} ;;"), WATCHDOG_WARM="1")
    for _ in range(3):
        answer = call(server, "victim")
        if status == 200:
            assert (answer.status, answer.body) == (200, b"victim\n")
        else:
            assert problem(answer, status)["signal"] == "SIGKILL"
        assert assert_serves(server).headers["X-Warm"] == "0"
    assert not [event for event in server.logs if event["event"] == "internal error"]


@pytest.mark.guard("closed-pipes")
def test_done_and_exit_are_noticed_at_the_same_time(start_server: StartServer, author: Author) -> None:
    """The server is stopped meanwhile. It then sees the output and the exit before the answer."""
    gate = author.gate("gate")
    does = 'echo victim > "$TMP_OUTPUT_DIR/name"; : > up; read -r < gate; echo printed; echo "done" >&4; exit'
    server = start_server(author.worker(f"victim) {does} ;;"), WATCHDOG_WARM="1")
    with calls_in_background() as pool:
        for _ in range(10):
            answer = pool.submit(call, server, "victim")
            until((author.there / "up").exists, "the call")
            (author.there / "up").unlink()
            pid = author.pid_of("victim")
            server.signal(signal.SIGSTOP)
            try:
                gate.write_text("go\n")
                until_gone(pid, "the exit of the worker")
            finally:
                server.signal(signal.SIGCONT)
            assert (answer.result().status, answer.result().body) == (200, b"victim\n"), answer.result().body
    assert_serves(server)


def test_worker_that_is_killed_while_it_loads_is_loaded_again(start_server: StartServer, author: Author) -> None:
    server = start_server(
        author.worker(before="[ -e once ] || { echo 'no memory' >&2; : > once; kill -9 $$; }"), WATCHDOG_WARM="1"
    )
    server.event("worker not loaded")
    assert server.call(None, "/_/health", "GET").status == 200
    server.event("worker ready")
    assert_serves(server)


@pytest.mark.guard("another-worker")
@pytest.mark.parametrize("size", ["short", "longer than the pipe"])
@pytest.mark.parametrize("mode", PREFIXES)
def test_call_that_a_dead_worker_did_not_read_is_served_by_another(
    start_server: StartServer, author: Author, mode: str, size: str, free_port: int
) -> None:
    # The caller does not notice the death of the worker, so the limit of the wait does not apply.
    environ = {"WATCHDOG_WARM": "1", "WATCHDOG_METRICS_PORT": str(free_port), "WATCHDOG_QUEUE_TIMEOUT": "0"}
    server = start_server(author.worker(), prefix=PREFIXES[mode], **environ)
    server.event("worker ready")
    assert_serves(server)
    quotes = "'" * 50_000  # each takes four bytes in the line of a shell
    with calls_in_background() as pool:
        for _ in range(3):
            (worker,) = workers_of(server)
            os.kill(worker, signal.SIGSTOP)  # so it does not read the call
            until_stopped(worker)
            answer = pool.submit(call, server, "mine", **({} if size == "short" else {"X_Long": quotes}))
            until(lambda: server.metric('watchdog_workers{state="busy"}') == 1, "the call to be sent")
            os.kill(worker, signal.SIGKILL)
            assert (answer.result().status, answer.result().body) == (200, b"mine\n"), answer.result().body
            assert_serves(server)


def test_call_that_a_dead_worker_did_not_read_is_served_before_later_calls(
    start_server: StartServer, author: Author, free_port: int
) -> None:
    loads = "until mkdir one 2> /dev/null || mkdir two 2> /dev/null; do sleep 0.02; done"
    notes = 'echo $CALL_ID >> order; echo "done" >&4'
    server = start_server(
        author.worker(f"first|later) {notes} ;;", before=loads),
        WATCHDOG_WARM="2",
        WATCHDOG_METRICS_PORT=str(free_port),
    )
    server.event("worker ready")
    server.event("worker ready")
    assert_serves(server)
    worker = author.pid_of("good")
    (other,) = {*workers_of(server)} - {worker}
    os.kill(other, signal.SIGKILL)
    server.event("worker ended")
    os.kill(worker, signal.SIGSTOP)  # so it does not read the call
    until_stopped(worker)
    with calls_in_background() as pool:
        first = pool.submit(call, server, "first")
        until(lambda: server.metric('watchdog_workers{state="busy"}') == 1, "the first call to be sent")
        later = pool.submit(call, server, "later")
        until(lambda: server.metric("watchdog_places_taken") == 2, "the later call to wait for a worker")
        os.kill(worker, signal.SIGKILL)
        server.event("worker ended")
        (author.there / "one").rmdir()  # one worker loads, and serves both calls
        assert (first.result().status, later.result().status) == (200, 200)
    assert (author.there / "order").read_text() == "first\nlater\n"


def workers_of(server: RunningServer) -> list[int]:
    """The processes that run the script as leaders of their sessions, as this process sees them."""
    found = []
    for process in proc.processes():
        with contextlib.suppress(OSError):
            arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
            if str(server.script).encode() in arguments and os.getsid(process.pid) == process.pid:
                found.append(process.pid)
    return found


@pytest.mark.parametrize("mode", PREFIXES)
def test_calls_around_the_death_of_an_idle_worker_are_served(
    start_server: StartServer, author: Author, mode: str
) -> None:
    server = start_server(author.worker(), WATCHDOG_WARM="2", prefix=PREFIXES[mode])
    with calls_in_background(2) as pool:
        for number in range(20):
            for worker in workers_of(server)[: 1 + number % 2]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
                # A reader that is killed at the moment when a call comes may take the call with it.
                until_gone(worker, "the end of the worker")
            answers = [pool.submit(call, server, f"call-{number}-{each}") for each in range(2)]
            for each, answer in enumerate(answers):
                # A worker that is killed before its first call counts as a failed load, which the caller learns.
                if answer.result().status == 503:
                    assert "before it served a call" in str(problem(answer.result(), 503)["detail"])
                    server.event("worker ready")
                else:
                    assert (answer.result().status, answer.result().body) == (200, f"call-{number}-{each}\n".encode())


# ---- a worker does not keep to the protocol

LIES = {
    # The action of the worker, the status of its caller, and a text that the caller reads.
    "a second ready": ("echo ready >&4; read -r < never", 500, "`ready` a second time"),
    "garbage": (r"printf '\377\000\001done\n' >&4; read -r < never", 500, "is not an answer"),
    "a long line": (r"head -c 5000 /dev/zero | tr '\0' x >&4; read -r < never", 500, "is too long"),
    "an exit code that is too large": ("echo done 256 >&4; read -r < never", 500, "'done 256'"),
    "fd 4 closed": ("exec 4>&-; read -r < never", 500, "closed fd 4"),
    "a cut line and fd 4 closed": ("printf don >&4; exec 4>&-; read -r < never", 500, "'don'"),
    "a cut line and exit 0": ("printf don >&4; exit 0", 500, "'don'"),
    "exit 0": ("exit 0", 500, "exited with code 0 before it wrote `done`"),
    "exit 7": ("exit 7", 500, "exit code 7"),
    "a signal": ("kill -SEGV $$", 500, "SIGSEGV"),
}


@pytest.mark.parametrize("lie", LIES)
def test_worker_that_breaks_the_protocol_in_a_call_is_replaced(
    start_server: StartServer, author: Author, lie: str
) -> None:
    author.gate("never")
    does, status, text = LIES[lie]
    server = start_server(author.worker(f"liar) {does} ;;"), WATCHDOG_WARM="1")
    assert_serves(server, "before")
    document = problem(call(server, "liar"), status)
    assert text in str(document["detail"])
    assert_serves(server)
    ended = server.event("invocation ended", call_id="liar")
    assert text in str(ended)
    assert is_gone(author.pid_of("liar"))


def test_fd_3_closed_in_a_call_costs_no_call(start_server: StartServer, author: Author) -> None:
    author.gate("never")
    does = 'echo closes > "$TMP_OUTPUT_DIR/name"; exec 3<&-; echo "done" >&4; read -r < never'
    server = start_server(author.worker(f"closes) {does} ;;"), WATCHDOG_WARM="1")
    assert_serves(server, "closes")
    assert_serves(server)
    assert "closed fd 3" in server.event("a worker broke the protocol and is ended")["reason"]


def test_fd_4_closed_by_an_idle_worker_costs_no_call(start_server: StartServer, author: Author) -> None:
    author.gate("never")
    does = 'echo closes > "$TMP_OUTPUT_DIR/name"; echo "done" >&4; exec 4>&-; read -r < never'
    server = start_server(author.worker(f"closes) {does} ;;"), WATCHDOG_WARM="1")
    for _ in range(3):
        assert_serves(server, "closes")
        assert_serves(server)
        assert "closed fd 4" in server.event("a worker broke the protocol and is ended")["reason"]


def test_done_twice_is_an_answer_to_one_call(start_server: StartServer, author: Author) -> None:
    # In one write, unlike the printf of bash.
    does = r"""echo twice > "$TMP_OUTPUT_DIR/name"; env printf 'done\ndone\n' >&4"""
    server = start_server(author.worker(f"twice) {does} ;;"), WATCHDOG_WARM="1")
    for _ in range(5):
        assert_serves(server, "twice")
        assert assert_serves(server).headers["X-Warm"] == "0"
        assert "although it had read no call" in server.event("a worker broke the protocol and is ended")["reason"]


@pytest.mark.guard("unread-call")
def test_done_before_the_call_is_read_does_not_answer_it(
    start_server: StartServer, author: Author, free_port: int
) -> None:
    """The worker writes a second ``done`` when the next call is on its way, and has not read this call."""
    gate = author.gate("gate")
    author.gate("never")  # the first gate may still be open for writing when the worker would open it again
    does = 'echo first > "$TMP_OUTPUT_DIR/name"; echo "done" >&4; read -r < gate; echo "done" >&4; read -r < never'
    server = start_server(author.worker(f"first) {does} ;;"), WATCHDOG_WARM="1", WATCHDOG_METRICS_PORT=str(free_port))
    assert_serves(server, "first")
    with calls_in_background() as pool:
        second = pool.submit(assert_serves, server, "second")
        until(lambda: server.metric('watchdog_workers{state="busy"}') == 1, "the second call to be sent")
        gate.write_text("go\n")
        assert second.result().headers["X-Warm"] == "0"
    assert "although it had read no call" in server.event("a worker broke the protocol and is ended")["reason"]


def test_done_while_idle_answers_no_call(start_server: StartServer, author: Author) -> None:
    gate = author.gate("gate")
    does = 'echo first > "$TMP_OUTPUT_DIR/name"; echo "done" >&4; read -r < gate; echo "done" >&4'
    server = start_server(author.worker(f"first) {does} ;;"), WATCHDOG_WARM="1")
    assert_serves(server, "first")
    gate.write_text("go\n")
    assert "although it had read no call" in server.event("a worker broke the protocol and is ended")["reason"]
    assert assert_serves(server).headers["X-Warm"] == "0"


@pytest.mark.parametrize(
    ("after", "text"),
    [("echo 'done' >&4", "although it had read no call"), ("echo ready >&4", "`ready` a second time")],
)
def test_workers_that_lie_before_their_first_call_are_reported_and_not_loaded_in_a_busy_loop(
    start_server: StartServer, author: Author, after: str, text: str
) -> None:
    author.gate("never")
    server = start_server(author.worker(after=f"echo >> loads; {after}; read -r < never"), WATCHDOG_WARM="1")
    document = problem(call(server, "any"), 503)
    assert text in str(document["detail"])
    server.event("worker not loaded", retry_in_s=2.0)
    server.script.write_text(author.worker())
    assert_serves(server)


# ---- what a call leaves


def test_what_a_call_left_harms_no_later_call(start_server: StartServer, author: Author) -> None:
    """The process has fd 3, fd 4, stdout and an output file open. Its working directory is the one of the outputs."""
    gate = author.gate("gate")
    leaves = """echo leaves > "$TMP_OUTPUT_DIR/name"
        (cd "$TMP_OUTPUT_DIR"; exec 8>> name; echo > $OLDPWD/placed; read -r < $OLDPWD/gate
         for i in $(seq 20); do echo stray; echo stray >&8; echo stray > late-$i; echo stray > "$TMP_OUTPUT_DIR/name"
         done 2> /dev/null; echo > $OLDPWD/wrote; exec sleep 1000) &
        until [ -e placed ]; do sleep 0.01; done
        """
    server = start_server(author.worker(f'leaves) {leaves} echo "done" >&4 ;;'), WATCHDOG_WARM="1")
    answer = call(server, "leaves")
    assert answer.status == 200
    warning = server.event("a call left processes, which live as long as the worker")
    assert warning["count"] == 1
    gate.write_text("go\n")
    with calls_in_background() as pool:
        answers = [pool.submit(assert_serves, server, f"later-{number}") for number in range(20)]
        author.await_file("wrote")
        assert {each.result().status for each in answers} == {200}
    assert server.stop() == 0
    assert server.leftovers() == []
    assert not [e for e in server.logs if e["event"] in ("internal error", "workspace not removed")]


def test_what_is_printed_while_idle_belongs_to_no_call(start_server: StartServer, author: Author) -> None:
    gate = author.gate("gate")
    floods = "for i in $(seq 5000); do echo idle $i; done; printf cut; echo > flood"
    prints = f'echo said; echo "done" >&4; read -r < gate; {floods}'
    server = start_server(author.worker(f'prints) {prints} ;; says) echo says; echo "done" >&4 ;;'), WATCHDOG_WARM="1")
    for _ in range(2):
        assert call(server, "prints").body == b"said\n"
        gate.write_text("go\n")
        author.await_file("flood")
        (author.there / "flood").unlink()
        answer = call(server, "says")
        assert answer.body == b"says\n"
    server.stop()
    idle = [event for event in server.logs if event["event"].startswith("idle ")]
    assert idle
    assert {(event["logger"], event.get("call_id")) for event in idle} == {("worker", None)}
    assert [event.get("call_id") for event in server.logs if event["event"] == "cut"] == [None, None]


@pytest.mark.guard("another-worker")
def test_output_before_a_call_is_read_belongs_to_no_call(
    start_server: StartServer, author: Author, free_port: int
) -> None:
    """The server has sent the call, and the worker prints before it reads the call."""
    gate, again = author.gate("gate"), author.gate("again")
    first = 'echo "done" >&4; read -r < gate; echo between; read -r < again'
    server = start_server(
        author.worker(f'first) {first} ;; says) echo says; echo "done" >&4 ;;'),
        WATCHDOG_WARM="1",
        WATCHDOG_METRICS_PORT=str(free_port),
    )
    call(server, "first")
    with calls_in_background() as pool:
        answer = pool.submit(call, server, "says")
        until(lambda: server.metric('watchdog_workers{state="busy"}') == 1, "the call to be sent")
        gate.write_text("go\n")
        event = server.event("between")
        again.write_text("go\n")
        assert answer.result().body == b"says\n"
    assert (event["logger"], event.get("call_id")) == ("worker", None)


def test_worker_that_writes_answers_without_end_does_not_delay_the_server(
    start_server: StartServer, author: Author
) -> None:
    """No guard: on a busy machine, the worker may write more slowly than the server reads."""
    server = start_server(
        author.worker("floods) : > up; yes 'progress 0.5' >&4 ;;"), WATCHDOG_WARM="1", WATCHDOG_KILL_GRACE="200ms"
    )
    with leave(server, "floods"):
        until((author.there / "up").exists, "the flood")
        for _ in range(20):
            assert server.call(None, "/_/health", "GET").status == 200
    server.event("invocation ended", call_id="floods")
    assert_serves(server)
    problem(call(server, "floods", X_Timeout="500ms"), 504)


# The server has descriptors 3 and 4 open until it makes the pipes of its first worker.
FREE_NUMBERS = """
import os
from watchdog.warm import channel
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(2)]
init = channel.Channel.__init__
def init_with_free_numbers(self, *arguments):
    while held:
        os.close(held.pop())
    init(self, *arguments)
replace(channel.Channel, "__init__", init_with_free_numbers)
"""


@pytest.mark.guard("high-descriptors")
def test_descriptors_3_and_4_may_be_free_in_the_server(
    start_server: StartServer, author: Author, removed_guard: str | None
) -> None:
    server = start_server(author.worker(), program=changed_program(FREE_NUMBERS, removed_guard), WATCHDOG_WARM="1")
    assert_serves(server)


# ---- time


def calls_until_a_limit_ends_processes(server: RunningServer, lifeline: Lifeline) -> int:
    """Make calls that reach their limits, until one of them had processes. Return the number of calls.

    On a slow machine, a call may reach a short limit before it has started a process.
    """
    for count, limit_s in enumerate((1, 2, 4, 8, 16, 32), 1):
        problem(call(server, "hangs", X_Timeout=f"{limit_s}s"), 504)
        if lifeline.was_held():
            return count
    raise AssertionError("no call started a process")


def test_timeout_ends_the_tree_and_the_next_worker_serves(
    start_server: StartServer, author: Author, lifeline: Lifeline
) -> None:
    author.gate("never")
    hangs = f"{lifeline.script_line} sleep 1000 & setsid sleep 1000 & read -r < never"
    server = start_server(author.worker(f"hangs) {hangs} ;;"), WATCHDOG_WARM="1", WATCHDOG_KILL_GRACE="200ms")
    for _ in range(2):
        calls_until_a_limit_ends_processes(server, lifeline)
        assert not lifeline.is_held()
        assert assert_serves(server).headers["X-Warm"] == "0"


def test_exec_timeout_ends_a_worker(start_server: StartServer, author: Author) -> None:
    author.gate("never")
    server = start_server(
        author.worker("hangs) read -r < never ;;", before="trap '' TERM"),
        WATCHDOG_WARM="1",
        WATCHDOG_KILL_GRACE="200ms",
        WATCHDOG_EXEC_TIMEOUT="1s",
    )
    problem(call(server, "hangs"), 504)
    server.event("invocation ended", outcome="timeout", signal="SIGKILL")


@pytest.mark.guard("unread-timeout", never="no answer came", never_s=6)
def test_timeout_of_a_call_that_no_worker_reads(start_server: StartServer, author: Author) -> None:
    author.gate("never")
    server = start_server(author.worker(after="read -r < never"), WATCHDOG_WARM="1", WATCHDOG_KILL_GRACE="200ms")
    problem(call(server, "any", X_Timeout="1s"), 504)


@pytest.mark.parametrize("body", ["trap '' TERM; {} wait", "{} wait"], ids=["ignores", "waits"])
def test_timeout_of_a_forked_call_ends_only_its_processes(
    start_server: StartServer, author: Author, lifeline: Lifeline, body: str
) -> None:
    """Processes that the call left end with it, also a daemon that ignores SIGTERM."""
    left = f"{lifeline.script_line} (trap '' TERM; setsid sleep 1000 & sleep 1000; sleep 1000) &"
    hangs = body.replace("{}", left)
    script = author.forking_worker(
        f"echo $PPID > pid-of-$CALL_ID; if [ $CALL_ID = hangs ]; then {hangs}; fi; "
        'echo $CALL_ID > "$TMP_OUTPUT_DIR/name"'
    )
    server = start_server(script, WATCHDOG_WARM="1", WATCHDOG_KILL_GRACE="300ms")
    count = calls_until_a_limit_ends_processes(server, lifeline)
    assert not lifeline.is_held()
    assert assert_serves(server).headers["X-Warm"] == str(count)
    assert author.pid_of("good") == author.pid_of("hangs")


NO_DESCRIPTOR_IS_FREE = """
import errno
from watchdog.warm.residents import Residents
async def new(self):
    raise OSError(errno.EMFILE, "no descriptor is free")
replace(Residents, "new", new)
"""


@pytest.mark.guard("end-of-forked-call", never="no answer came", never_s=8)
def test_forked_call_ends_with_its_worker_if_its_processes_cannot_be_listed(
    start_server: StartServer, author: Author, lifeline: Lifeline, removed_guard: str | None
) -> None:
    script = author.forking_worker(
        f"if [ $CALL_ID = hangs ]; then {lifeline.script_line} setsid sleep 1000 & wait; fi; "
        'echo $CALL_ID > "$TMP_OUTPUT_DIR/name"'
    )
    program = changed_program(NO_DESCRIPTOR_IS_FREE, removed_guard)
    server = start_server(script, program=program, WATCHDOG_WARM="1", WATCHDOG_KILL_GRACE="200ms")
    calls_until_a_limit_ends_processes(server, lifeline)
    assert not lifeline.is_held()
    assert assert_serves(server).headers["X-Warm"] == "0"


# ---- a caller that leaves

# A worker that has loaded counts as one whose load took this number of seconds.
LOADED_IN = """
from watchdog.warm.worker import Worker
take = Worker._take
def take_and_set(self, answer):
    take(self, answer)
    self.load_s = self.load_s and {seconds}
replace(Worker, "_take", take_and_set)
"""


def leave_in_call(server: RunningServer, author: Author, call_id: str) -> None:
    """Hang up when a worker serves the call. Return when the server has noticed it."""
    with leave(server, call_id):
        author.pid_of(call_id)
    until(lambda: not server.connections(), "the server to notice that the caller is gone")


def test_call_whose_caller_is_gone_may_run_on_for_as_long_as_a_load(start_server: StartServer, author: Author) -> None:
    """Text that it prints or writes after that is in no later answer."""
    gate = author.gate("gate")
    prints = 'head -c 1000000 /dev/zero | tr "\\0" x; echo'
    works = f'read -r < gate; echo left > "$TMP_OUTPUT_DIR/name"; {prints}; echo "done" >&4'
    server = start_server(
        author.worker(f'left) {works} ;; says) echo says; echo "done" >&4 ;;'),
        program=changed_program(LOADED_IN.format(seconds=1000.0), None),
        WATCHDOG_WARM="1",
    )
    leave_in_call(server, author, "left")
    gate.write_text("go\n")
    answer = call(server, "says")
    assert (answer.body, answer.headers["X-Warm"]) == (b"says\n", "1")
    server.event("invocation ended", call_id="left", outcome="caller_gone")


def test_call_whose_caller_is_gone_is_ended_after_the_time_of_a_load(
    start_server: StartServer, author: Author, lifeline: Lifeline
) -> None:
    author.gate("never")
    server = start_server(
        author.worker(f"left) {lifeline.script_line} sleep 1000 & echo yes > started; read -r < never ;;"),
        program=changed_program(LOADED_IN.format(seconds=0.01), None),
        WATCHDOG_WARM="1",
    )
    with leave(server, "left"):
        author.await_file("started")
    server.event("invocation ended", call_id="left", outcome="caller_gone")
    assert lifeline.was_held()
    assert not lifeline.is_held()
    assert assert_serves(server).headers["X-Warm"] == "0"


def test_forked_call_whose_caller_is_gone_is_ended_at_once_and_the_worker_lives(
    start_server: StartServer, author: Author, lifeline: Lifeline
) -> None:
    script = author.forking_worker(
        f"if [ $CALL_ID = left ]; then {lifeline.script_line} echo $PPID > pid-of-left; setsid sleep 1000 & wait; fi; "
        'echo $CALL_ID > "$TMP_OUTPUT_DIR/name"'
    )
    server = start_server(script, program=changed_program(LOADED_IN.format(seconds=1000.0), None), WATCHDOG_WARM="1")
    leave_in_call(server, author, "left")
    server.event("invocation ended", call_id="left", outcome="caller_gone")
    assert lifeline.was_held()
    assert not lifeline.is_held()
    assert assert_serves(server).headers["X-Warm"] == "1"


# ---- a script that does not load

NO_LOADS = {
    # The script, the settings, and what the caller reads.
    "exit 3": ("echo 'no weights' >&2; exit 3", {}, "ended while it loaded, with exit code 3"),
    "a signal": ("kill -SEGV $$", {}, "ended while it loaded, with SIGSEGV"),
    "Windows line ends": ("#!/bin/sh\r\nset -e\r\n", {}, "dos2unix"),
    "no command": ("no-such-command", {}, "exit code 127, which a shell returns if a command is not found"),
    "exit 0": ("cat /dev/null", {}, "not a script for warm functions"),
    "never ready": ("exec sleep 1000", {"WATCHDOG_WARM_START_TIMEOUT": "1s"}, "in 1 s (warm_start_timeout)"),
    "no interpreter": ("#!/no/such/interpreter\n", {}, "/no/such/interpreter of"),
    "no script": (None, {}, "there is no script at"),
}


@pytest.mark.parametrize("kind", NO_LOADS)
def test_load_that_fails_is_reported_and_an_edit_loads_at_once(
    start_server: StartServer, author: Author, kind: str
) -> None:
    script, environ, text = NO_LOADS[kind]
    server = start_server(script, WATCHDOG_WARM="2", **environ)
    answer = call(server, "any")
    is_startable = kind not in ("no interpreter", "no script")
    document = problem(answer, 503 if is_startable else 500)
    assert text in str(document["detail"])
    if is_startable:
        retry_after_s = int(answer.headers["Retry-After"])
        assert retry_after_s >= 1
        assert str(document["detail"]).endswith(f"; the server tries again in {retry_after_s} s")
    if kind == "exit 3":
        assert (document["exit_code"], document["stderr"]) == (3, "no weights\n")
    server.event("worker not loaded")
    ready = server.call(None, "/_/ready", "GET")
    assert (ready.status, text in ready.body.decode()) == (503, True), ready.body
    server.script.write_text(author.worker())
    if kind == "never ready":  # the new worker also must be ready in a second
        until(lambda: call(server, "good").status == 200, "a load in time")
    # During the pause after the failed load, a call would get 503 again.
    assert_serves(server)
    assert server.call(None, "/_/ready", "GET").status == 200


@pytest.mark.guard("one-pause")
def test_workers_that_fail_at_the_same_time_count_once(start_server: StartServer, author: Author) -> None:
    gate = author.gate("gate")
    server = start_server(author.worker(before="echo >> loads; read -r < gate; exit 1"), WATCHDOG_WARM="4")
    until(lambda: len(workers_of(server)) == 4, "four workers to load")
    workers = workers_of(server)
    until(lambda: (author.there / "loads").read_text() == 4 * "\n", "four workers to wait")
    server.signal(signal.SIGSTOP)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    until(lambda: all(map(is_gone, workers)), "the end of all workers")
    server.signal(signal.SIGCONT)
    pauses = [server.event("worker not loaded")["retry_in_s"] for _ in range(4)]
    assert max(pauses) <= 1.0
    del gate


@pytest.mark.guard("later-failures")
def test_loads_that_fail_beside_a_worker_that_serves_get_rarer(start_server: StartServer, author: Author) -> None:
    gate = author.gate("gate")
    fails = "mkdir loaded || { read -r < gate; exit 1; }"
    server = start_server(author.worker("crash) rmdir loaded; kill -9 $$ ;;", before=fails), WATCHDOG_WARM="2")
    server.event("worker ready")
    pauses = []
    for _ in range(3):
        gate.write_text("go\n")
        pauses.append(server.event("worker not loaded")["retry_in_s"])
        assert_serves(server)
    with gate.open("w") as opened:  # the next load has begun
        # The place of the worker that has served calls does not wait for it.
        assert problem(call(server, "crash"), 500)["signal"] == "SIGKILL"
        assert assert_serves(server).headers["X-Warm"] == "0"
        opened.write("go\n")
    pauses.append(server.event("worker not loaded")["retry_in_s"])
    assert pauses == [1.0, 2.0, 4.0, 8.0]


def test_a_worker_is_replaced_at_its_limit_although_no_other_can_be_loaded(
    start_server: StartServer, author: Author
) -> None:
    one_at_a_time = author.worker(before="mkdir loaded || exit 1", end="rmdir loaded")
    server = start_server(one_at_a_time, WATCHDOG_WARM="2", WATCHDOG_WARM_MAX_CALLS="1")
    server.event("worker not loaded")
    assert_serves(server)
    until(lambda: assert_serves(server).headers["X-Warm"] == "0", "a new worker")


@pytest.mark.guard("later-failures")
def test_workers_that_crash_before_their_first_call_beside_one_that_serves_get_rarer(
    start_server: StartServer, author: Author
) -> None:
    crash = "mkdir first && echo $$ > first/pid || { until [ -e crash-$$ ]; do sleep 0.02; done; exit 1; }"
    server = start_server(author.worker(after=crash), WATCHDOG_WARM="2")
    serves = int(author.await_file("first/pid"))
    loads = 0
    pauses: list[float] = []
    while len(pauses) < 3 and loads < 10:
        event = server.event("worker ready", "worker not loaded")
        if event["event"] == "worker not loaded":
            pauses.append(event["retry_in_s"])
        elif event["pid"] != serves:
            loads += 1
            (author.there / f"crash-{event['pid']}").touch()
            assert_serves(server)
    # Two crashes are ignored, one for each place.
    assert (loads, pauses) == (5, [1.0, 2.0, 4.0])


LISTS_SLOWLY = """
import asyncio
from watchdog.warm.residents import Residents
async def note(self):
    open(LISTS, "w").close()
    while not self._child.wake_up.done():
        await asyncio.sleep(0.01)
replace(Residents, "note", note)
"""


def test_worker_that_crashes_as_soon_as_it_is_ready_is_in_the_log(start_server: StartServer, author: Author) -> None:
    """The server has not yet listed the processes of the worker, so it never counted as loaded."""
    program = changed_program(f"LISTS = {str(author.there / 'lists')!r}\n{LISTS_SLOWLY}", None)
    crash = "until [ -e lists ]; do sleep 0.02; done; exit 3"
    server = start_server(author.worker(after=crash), program=program, WATCHDOG_WARM="1")
    server.event("worker ended", level="warning", reason="crashed", exit_code=3, calls=0)


@pytest.mark.guard("idle-crashes")
def test_workers_that_crash_while_idle_are_not_loaded_in_a_busy_loop(start_server: StartServer, author: Author) -> None:
    # Each worker crashes when the server has noticed that it is ready.
    crash = "until [ -e crash-$$ ] || [ -e crash-all ]; do sleep 0.02; done; exit 1"
    server = start_server(author.worker(after=crash), WATCHDOG_WARM="2")
    loads = 0
    pauses: list[float] = []
    while len(pauses) < 6:
        event = server.event("worker ready", "worker not loaded")
        if event["event"] == "worker ready":
            loads += 1
            (author.there / f"crash-{event['pid']}").touch()
        else:
            pauses.append(event["retry_in_s"])
    # Two at the same time, after a pause of 1 s, and after one of 2 s.
    assert max(pauses) >= 4.0
    # One crash in each place is ignored. Then one worker in each place may be ready when the last failure is logged.
    assert 8 <= loads <= 10
    (author.there / "crash-all").touch()
    assert "before it served a call" in str(problem(call(server, "any"), 503)["detail"])


def test_worker_that_dies_while_the_server_lists_its_processes_does_not_cost_its_place(
    start_server: StartServer, author: Author
) -> None:
    """The server lists them when a worker is ready, and after calls that may have left some."""
    dies = 'echo dies > "$TMP_OUTPUT_DIR/name"; sleep 1000 & echo "done" >&4; exit 1'
    server = start_server(
        author.worker(f"dies) {dies} ;;", after="[ -e once ] || { : > once; exit 1; }"), WATCHDOG_WARM="1"
    )
    server.event("worker ready")
    for _ in range(5):
        assert_serves(server, "dies")
        assert_serves(server)
    assert server.stop() == 0
    assert server.leftovers() == []


def test_on_knative_the_port_opens_after_a_failed_load(start_server: StartServer) -> None:
    server = start_server("echo 'no weights' >&2; exit 3", WATCHDOG_WARM="1", K_SERVICE="plants")
    assert problem(call(server, "any"), 503)["exit_code"] == 3


# ---- the end of the server


def test_drain_lets_the_running_call_finish(start_server: StartServer, author: Author) -> None:
    gate = author.gate("gate")
    works = 'read -r < gate; echo works > "$TMP_OUTPUT_DIR/name"; echo "done" >&4'
    server = start_server(author.worker(f"works) {works} ;;", end="echo it saw the end"), WATCHDOG_WARM="2")
    with calls_in_background() as pool:
        answer = pool.submit(call, server, "works")
        author.pid_of("works")
        server.event("worker ready")
        server.event("worker ready")
        server.signal(signal.SIGTERM)
        server.event("draining")
        gate.write_text("go\n")
        assert (answer.result().status, answer.result().body) == (200, b"works\n")
    assert server.wait() == 0
    assert server.leftovers() == []
    assert len([event for event in server.logs if event["event"] == "it saw the end"]) == 2


def test_worker_that_is_ended_in_a_drain_is_not_replaced(start_server: StartServer, author: Author) -> None:
    author.gate("never")
    server = start_server(
        author.worker("hangs) read -r < never ;;", before="echo >> loads"),
        WATCHDOG_WARM="1",
        WATCHDOG_WRITE_TIMEOUT="1s",
        WATCHDOG_HEALTHCHECK_INTERVAL="0",
    )
    with calls_in_background() as pool:
        answer = pool.submit(call, server, "hangs")
        author.pid_of("hangs")
        server.signal(signal.SIGTERM)
        problem(answer.result(), 503)
    assert server.wait() == 0
    assert (author.there / "loads").read_text() == "\n"


@pytest.mark.parametrize("signals", [1, 2])
@pytest.mark.parametrize("state", ["idle", "busy", "loading", "failing"])
@pytest.mark.parametrize("mode", PREFIXES)
def test_stop_ends_workers_that_ignore_it(
    start_server: StartServer, author: Author, lifeline: Lifeline, mode: str, state: str, signals: int
) -> None:
    """The worker ignores SIGTERM and the end of its calls, and has a child that does so, too."""
    author.gate("never")
    hangs = f"trap '' TERM HUP INT; {lifeline.script_line} setsid sleep 1000 & echo > up; read -r < never; sleep 1000"
    script = {
        "idle": author.worker(after=hangs),
        "busy": author.worker(f"mine) {hangs} ;;"),
        "loading": author.worker(before=hangs),
        "failing": author.worker(before="echo > up; exit 1"),
    }[state]
    server = start_server(
        script,
        prefix=PREFIXES[mode],
        **({"program": changed_program(PATIENT_STOP, None)} if signals == 2 else {}),
        WATCHDOG_WARM="2",
        WATCHDOG_KILL_GRACE="300ms" if signals == 1 else "60s",
        WATCHDOG_WRITE_TIMEOUT="1s",
        WATCHDOG_HEALTHCHECK_INTERVAL="0",
    )
    with leave(server, "mine") if state in ("busy", "loading") else contextlib.nullcontext() as caller:
        author.await_file("up")
        server.call(None, "/_/health", "GET")  # the server has the other call by now
        for number in range(signals):
            send_to_server(server, signal.SIGTERM)
            if not number:
                server.event("draining")
        if caller is not None:
            assert read_answer(caller).startswith(b"HTTP/1.1 503 ")
        assert server.wait() == 0
    assert not lifeline.is_held()
    assert server.leftovers() == []
    # The event is only for workers that end while the server goes on, such as those that crash.
    assert not [event for event in server.logs if event["event"] == "worker ended"]


def send_to_server(server: RunningServer, number: int) -> None:
    """Signal the server, which may be the child of ``unshare``."""
    command = Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
    pid = server.process.pid
    if command.startswith(b"unshare"):
        pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    os.kill(pid, number)


@pytest.mark.parametrize("state", ["idle", "busy", "loading"])
def test_killed_server_leaves_no_worker(
    start_server: StartServer, author: Author, lifeline: Lifeline, state: str
) -> None:
    author.gate("never")
    hangs = f"trap '' TERM HUP INT; {lifeline.script_line} setsid sleep 1000 & echo > up; read -r < never; sleep 1000"
    script = {
        "idle": author.worker(after=hangs),
        "busy": author.worker(f"mine) {hangs} ;;"),
        "loading": author.worker(before=hangs),
    }[state]
    server = start_server(script, WATCHDOG_WARM="2")
    with contextlib.ExitStack() as stack:
        if state == "busy":
            stack.enter_context(leave(server, "mine"))
        author.await_file("up")
        server.kill()
    until(lambda: not lifeline.is_held(), "the end of the workers")


# ---- places, edits and recycling under load


@contextlib.contextmanager
def never_more_workers_than(server: RunningServer, most: int) -> Iterator[None]:
    """Read the list of all processes again and again."""
    counts: set[int] = set()
    is_over = threading.Event()

    def sample() -> None:
        while not is_over.is_set():
            counts.add(len(workers_of(server)))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield
    finally:
        is_over.set()
        sampler.join()
    assert max(counts) <= most, counts


@pytest.mark.parametrize(("places", "workers", "most"), [("1", "3", 1), ("4", "2", 2)])
def test_places_and_workers_may_differ(
    start_server: StartServer, author: Author, places: str, workers: str, most: int
) -> None:
    server = start_server(author.worker(), WATCHDOG_WARM=workers, WATCHDOG_MAX_INFLIGHT=places)
    (listening,) = [event for event in server.logs if event["event"] == "listening"]
    assert (listening["max_inflight"], listening["max_queue"]) == (most, 10 * most)
    with never_more_workers_than(server, most), calls_in_background(6) as pool:
        for answer in [pool.submit(assert_serves, server, f"call-{number}") for number in range(60)]:
            answer.result()


def test_edits_under_load_lose_no_call(start_server: StartServer, author: Author) -> None:
    server = start_server(author.worker(), WATCHDOG_WARM="2", WATCHDOG_MAX_QUEUE="100")
    numbers = iter(range(1_000_000))
    is_over = threading.Event()

    def load() -> int:
        served = 0
        while not is_over.is_set():
            assert_serves(server, f"call-{next(numbers)}")
            served += 1
        return served

    with never_more_workers_than(server, 2), calls_in_background(4) as pool:
        callers: list[Future[int]] = [pool.submit(load) for _ in range(4)]
        try:
            for edit in range(5):
                new = author.there / "new"
                new.write_text(author.worker(before=f"echo >> loads-{edit}"))
                os.replace(new, server.script)
                author.await_file(f"loads-{edit}")
        finally:
            is_over.set()
        assert sum(caller.result() for caller in callers) > 0


def test_workers_are_recycled_one_at_a_time_under_load(start_server: StartServer, author: Author) -> None:
    server = start_server(author.worker(), WATCHDOG_WARM="2", WATCHDOG_WARM_MAX_CALLS="3", WATCHDOG_MAX_QUEUE="100")
    with never_more_workers_than(server, 2), calls_in_background(4) as pool:
        answers = [pool.submit(assert_serves, server, f"call-{number}") for number in range(60)]
        warm = {int(answer.result().headers["X-Warm"]) for answer in answers}
    assert {0, 1, 2} <= warm


def test_crashes_under_load_never_lead_to_more_workers_than_asked_for(
    start_server: StartServer, author: Author
) -> None:
    """Every third call kills its worker. No call gets the answer of another one."""
    server = start_server(
        author.worker('*-crash) kill -9 $$ ;; *-exit) echo half > "$TMP_OUTPUT_DIR/name"; exit 5 ;;'),
        WATCHDOG_WARM="2",
        WATCHDOG_MAX_QUEUE="100",
    )
    with never_more_workers_than(server, 2), calls_in_background(6) as pool:
        ids = [f"call-{number}-{('good', 'crash', 'good', 'exit')[number % 4]}" for number in range(80)]
        answers = [pool.submit(call, server, each) for each in ids]
        for call_id, answer in zip(ids, answers, strict=True):
            if call_id.endswith("good"):
                assert (answer.result().status, answer.result().body) == (200, f"{call_id}\n".encode())
            elif call_id.endswith("crash"):
                assert problem(answer.result(), 500)["signal"] == "SIGKILL"
            else:
                assert problem(answer.result(), 500)["exit_code"] == 5
    assert server.stop() == 0
    assert server.leftovers() == []


# ---- memory and disk


def test_worker_that_runs_out_of_memory(start_server: StartServer, author: Author) -> None:
    eats = f"{sys.executable} -c 'bytearray(400 << 20)'"
    with made_control_group("memory", ("memory.limit_in_bytes", "memory.max"), str(160 << 20)) as group:
        server = start_server(
            author.worker(f'child) {eats}; echo "done $?" >&4 ;; itself) exec {eats} ;;'),
            prefix=joining(group),
            WATCHDOG_WARM="1",
        )
        for call_id, warm in (("child", "2"), ("itself", "0")):
            assert_serves(server, "before")
            document = problem(call(server, call_id), 500)
            assert "out of memory" in str(document["detail"])
            server.event("invocation ended", call_id=call_id, outcome="out_of_memory")
            assert assert_serves(server).headers["X-Warm"] == warm
        server.kill()


def test_worker_that_runs_out_of_memory_while_it_loads(start_server: StartServer) -> None:
    loads = f"exec {sys.executable} -c 'bytearray(400 << 20)'"
    with made_control_group("memory", ("memory.limit_in_bytes", "memory.max"), str(160 << 20)) as group:
        server = start_server(loads, prefix=joining(group), WATCHDOG_WARM="1")
        document = problem(call(server, "any"), 503)
        assert "SIGKILL: out of memory, limit 160 MiB; give the container more memory" in str(document["detail"])
        server.kill()


# A call to this server waits until the files of the call before it are removed, also on a slow machine.
PATIENT_FOR_SPACE = "from watchdog.invocation import invocation; replace(invocation, '_LONGEST_WAIT_FOR_SPACE_S', 60.0)"


def test_worker_that_fills_the_disk(start_server: StartServer, author: Author, tmp_path: Path) -> None:
    assert os.geteuid() == 0, "this test mounts a small file system and must be root"
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=100", "none", str(disk)], check=True)
    try:
        fills = 'head -c 3000000 /dev/zero > "$TMP_OUTPUT_DIR/name"; echo "done $?" >&4'
        program = changed_program(PATIENT_FOR_SPACE, None)
        script = author.worker(f"fills) {fills} ;;")
        server = start_server(script, program=program, WATCHDOG_WARM="1", WATCHDOG_TMP_DIR=str(disk))
        for warm in ("1", "3"):
            assert problem(call(server, "fills"), 507)["exit_code"] == 1
            assert assert_serves(server).headers["X-Warm"] == warm
        assert server.stop() == 0
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


# ---- local runs


@pytest.mark.parametrize("state", ["loading", "running", "ignoring the end of its calls"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_local_run_and_its_worker(
    author: Author, lifeline: Lifeline, tmp_path: Path, state: str, number: signal.Signals
) -> None:
    author.gate("never")
    hangs = f"{lifeline.script_line} trap '' TERM INT; setsid sleep 1000 & echo > up; read -r < never; sleep 1000"
    script = tmp_path / "script.sh"
    script.write_text(
        {
            "loading": author.worker(before=hangs),
            "running": author.worker(f"*) {hangs} ;;"),
            "ignoring the end of its calls": author.worker(end=hangs),
        }[state]
    )
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    environ = {**os.environ, "WATCHDOG_WARM": "1", "TMPDIR": str(tmp), "WATCHDOG_KILL_GRACE": "500ms"}
    (tmp_path / "in").write_text("")
    command = [sys.executable, "-m", "watchdog", "run", "--script-path", str(script), str(tmp_path / "in")]
    with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
        author.await_file("up")
        run.send_signal(number)
        _, printed = run.communicate(timeout=RunningServer.patience_s)
    assert run.returncode == (128 + number if "calls" not in state else 0), printed
    assert b"Traceback" not in printed
    assert not lifeline.is_held()
    assert list(tmp.iterdir()) == []


def test_failed_load_ends_a_local_run(tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text("echo 'no weights' >&2; exit 3")
    environ = {**os.environ, "WATCHDOG_WARM": "1", "TMPDIR": str(tmp_path)}
    (tmp_path / "in").write_text("")
    command = [sys.executable, "-m", "watchdog", "run", "--script-path", str(script), str(tmp_path / "in")]
    ran = subprocess.run(command, env=environ, capture_output=True, check=False, timeout=RunningServer.patience_s)
    assert ran.returncode != 0
    assert b"ended while it loaded, with exit code 3" in ran.stderr
    # Only a server loads again.
    assert b"tries again" not in ran.stderr
