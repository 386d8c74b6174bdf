"""Callers that send or read very slowly: they do not take the room of other calls."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from guards import changed_program
from running_server import Answer, RunningServer, StartServer, free_port, is_whole, problem, read_answer, until

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
SMALL = {"WATCHDOG_MAX_INFLIGHT": "2", "WATCHDOG_MAX_QUEUE": "2"}
EMPTY_CALL = b"POST /?output=raw HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
# Much more than the buffers of both systems hold.
LARGE_OUTPUT = "head -c 20000000 /dev/zero > $TMP_OUTPUT_DIR/x"


# With a shorter time, on a slow machine, the first of several slow readers would be judged before the last one has
# connected.
PATIENT = "from watchdog.http import response; replace(response, '_JUDGED_AFTER_S', 1e6)"
# With this, a call takes the place of a slow caller much sooner than a test without the guard stops waiting for it.
HASTY = """
from watchdog.http import response
from watchdog.invocation import admission
replace(response, '_JUDGED_AFTER_S', 0.5)
replace(admission, '_WAIT_FOR_SLOW_S', 0.5)
replace(admission, '_LOOK_AGAIN_S', 0.1)
"""
# Callers of this server count as slow as soon as a file exists.
SLOW_FROM_NOW_ON = """
import os
from watchdog.invocation.pace import Pace
replace(Pace, "may_be_given_up", property(lambda pace: not pace.is_given_up and os.path.exists({file!r})))
"""
# The readers are silent until the last of them has connected.
SILENT_READERS = SMALL | {"WATCHDOG_WRITE_TIMEOUT": "300s"}


@contextlib.contextmanager
def slow_senders(server: RunningServer, count: int) -> Iterator[list[socket.socket]]:
    """Send the head of a call and one byte of its body on each connection. Wait until all calls have entered."""
    with contextlib.ExitStack() as stack:
        senders = [stack.enter_context(server.connect()) for _ in range(count)]
        for sock in senders:
            sock.sendall(HEAD + b"Q")
        server.await_bodies(count)
        yield senders


def connect_slow_reader(server: RunningServer, request: bytes = EMPTY_CALL) -> socket.socket:
    """Return a connection whose answer has begun, and on which nothing more is read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(server.patience_s)
    sock.connect(("127.0.0.1", server.port))
    sock.sendall(request)
    assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
    return sock


@pytest.mark.guard("room-of-slow-callers", never="the server to be ready")
def test_the_slowest_sender_makes_room_for_a_call(start_server: StartServer) -> None:
    metrics_port = free_port()
    server = start_server('cat "$INPUT_FILE_PATH"', **SMALL, WATCHDOG_METRICS_PORT=str(metrics_port))
    with slow_senders(server, 4) as senders:
        assert server.metric("watchdog_bodies_awaited") == 4
        # Until the server has waited for them for half a second, it is not known that they are slow.
        until(lambda: server.call(None, "/_/ready", "GET").status == 200, "the server to be ready")
        assert server.call(b"aGk=").body == b"hi"
        refused = server.event("invocation ended", outcome="overloaded")
        assert "while another call needed its place" in refused["reason"]
        assert server.metric('watchdog_callers_given_up_total{direction="body"}') == 1
        # The slowest sender is the first one. The server keeps the others, because there is room again.
        answer = read_answer(senders[0])
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"\r\nRetry-After: " in answer
        server.await_bodies(3)
    server.stop()
    assert server.leftovers() == []


def test_calls_take_the_whole_queue_from_slow_senders(start_server: StartServer, tmp_path: Path) -> None:
    script = 'touch $HANDSHAKE/up-$CALL_ID; until [ -e $HANDSHAKE/go ]; do sleep 0.02; done; cat "$INPUT_FILE_PATH"'
    server = start_server(script, **SMALL, HANDSHAKE=str(tmp_path), WATCHDOG_METRICS_PORT=str(free_port()))

    def call_until_accepted() -> Answer:
        answers: list[Answer] = []

        def is_accepted() -> bool:
            answers.append(server.call(b"aGk="))
            return answers[-1].status != 429

        # Until the server has waited for a sender for half a second, it is not known that the sender is slow.
        until(is_accepted, "a slow sender")
        return answers[-1]

    with slow_senders(server, 4) as senders, ThreadPoolExecutor(4) as pool:
        calls = []
        for number in range(4):
            calls.append(pool.submit(call_until_accepted))
            assert read_answer(senders[number]).startswith(b"HTTP/1.1 429 ")
        (tmp_path / "go").touch()
        assert [call.result().body for call in calls] == [b"hi"] * 4


