"""Thousands of good, bad and cancelled calls leave nothing in the server, and the soak would notice a fault."""

from __future__ import annotations

import base64
import http.client
import io
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from lifeline import Lifeline
from running_server import Answer, RunningServer, StartServer, until

sys.path.insert(0, str(Path(__file__).parent / "faults"))

import soak
from ledger import Ledger, Note
from leftovers import MOST_THREADS, children, descriptors, processes_with, threads
from wanted import Wanted, fault, files_fault
from wire import Lost, receive

FAULTS = Path(soak.__file__).parent

# ---------------------------------------------------------------------------- the soak


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_short_soak_loses_and_leaves_nothing() -> None:
    run = soaked("--seconds", "20", "--seed", "11")
    assert run.returncode == 0, run.stdout
    assert run.stdout.splitlines()[-2:] == ["lost answers: 0", "leaks: 0"]
    # The soak made all kinds of calls, and had most of the possible outcomes.
    kinds = set(re.findall(r"^  ([a-z]+)[-_a-z0-9]* +\d+$", run.stdout, re.MULTILINE))
    assert {"good", "bad", "failing", "straggling", "slow", "silent", "gone", "crowd", "probe"} <= kinds
    outcomes = {"ok", "failed", "killed", "timeout", "bad_input", "bad_output", "caller_gone", "overloaded"}
    assert outcomes <= set(re.findall(r"^  (\w+) +\d+$", run.stdout, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_soak_notices_a_server_that_leaves_processes() -> None:
    run = soaked("--seconds", "5", "--patience", "3", "--seed", "11", "--without", "straggler-search")
    assert run.returncode == 1, run.stdout
    assert re.search(r"^  surviving processes +[1-9]", run.stdout, re.MULTILINE), run.stdout
    assert re.fullmatch(r"leaks: [1-9]\d*", run.stdout.splitlines()[-1])


def soaked(*options: str) -> subprocess.CompletedProcess[str]:
    return run_of("soak.py", *options)


def run_of(program: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the soak or the chaos as a user does. ``stdout`` of the result has all that it prints."""
    command = [sys.executable, str(FAULTS / program), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            # End it with SIGTERM, and not with SIGKILL as subprocess.run() does, because it must end its server.
            process.terminate()
            raise
    return subprocess.CompletedProcess(command, process.returncode, output)


# ---------------------------------------------------------------------------- its checks can fail


@pytest.fixture
def wire() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return both ends of a connection: the end of a caller, and the end of a server."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def answer_of(status: int, body: bytes, call_id: str = "c1", length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    return b"HTTP/1.1 %d X\r\nX-Call-Id: %b\r\nContent-Length: %d\r\n\r\n%b" % (status, call_id.encode(), length, body)


def received(wire: tuple[socket.socket, socket.socket], data: bytes) -> Answer:
    ours, theirs = wire
    theirs.sendall(data)
    theirs.close()
    return receive(ours)


WANTED = Wanted(200, frozenset({"ok"}), lambda answer: files_fault("raw", {None: b"abc"}, answer.body))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (answer_of(200, b"abc"), None),
        (answer_of(200, b"abd"), "from byte 2 on"),
        (answer_of(200, b"ab"), "2 bytes instead of 3"),
        (answer_of(200, b"abc", call_id="c2"), "the answer to c2"),
        (answer_of(500, b"abc"), "status 500 instead of 200"),
    ],
)
def test_the_soak_notices_a_wrong_answer(
    wire: tuple[socket.socket, socket.socket], answer: bytes, told: str | None
) -> None:
    found = fault(WANTED, "c1", received(wire, answer))
    if told is None:
        assert found is None
    else:
        assert found is not None
        assert told in found


@pytest.mark.parametrize("document", [b"", b"{}", b'{"status":500,"call_id":"c2"}', b'{"status":504,"call_id":"c1"}'])
def test_the_soak_notices_a_wrong_problem(wire: tuple[socket.socket, socket.socket], document: bytes) -> None:
    assert fault(Wanted(500, frozenset({"failed"})), "c1", received(wire, answer_of(500, document)))


@pytest.mark.parametrize(
    ("data", "how"),
    [
        (b"", "none"),
        (b"HTTP/1.1 20", "none"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "cut"),
        (b"HTTP/1.1 200 OK\r\nX-Call-Id: c1\r\n\r\nabc", "cut"),  # without a length, nobody notices a truncated answer
        (answer_of(200, b"", length=3), "cut"),
        (answer_of(200, b"ab", length=3), "cut"),
    ],
)
def test_the_soak_notices_a_cut_answer(wire: tuple[socket.socket, socket.socket], data: bytes, how: str) -> None:
    with pytest.raises(Lost) as lost:
        received(wire, data)
    assert lost.value.how == how


def zip_of(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target.getvalue()


@pytest.mark.parametrize(
    ("form", "right", "wrong"),
    [
        ("base64", base64.b64encode(b"abc") + b"\n", base64.b64encode(b"abc")),
        ("base64", base64.b64encode(b"abc") + b"\n", base64.b64encode(b"abd") + b"\n"),
        ("zip", zip_of({"a": b"abc"}), zip_of({"a": b"abd"})),
        ("zip", zip_of({"a": b"abc"}), zip_of({"b": b"abc"})),
        ("zip", zip_of({"a": b"abc"}), zip_of({"a": b"abc", "b": b""})),
        ("zip", zip_of({"a": b"abc"}), zip_of({"a": b"abc"})[:-1]),
        ("json", b'{"outputs":[{"name":"a","data":"YWJj"}]}', b'{"outputs":[{"name":"a","data":"YWJk"}]}'),
        ("json", b'{"outputs":[{"name":"a","data":"YWJj"}]}', b'{"outputs":[]}'),
        ("json", b'{"outputs":[{"name":"a","data":"YWJj"}]}', b'{"outputs":[{"name":"a","data":"YWJ'),
    ],
)
def test_the_soak_notices_wrong_files(form: str, right: bytes, wrong: bytes) -> None:
    assert files_fault(form, {"a": b"abc"}, right) is None
    assert files_fault(form, {"a": b"abc"}, wrong)


def test_the_soak_notices_a_surviving_process(lifeline: Lifeline) -> None:
    mark = f"CALL_ID=c1-{os.getpid()}"
    assert not processes_with(mark.encode())
    script = lifeline.script_line + "read line"
    name, _, value = mark.partition("=")
    with subprocess.Popen(["/bin/sh", "-c", script], env={name: value}, stdin=subprocess.PIPE) as process:
        until(lifeline.was_held, "the process to open the lifeline")
        assert processes_with(mark.encode()) == [process.pid]
        assert lifeline.holders() == [process.pid]
        # Other tests of this process may have left it children, too.
        assert [str(process.pid), "sh"] in [child.split()[:2] for child in children(os.getpid())]
        process.communicate(b"end\n")
    assert not processes_with(mark.encode())
    assert str(process.pid) not in [child.split()[0] for child in children(os.getpid())]


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([("c1", "ok"), ("c3", "caller_gone")], None),
        ([("c1", "ok")], None),  # the caller of c3 disconnected, perhaps before the server read the call
        ([], "c1: 0 ends"),
        ([("c1", "ok"), ("c1", "ok")], "c1: ended twice"),
        ([("c1", "failed")], "c1: ended 'failed'"),
        ([("c1", "ok"), ("c2", "bad_input")], "c2: 1 ends"),
        ([("c1", "ok"), ("c9", "ok")], "c9: ended in the log, but nobody called"),
    ],
)
def test_the_soak_notices_what_does_not_fit_in_the_log(events: list[tuple[str, str]], told: str | None) -> None:
    ledger = Ledger()
    ledger.answered("c1", "200", frozenset({"ok"}))
    ledger.answered("c2", "400", frozenset())
    ledger.left("c3", Note(frozenset({"caller_gone"}), 0, 1))
    ledger.event({"event": "call refused", "call_id": "c2", "logger": "server", "level": "warning"})
    for call_id, outcome in events:
        ledger.event({"event": "invocation ended", "call_id": call_id, "outcome": outcome, "logger": "invocation"})
    misfits = ledger.misfits()
    if told is None:
        assert misfits == []
    else:
        assert len(misfits) == 1
        assert told in misfits[0]


@pytest.mark.parametrize(
    "event",
    [
        {"event": "internal error", "level": "error", "logger": "server", "reason": "KeyError()"},
        {"event": "not json", "text": "Traceback (most recent call last):"},
    ],
)
def test_the_soak_notices_an_error_in_the_log(event: dict[str, Any]) -> None:
    ledger = Ledger()
    ledger.event(event)
    assert ledger.bad_events.total() == 1


def state(memory_mib: float = 50.0, blocks: int = 200_000) -> soak.State:
    return soak.State(Counter(), 20, [], memory_mib, blocks, {})


@pytest.mark.parametrize(
    ("after", "rows"),
    [
        (state(), set()),
        (state(memory_mib=50.0 + soak.MOST_GROWTH_MIB, blocks=200_000 + soak.MOST_NEW_BLOCKS), set()),
        (state(memory_mib=50.1 + soak.MOST_GROWTH_MIB), {"memory"}),
        (state(blocks=200_001 + soak.MOST_NEW_BLOCKS), {"objects"}),
    ],
)
def test_the_soak_notices_memory_and_objects_that_stay(after: soak.State, rows: set[str]) -> None:
    leaks = soak._leaks(Ledger(), {}, state(), after, {}, set(), [])
    assert {row for row, found in leaks.items() if found} == rows


# ---------------------------------------------------------------------------- thousands of invocations


CALLERS = 50
# In seconds, for ten thousand calls on a busy machine. An idle machine needs half a minute.
LONGEST_S = 900


def drive(server: RunningServer, calls: int) -> None:
    """Make calls. Each caller uses one connection, and closes it at the end."""

    def caller(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LONGEST_S)
        for serial in range(calls // CALLERS):
            call_id = f"{calls}-{number}-{serial}"
            connection.request("POST", "/", b"QUJD", {"X-Call-Id": call_id})
            response = connection.getresponse()
            body = response.read()
            assert (response.status, body) == (200, base64.b64encode(f"{call_id}\n".encode()) + b"\n")
        connection.close()

    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(caller, range(CALLERS)))


@pytest.mark.slow
@pytest.mark.timeout(LONGEST_S)
@pytest.mark.parametrize("calls", [1_000, pytest.param(9_000, marks=pytest.mark.nightly)])
def test_thousands_of_invocations_fifty_at_a_time(tmp_path: Path, calls: int) -> None:
    server = RunningServer(
        tmp_path,
        'echo "$CALL_ID" > "$TMP_OUTPUT_DIR/out"',
        program=(str(FAULTS / "inspected_server.py"),),
        WATCHDOG_MAX_INFLIGHT=str(CALLERS),
    )
    try:
        sockets = count_of_sockets(server.process.pid)
        drive(server, 1_000)
        before = look(server, sockets)
        drive(server, calls)
        assert_nothing_grew(before, look(server, sockets))
        assert server.stop() == 0
    finally:
        server.kill()
    assert server.leftovers() == []
    ended = Counter(event["outcome"] for event in server.logs if event["event"] == "invocation ended")
    assert ended == {"ok": 1_000 + calls}


# The query of a call says what the function does with its stdin. The callers act accordingly.
CLASSIC = r"""
case $Http_Query in
    whole) cat ;;
    part) head -c 1000 ;;
    none) echo unread ;;
    closed) exec <&-; echo closed ;;
    failing) cat; echo last words >&2; exit 3 ;;
    forked) exec 3<&0; cat <&3 & wait ;;
    gone) touch "$MARKS/$CALL_ID"; cat ;;
