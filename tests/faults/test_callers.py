"""Callers that disconnect, and slow callers. They do not slow down other callers, and nothing of them is left."""

from __future__ import annotations

import contextlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lifeline import Lifeline
from running_server import RunningServer, StartServer, read_all, until

from watchdog.system.tcp import is_readable

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nX-Call-Id: gone\r\n\r\n"
WAIT = "touch $HANDSHAKE/up-$CALL_ID; until [ -e $HANDSHAKE/go ]; do sleep 0.02; done; echo done\n"


def assert_nothing_is_left(server: RunningServer, lifeline: Lifeline) -> None:
    assert not lifeline.is_held()
    server.script.write_text("echo fine")
    assert server.call(b"").body == b"fine\n"
    server.stop()
    assert server.leftovers() == []


def test_gone_while_it_sends(start_server: StartServer, lifeline: Lifeline, free_port: int) -> None:
    server = start_server(
        lifeline.script_line + "echo never", WATCHDOG_READ_TIMEOUT="60", WATCHDOG_METRICS_PORT=str(free_port)
    )
    with server.connect() as sock:
        sock.sendall(HEAD % 100 + b"QUJD")
        server.await_bodies()
    server.event("invocation ended", call_id="gone", outcome="caller_gone")
    assert not lifeline.was_held()
    assert_nothing_is_left(server, lifeline)


@pytest.mark.guard("disconnect", never="the event 'invocation ended'")
def test_gone_while_it_waits_never_starts_its_script(
    start_server: StartServer, lifeline: Lifeline, tmp_path: Path, free_port: int
) -> None:
    server = start_server(
        lifeline.script_line + WAIT,
        HANDSHAKE=str(tmp_path),
        WATCHDOG_MAX_INFLIGHT="1",
        WATCHDOG_METRICS_PORT=str(free_port),
    )
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(server.call, b"", headers={"X-Call-Id": "other"})
        until((tmp_path / "up-other").exists, "the other script")
        with server.connect() as sock:
            sock.sendall(HEAD % 0)
            server.await_waiting()
        server.event("invocation ended", call_id="gone", outcome="caller_gone")
        (tmp_path / "go").touch()
        assert other.result().body == b"done\n"
    assert not (tmp_path / "up-gone").exists()
    assert_nothing_is_left(server, lifeline)


@pytest.mark.guard("disconnect", never="the event 'invocation ended'")
@pytest.mark.parametrize("end", ["closed", "reset"])
def test_gone_while_the_script_runs(start_server: StartServer, lifeline: Lifeline, tmp_path: Path, end: str) -> None:
    script = f"{lifeline.script_line}setsid sleep 60 & trap '' TERM; {WAIT}"
    server = start_server(script, HANDSHAKE=str(tmp_path), WATCHDOG_KILL_GRACE="300ms")
    with server.connect() as sock:
        sock.sendall(HEAD % 0)
        until((tmp_path / "up-gone").exists, "the script")
        if end == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    server.event("invocation ended", call_id="gone", outcome="caller_gone")
    assert_nothing_is_left(server, lifeline)


def test_gone_before_the_answer_is_given_to_the_kernel(start_server: StartServer, tmp_path: Path) -> None:
    """The server does not read from this connection, so it does not notice at once that the caller is gone."""
    server = start_server(WAIT, HANDSHAKE=str(tmp_path))
    with server.connect() as sock:
        sock.sendall(HEAD % 0 * 2)
        until((tmp_path / "up-gone").exists, "the script")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    (tmp_path / "go").touch()
    server.event("invocation ended", call_id="gone", outcome="caller_gone")


@pytest.mark.parametrize("form", ["base64", "raw", "zip", "json"])
def test_gone_while_the_answer_is_sent(start_server: StartServer, lifeline: Lifeline, form: str) -> None:
    server = start_server(lifeline.script_line + "head -c 60000000 /dev/zero > $TMP_OUTPUT_DIR/x")
    with server.connect() as sock:
        sock.sendall(HEAD.replace(b"/ ", b"/?output=%b " % form.encode()) % 0)
        assert sock.recv(1000)
    event = server.event("invocation ended", call_id="gone", outcome="caller_gone")
    assert event["output_bytes"] < 60_000_000
    assert_nothing_is_left(server, lifeline)