ONE_PLACE = {"WATCHDOG_MAX_INFLIGHT": "1", "WATCHDOG_QUEUE_TIMEOUT": "1h"}
# With this number of outputs, the call keeps its place until it is answered.
MANY_OUTPUTS = 'for i in $(seq 17); do head -c 1000000 /dev/zero > "$TMP_OUTPUT_DIR/$i"; done'


@contextlib.contextmanager
def steadily(step: Callable[[], object]) -> Iterator[None]:
    """Repeat a step in a thread, with a pause that makes a caller slow, until its connection ends or this context."""
    is_over = threading.Event()

    def repeat() -> None:
        with contextlib.suppress(OSError):
            while not is_over.wait(0.2):
                step()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@pytest.mark.guard("place-of-slow-callers", never="no answer came", never_s=5)
def test_a_slow_reader_does_not_keep_the_only_place(start_server: StartServer, removed_guard: str | None) -> None:
    program, metrics_port = changed_program(HASTY, removed_guard), free_port()
    server = start_server(MANY_OUTPUTS, program=program, **ONE_PLACE, WATCHDOG_METRICS_PORT=str(metrics_port))
    request = EMPTY_CALL.replace(b"output=raw", b"output=zip")
    with connect_slow_reader(server, request) as sock, steadily(lambda: sock.recv(200)):
        assert server.call(b"").status == 200
        gone = server.event("invocation ended", outcome="caller_gone")
        assert "while another call needed its place" in gone["reason"]
        assert server.metric('watchdog_callers_given_up_total{direction="answer"}') == 1
    server.stop()
    assert server.leftovers() == []


@pytest.mark.guard("place-of-long-lists", never="1 calls to wait")
def test_calls_with_very_many_outputs_keep_their_places_until_they_are_answered(start_server: StartServer) -> None:
    """The list of the outputs takes memory, so only calls with a place may have such a list."""
    script = """
[ "$Http_Query" = output=zip ] || { echo fine; exit; }
head -c 10000 /dev/zero >"$TMP_OUTPUT_DIR/x"
cd "$TMP_OUTPUT_DIR"
seq 1100 | xargs -n 100 sh -c 'for i; do ln x $i; done' sh
"""
    metrics = {"WATCHDOG_METRICS_PORT": str(free_port())}
    server = start_server(script, WATCHDOG_MAX_INFLIGHT="2", WATCHDOG_QUEUE_TIMEOUT="1h", **metrics)
    request = EMPTY_CALL.replace(b"output=raw", b"output=zip")
    with ThreadPoolExecutor() as pool, connect_slow_reader(server, request) as first:
        with connect_slow_reader(server, request):
            other = pool.submit(server.call, b"")
            server.await_waiting()
        assert other.result().body == b"fine\n"
        assert first.recv(100)


@pytest.mark.guard("place-of-slow-callers", never="no answer came", never_s=5)
def test_a_slow_sender_to_a_classic_function_does_not_keep_the_only_place(
    start_server: StartServer, removed_guard: str | None
) -> None:
    program, metrics = changed_program(HASTY, removed_guard), {"WATCHDOG_METRICS_PORT": str(free_port())}
    server = start_server(None, program=program, **ONE_PLACE, fprocess="cat", **metrics)
    with slow_senders(server, 1) as (sock,), steadily(lambda: sock.sendall(b"x" * 100)):
        assert server.call(b"hi").body == b"hi"
        refused = server.event("invocation ended", outcome="overloaded")
        assert "while another call needed its place" in refused["reason"]
        assert read_answer(sock).startswith(b"HTTP/1.1 429 ")
        assert server.metric('watchdog_callers_given_up_total{direction="body"}') == 1


def test_a_slow_caller_keeps_its_place_while_nobody_else_needs_it(start_server: StartServer) -> None:
    server = start_server(None, **ONE_PLACE, fprocess="cat")
    with server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n")
        for _ in range(40):
            sock.sendall(b"x")
            time.sleep(0.15)  # this makes the caller slow, for longer than another call would wait
        assert read_answer(sock).startswith(b"HTTP/1.1 200 ")