esac
"""


def drive_classic(server: RunningServer, marks: Path, calls: int) -> None:
    """Call a classic function that reads all, a part or nothing of its stdin. Some callers disconnect meanwhile."""
    kinds = ("whole", "part", "none", "closed", "failing", "forked", "gone")

    def gone(call_id: str) -> None:
        with server.connect() as sock:
            head = f"POST /?gone HTTP/1.1\r\nHost: x\r\nX-Call-Id: {call_id}\r\nContent-Length: 90000\r\n\r\n"
            sock.sendall(head.encode() + b"x" * 500)
            until((marks / call_id).exists, "the function to start")

    def caller(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LONGEST_S)
        for serial in range(calls // CALLERS):
            kind = kinds[(number + serial) % len(kinds)]
            call_id = f"{calls}-{number}-{serial}"
            if kind == "gone":
                gone(call_id)
                continue
            body = f"{call_id}\n".encode() * (1 if serial % 3 else 9_000)
            pieces = [body[:10], body[10:]]
            is_chunked = serial % 2 == 1
            connection.request(
                "POST", f"/?{kind}", pieces if is_chunked else body, {"X-Call-Id": call_id}, encode_chunked=is_chunked
            )
            response = connection.getresponse()
            wanted = {"part": body[:1000], "none": b"unread\n", "closed": b"closed\n"}.get(kind, body)
            if kind == "failing":
                wanted = b"exit status 3\n" + body + b"last words\n"
            assert (response.status, response.read()) == (500 if kind == "failing" else 200, wanted), (kind, call_id)
        connection.close()

    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(caller, range(CALLERS)))


@pytest.mark.slow
@pytest.mark.timeout(LONGEST_S)
@pytest.mark.parametrize("calls", [700, pytest.param(2_100, marks=pytest.mark.nightly)])
def test_thousands_of_classic_calls_fifty_at_a_time(tmp_path: Path, calls: int) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    (tmp_path / "function").write_text(CLASSIC)
    server = RunningServer(
        tmp_path / "server",
        None,
        program=(str(FAULTS / "inspected_server.py"),),
        WATCHDOG_FPROCESS=f"sh {tmp_path}/function",
        WATCHDOG_MAX_INFLIGHT=str(CALLERS),
        MARKS=str(marks),
    )
    try:
        sockets = count_of_sockets(server.process.pid)
        drive_classic(server, marks, calls)
        before = look(server, sockets)
        drive_classic(server, marks, 2 * calls)
        assert_nothing_grew(before, look(server, sockets))
        assert server.stop() == 0
    finally:
        server.kill()
    assert server.leftovers() == []
    assert {event["level"] for event in server.logs if event["event"] == "internal error"} == set()
    ended = Counter(event["outcome"] for event in server.logs if event["event"] == "invocation ended")
    of_each_kind = 3 * calls // 7
    assert ended == {"ok": 5 * of_each_kind, "failed": of_each_kind, "caller_gone": of_each_kind}


# ---------------------------------------------------------------------------- objects, by the kind of call


# The first word of the query says what the script does.
FAULTY = r"""
case ${Http_Query%%&*} in
    copy) cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/copy" ;;
    exit) echo last words >&2; exit 3 ;;
    signal) kill -KILL $$ ;;
    hang) sleep 60 ;;
    daemon) (setsid sleep 60 > /dev/null 2>&1 &) ;;
    large) truncate -s 2M "$TMP_OUTPUT_DIR/large" ;;
    gone) echo "$CALL_ID" > "$MARK"; sleep 60 ;;