@pytest.mark.parametrize(("calls", "size"), [(1, 300_000), (8, 60_000)])
def test_gone_while_the_last_part_of_the_answer_is_sent(
    start_server: StartServer, lifeline: Lifeline, free_port: int, calls: int, size: int
) -> None:
    """The server gives an answer of this size to the kernel at once, but the kernel takes only a part."""
    script = f"{lifeline.script_line}head -c {size} /dev/zero > $TMP_OUTPUT_DIR/x"
    server = start_server(script, WATCHDOG_METRICS_PORT=str(free_port))
    with socket.socket() as sock:
        # With small segments, the kernel has small buffers for both sides.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(server.patience_s)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(HEAD.replace(b"/ ", b"/?output=raw ") % 0 * calls)
        assert sock.recv(2000, socket.MSG_WAITALL)  # more than the headers

        def waits_for_the_caller() -> bool:
            """Whether the same answer is being sent before and after a request for metrics."""
            before = server.metric("watchdog_output_bytes_total")
            is_sent = server.metric("watchdog_answers") == 1
            return is_sent and server.metric("watchdog_output_bytes_total") == before

        until(waits_for_the_caller, "the server to wait for the caller")
    server.event("invocation ended", call_id="gone", outcome="caller_gone")
    until(lambda: server.metric('http_requests_total{code="499",method="POST"}') == 1, "the call to be counted")
    assert_nothing_is_left(server, lifeline)


@pytest.mark.guard("write-timer", never="the connection to be closed")
@pytest.mark.parametrize("what", ["a long answer", "short answers", "refusals", "probes"])
def test_a_caller_that_never_reads_is_cut_off(start_server: StartServer, what: str) -> None:
    """This is also true of many short answers: pipelined calls can make as many bytes as one long answer."""
    server = start_server("head -c ${Http_X_Size:-2} /dev/zero", WATCHDOG_WRITE_TIMEOUT="500ms")
    request = {
        "a long answer": b"POST / HTTP/1.1\r\nHost: x\r\nX-Size: 50000000\r\nContent-Length: 0\r\n\r\n",
        "short answers": b"POST / HTTP/1.1\r\nHost: x\r\nX-Size: 60000\r\nContent-Length: 0\r\n\r\n" * 200,
        "refusals": b"POST /?output=%b HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" % (b"z" * 7000) * 1500,
        "probes": b"GET /_/health HTTP/1.1\r\nHost: x\r\n\r\n" * 150_000,
    }[what]
    before = server.descriptors_at_rest()
    with server.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        until(lambda: server.descriptors() > before, "the connection")
        sock.setblocking(False)
        sent = 0

        def is_cut_off() -> bool:
            nonlocal sent
            try:
                while sent < len(request):
                    sent += sock.send(request[sent : sent + 65536])
            except BlockingIOError:
                pass
            except OSError:
                return True
            return len(request) == sent and server.descriptors() <= before

        until(is_cut_off, "the connection to be closed")
        until(lambda: server.descriptors() <= before, "the descriptors to be closed")
    if what == "a long answer":
        event = server.event("invocation ended", outcome="caller_gone")
        assert event["reason"] == "the caller read nothing for 0.5 s (write_timeout)"
    assert server.call(b"").status == 200


# Values of write_timeout or read_timeout. If a slow machine does not run a caller for the whole time, the server cuts
# it off. Then the test tries the next value.
LIMITS_S = (3, 6, 12, 24)


def test_a_slow_but_steady_caller_is_not_cut_off(start_server: StartServer) -> None:
    def is_read(limit_s: int) -> bool:
        size_bytes = limit_s * 1_000_000
        return is_read_whole(start_server, limit_s, size_bytes, buffer_bytes=65_536, piece_bytes=40_000, pause_s=0.04)

    assert any(map(is_read, LIMITS_S))


def test_a_caller_that_reads_a_few_bytes_now_and_then_is_not_cut_off(start_server: StartServer) -> None:
    """The window of the caller is usually full. Each pause is shorter than write_timeout, but their sum is not."""

    def is_read(limit_s: int) -> bool:
        size_bytes = limit_s * 230_000
        return is_read_whole(start_server, limit_s, size_bytes, buffer_bytes=30_000, piece_bytes=60_000, pause_s=0.4)

    assert any(map(is_read, LIMITS_S))