# The minimum rate applies to five seconds or more. With a longer value, these tests would take longer.
LONGEST_SILENCE = "5s"


@pytest.mark.guard("min-data-rate", never="the slow body to be refused", never_s=10)
def test_a_body_below_the_minimum_rate_is_answered_408(start_server: StartServer) -> None:
    server = start_server("echo never", WATCHDOG_READ_TIMEOUT=LONGEST_SILENCE)
    with server.connect() as sock:

        def is_refused() -> bool:
            try:
                return bool(sock.recv(1, socket.MSG_PEEK))
            except TimeoutError:
                sock.sendall(b"Q")
                return False

        sock.sendall(HEAD)
        sock.settimeout(0.2)  # the slowness itself
        until(is_refused, "the slow body to be refused")
        sock.settimeout(server.patience_s)
        answer = read_answer(sock)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"min_data_rate" in answer
    event = server.event("invocation ended", outcome="caller_silent")
    assert "bytes of the body arrived in 5 s, less than 240 a second" in event["reason"]


@pytest.mark.guard("min-data-rate")
def test_an_answer_that_is_taken_below_the_minimum_rate_is_cut(start_server: StartServer) -> None:
    server = start_server(LARGE_OUTPUT, WATCHDOG_WRITE_TIMEOUT=LONGEST_SILENCE, WATCHDOG_MIN_DATA_RATE="10M")
    with connect_slow_reader(server) as sock, contextlib.suppress(ConnectionResetError):
        for _ in range(200):
            sock.recv(30_000)
            time.sleep(0.05)  # the slowness itself
    event = server.event("invocation ended", outcome="caller_gone")
    assert "less than 10000000 a second (min_data_rate)" in event["reason"]


@pytest.mark.guard("answers-counted")
def test_answers_to_slow_readers_are_bounded(start_server: StartServer, removed_guard: str | None) -> None:
    metrics_port = free_port()
    program = changed_program(PATIENT, removed_guard)
    server = start_server(LARGE_OUTPUT, program=program, **SILENT_READERS, WATCHDOG_METRICS_PORT=str(metrics_port))
    with contextlib.ExitStack() as stack:
        # Twice the number of calls that may be inside (max_inflight + max_queue).
        for _ in range(8):
            stack.enter_context(connect_slow_reader(server))
        assert server.metric("watchdog_answers") == 8
        assert server.metric("watchdog_answer_bytes") == 8 * 20_000_000
        detail = problem(server.call(b""), 429)["detail"]
        assert "8 answers are still being sent" in str(detail)
        assert server.call(None, "/_/ready", "GET").status == 429


def test_the_slowest_of_too_many_readers_makes_room(start_server: StartServer) -> None:
    metrics_port = free_port()
    server = start_server(LARGE_OUTPUT, **SILENT_READERS, WATCHDOG_METRICS_PORT=str(metrics_port))
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(connect_slow_reader(server))
        # Until the server has waited for them for five seconds, it is not known that they are slow.
        until(lambda: server.call(None, "/_/ready", "GET").status == 200, "the server to be ready")
        assert is_whole(server.raw(EMPTY_CALL.replace(b"Host", b"Connection: close\r\nHost")))
        gone = server.event("invocation ended", outcome="caller_gone")
        assert "while another call needed its place" in gone["reason"]
        assert server.metric('watchdog_callers_given_up_total{direction="answer"}') == 1
    server.stop()
    assert server.leftovers() == []


@pytest.mark.guard("answer-bytes")
def test_answers_to_slow_readers_leave_half_of_the_disk(
    start_server: StartServer, tmp_path: Path, removed_guard: str | None
) -> None:
    assert os.geteuid() == 0, "this test mounts a small file system and must be root"
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(disk)], check=True)
    with contextlib.ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", "--lazy", str(disk)], check=True)
        slow = tmp_path / "slow"
        program = changed_program(SLOW_FROM_NOW_ON.format(file=str(slow)), removed_guard)
        server = start_server(LARGE_OUTPUT, program=program, **SILENT_READERS, WATCHDOG_TMP_DIR=str(disk))
        with connect_slow_reader(server), connect_slow_reader(server):
            detail = problem(server.call(b""), 429)["detail"]
            assert "40000000 bytes, more than is free in tmp_dir" in str(detail)
            slow.touch()
            until(lambda: server.call(None, "/_/ready", "GET").status == 200, "the server to be ready")
            assert server.call(b"").status == 200