esac
"""


def gone_while_sending(server: RunningServer) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /?copy HTTP/1.1\r\nHost: x\r\nContent-Length: 400000\r\n\r\n" + b"QUJD" * 30_000)


def gone_while_running(server: RunningServer) -> None:
    mark = server.script.parent / "mark"
    with server.connect() as sock:
        sock.sendall(b"POST /?gone HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nQUJD")
        until(mark.exists, "the script to start")
    mark.unlink()


def answered(status: int, query: str, body: bytes = b"QUJD", **headers: str) -> Callable[[RunningServer], None]:
    def call(server: RunningServer) -> None:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        assert server.call(body, f"/?{query}", headers=sent).status == status

    return call


KINDS = {
    "large": answered(200, "copy&input=raw", bytes(200_000)),
    "exit": answered(500, "exit"),
    "signal": answered(500, "signal"),
    "timeout": answered(504, "hang", X_Timeout="50ms"),
    "daemon": answered(200, "daemon"),
    "large-output": answered(500, "large"),
    "bad-input": answered(400, "copy", b"QUJD" * 50_000 + b"*"),
    "too-large": answered(413, "copy&input=raw", bytes(1_100_000)),
    "bad-header": answered(400, "copy", X_Timeout="soon"),
    "no-form": answered(406, "copy", Accept="*/*;q=0"),
    "gone-while-sending": gone_while_sending,
    "gone-while-running": gone_while_running,
}
CALLS_OF_A_KIND = 80
ROUNDS = 3
# Pieces of memory. An object that a call leaves by mistake (its headers, a future, a task) has ten or more pieces. The
# measurement itself leaves 40. asyncio keeps up to 100 cancelled timers, of three pieces each, until it removes them
# all.
MOST_BLOCKS_OF_A_CALL = 6


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS.keys())
def test_calls_of_each_kind_leave_no_object(start_server: StartServer, tmp_path: Path, kind: str) -> None:
    closed_memory = () if os.geteuid() == 0 else ("--without", "hidden-memory")
    program = (str(FAULTS / "inspected_server.py"), *closed_memory)
    assert blocks_left_by_a_call(start_server, tmp_path, kind, program=program) < MOST_BLOCKS_OF_A_CALL


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.guard("finished-work")
def test_work_of_threads_is_forgotten_when_it_is_done(
    start_server: StartServer, tmp_path: Path, removed_guard: str | None
) -> None:
    # With a removed guard, the fixture starts a program that can be inspected, too.
    program = {} if removed_guard else {"program": (str(FAULTS / "inspected_server.py"), "--without", "hidden-memory")}
    assert blocks_left_by_a_call(start_server, tmp_path, "large", **program) < MOST_BLOCKS_OF_A_CALL


def blocks_left_by_a_call(start_server: StartServer, directory: Path, kind: str, **program: Any) -> float:
    """Return how many pieces of memory a call of this kind leaves in the server.

    Objects are counted, because the memory in MiB would not show so few.
    """
    server = start_server(
        FAULTY,
        MARK=str(directory / "server-0" / "mark"),
        WATCHDOG_MAX_INPUT_SIZE="1000000",
        WATCHDOG_MAX_OUTPUT_SIZE="1000000",
        **program,
    )
    sockets = count_of_sockets(server.process.pid)
    blocks: list[int] = []
    for _ in range(ROUNDS):
        for _ in range(CALLS_OF_A_KIND):
            KINDS[kind](server)
        blocks.append(look(server, sockets)["blocks"])
    growth = [later - earlier for earlier, later in itertools.pairwise(blocks)]
    print(f"more blocks of memory: {growth}")
    # Objects that the first calls leave for ever, such as a thread, are in one round. Objects that each call leaves are
    # in every round.
    return min(growth) / CALLS_OF_A_KIND


def look(server: RunningServer, sockets: int) -> dict[str, Any]:
    """Return what a server has when it is idle."""
    pid = server.process.pid
    until(lambda: not children(pid), "the children to be reaped")
    until(lambda: not server.leftovers_of_calls(), "the workspaces to be removed")
    until(lambda: count_of_sockets(pid) == sockets, "the connections to be closed")
    server.signal(signal.SIGUSR2)
    return server.event("inspected") | {
        "rss_mib": server.memory_mib("VmRSS"),
        "descriptors": sorted(name.partition(":[")[0] for name in descriptors(pid)),
        "threads": threads(pid),
    }


def assert_nothing_grew(before: dict[str, Any], after: dict[str, Any]) -> None:
    print(f"before: {before}\nafter: {after}")
    assert after["descriptors"] == before["descriptors"]
    assert after["threads"] <= max(before["threads"], MOST_THREADS)
    assert (after["tasks"], after["names"]) == (before["tasks"], before["names"])
    assert after["blocks"] <= before["blocks"] + soak.MOST_NEW_BLOCKS, (before["objects"], after["objects"])
    assert after["rss_mib"] <= before["rss_mib"] + 3, (before["objects"], after["objects"])


def count_of_sockets(pid: int) -> int:
    return sum(name.startswith("socket:") for name in descriptors(pid))