def is_read_whole(
    start_server: StartServer, limit_s: int, size_bytes: int, *, buffer_bytes: int, piece_bytes: int, pause_s: float
) -> bool:
    """Read an answer slowly, for longer than ``limit_s``, the write_timeout. Return whether all of it came."""
    script = f"head -c {size_bytes} /dev/zero > $TMP_OUTPUT_DIR/x"
    server = start_server(script, WATCHDOG_WRITE_TIMEOUT=f"{limit_s}s")
    with socket.socket() as sock:
        # With small segments, the kernel has a small buffer for the answer. It would hold all of it otherwise.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        sock.settimeout(RunningServer.patience_s)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(b"POST /?output=raw HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(piece_bytes, socket.MSG_WAITALL):
                received += len(piece)
                time.sleep(pause_s)  # this makes the caller slow
    return received > size_bytes and server.event("invocation ended")["outcome"] == "ok"


@pytest.mark.guard("body-timer", never="the connection was not closed")
def test_a_caller_that_stops_sending_gets_an_answer(start_server: StartServer) -> None:
    server = start_server("echo never", WATCHDOG_READ_TIMEOUT="300ms")
    assert server.raw(HEAD % 100 + b"QUJD").startswith(b"HTTP/1.1 408 ")
    server.event("invocation ended", call_id="gone", outcome="caller_silent")
    server.stop()
    assert server.leftovers() == []


def test_a_slow_sender_delays_no_other_call(start_server: StartServer, free_port: int) -> None:
    """A call counts when it arrives, and gets its place when its input is complete."""
    server = start_server(
        'cat "$INPUT_FILE_PATH"',
        WATCHDOG_MAX_INFLIGHT="1",
        WATCHDOG_MAX_QUEUE="5",
        WATCHDOG_METRICS_PORT=str(free_port),
    )
    slow = [server.connect() for _ in range(4)]
    for sock in slow:
        sock.sendall(HEAD % 8 + b"QUJD")
    server.await_bodies(4)
    for _ in range(3):
        assert server.call(b"aGk=").body == b"hi"
    for sock in slow:
        with sock:
            sock.sendall(b"REVG")
            sock.shutdown(socket.SHUT_RD)
    server.stop()
    assert server.leftovers() == []


def test_no_bytes_of_one_call_reach_another(start_server: StartServer) -> None:
    script = (
        "#!/bin/bash\n"
        "sleep 0.0$((RANDOM % 5)); ls $TMP_INPUT_DIR | wc -l; cat $INPUT_FILE_PATH; echo; echo $Http_X_Mine $CALL_ID"
    )
    server = start_server(script, WATCHDOG_MAX_INFLIGHT="8", WATCHDOG_MAX_QUEUE="100")

    def one(n: int) -> None:
        headers = {"X-Mine": f"m{n}", "X-Call-Id": f"id{n}", "Content-Type": "x/y"}
        answer = server.call(f"body{n}".encode(), headers=headers)
        assert answer.body.decode() == f"1\nbody{n}\nm{n} id{n}\n"

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(100)))
    server.stop()
    assert server.leftovers() == []


def test_half_closed_counts_as_gone(start_server: StartServer, tmp_path: Path) -> None:
    """As the docs say: to the server, it looks like a caller that has disconnected."""
    server = start_server(WAIT, HANDSHAKE=str(tmp_path))
    with server.connect() as sock:
        sock.sendall(HEAD % 0)
        until((tmp_path / "up-gone").exists, "the script")
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""
    server.event("invocation ended", call_id="gone", outcome="caller_gone")


@pytest.mark.guard("stdin-left-open")
def test_half_a_body_is_never_complete_for_a_classic_function(start_server: StartServer, tmp_path: Path) -> None:
    got, whole = tmp_path / "got", tmp_path / "whole"
    function = f"sh -c 'read -r line; echo >{got}; cat; echo >{whole}'"

    def is_read_before_the_silence(limit_s: int) -> bool:
        """Whether the function had begun to read when the server noticed the silence."""
        got.unlink(missing_ok=True)
        server = start_server(WATCHDOG_FPROCESS=function, WATCHDOG_READ_TIMEOUT=str(limit_s))
        with server.connect() as sock:
            sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\nhalf\n")
            # The caller is not silent until the function reads, however long the start of the function takes.
            until(lambda: sock.send(bytes(1000)) and (got.exists() or is_readable(sock)), "the function to read")
            has_read = got.exists()
            assert b" 408 " in read_all(sock).partition(b"\r\n")[0]
        assert server.event("invocation ended")["outcome"] == "caller_silent"
        return has_read

    assert any(map(is_read_before_the_silence, LIMITS_S))
    assert not whole.exists()
