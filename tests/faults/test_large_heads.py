"""The limit for the first line and the headers of a request together, and the answer above this limit."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess

import pytest
from running_server import RunningServer, StartServer, free_port, read_all, read_answer, until

from watchdog.http.request_head import MOST_HEAD_BYTES, MOST_HEADERS

START = b"GET /%b HTTP/1.1\r\n"
END = b"Host: x\r\nConnection: close\r\n\r\n"
# Prints how much of the header and of the query arrived.
LENGTHS = 'printf "%s %s" "${#Http_X}" "${#Http_Query}"'
# The empty line at the end does not count.
JUST_ALLOWED = MOST_HEAD_BYTES - len(START % b"" + b"X: \r\n" + END.removesuffix(b"\r\n"))


def document_in(answer: bytes, status: int) -> dict[str, object]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), head
    assert b"\r\nConnection: close\r\n" in head
    assert b"\r\nContent-Type: application/problem+json\r\n" in head
    document: dict[str, object] = json.loads(body)
    assert document["status"] == status
    assert str(MOST_HEAD_BYTES) in str(document["detail"])
    return document


def sent_in_pieces(server: RunningServer, request: bytes, piece_bytes: int) -> bytes:
    with server.connect() as sock:
        for at in range(0, len(request), piece_bytes):
            sock.sendall(request[at : at + piece_bytes])
        return read_all(sock)


def with_header(value_bytes: int) -> bytes:
    return START % b"" + b"X: " + b"x" * value_bytes + b"\r\n" + END


PIECES = pytest.mark.parametrize("piece_bytes", [1000, 1 << 20], ids=["in pieces", "at once"])


@PIECES
def test_a_head_of_just_the_limit_is_served(shared_server: StartServer, piece_bytes: int) -> None:
    server = shared_server(LENGTHS)
    request = with_header(JUST_ALLOWED)
    assert len(request) == MOST_HEAD_BYTES + len(b"\r\n")
    assert sent_in_pieces(server, request, piece_bytes).endswith(f"\r\n\r\n{JUST_ALLOWED} 0".encode())


@pytest.mark.parametrize("size_bytes", [9_000, 60_000])
def test_a_long_query_is_served(shared_server: StartServer, size_bytes: int) -> None:
    answer = shared_server(LENGTHS).call(b"", "/?" + "q" * size_bytes)
    assert answer.body == f"0 {size_bytes}".encode()


@PIECES
@pytest.mark.guard("header-limits")
def test_a_header_over_the_limit_is_431(shared_server: StartServer, piece_bytes: int) -> None:
    server = shared_server(LENGTHS)
    document = document_in(sent_in_pieces(server, with_header(JUST_ALLOWED + 1), piece_bytes), 431)
    assert document["title"] == "Request headers too large"
    assert server.call(b"").status == 200


@PIECES
@pytest.mark.guard("header-limits")
def test_many_headers_over_the_limit_together_are_431(shared_server: StartServer, piece_bytes: int) -> None:
    many = b"".join(b"X-%d: %b\r\n" % (number, b"y" * 100) for number in range(1000))
    document_in(sent_in_pieces(shared_server(LENGTHS), START % b"" + many + END, piece_bytes), 431)


@PIECES
@pytest.mark.parametrize("status", [431, 414])
def test_a_refused_head_request_is_answered_without_a_body_and_logged(
    start_server: StartServer, piece_bytes: int, status: int
) -> None:
    server = start_server(LENGTHS)
    request = with_header(JUST_ALLOWED + 1) if status == 431 else START % (b"a" * MOST_HEAD_BYTES) + END
    head, _, body = sent_in_pieces(server, request.replace(b"GET", b"HEAD", 1), piece_bytes).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert body == b""
    server.stop()
    (event,) = [event for event in server.logs if event["event"] == "request refused"]
    assert (event["level"], event["status"]) == ("warning", status)
    assert "xxx" not in json.dumps(event)


def test_a_thousand_short_headers_are_served(shared_server: StartServer) -> None:
    many = b"".join(b"X-%d: y\r\n" % number for number in range(1000))
    assert b"HTTP/1.1 200 OK" in shared_server(LENGTHS).raw(START % b"" + many + END)


def short_headers(count: int) -> bytes:
    return b"".join(b"%x:\r\n" % number for number in range(count))


@pytest.mark.guard("header-count", never="the connection was not closed")
@pytest.mark.parametrize("end", [b"\r\n", b""], ids=["whole", "unfinished"])
def test_more_headers_than_the_limit_are_431(start_server: StartServer, end: bytes) -> None:
    server = start_server(LENGTHS, WATCHDOG_READ_TIMEOUT="2s")
    allowed = START % b"" + END.removesuffix(b"\r\n") + short_headers(MOST_HEADERS - 2) + b"\r\n"
    assert server.raw(allowed).startswith(b"HTTP/1.1 200 ")
    answer = server.raw(b"GET / HTTP/1.1\r\nHost: x\r\n" + short_headers(MOST_HEADERS + 1) + end)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert f"more than {MOST_HEADERS} headers".encode() in answer


def send_to_many(server: RunningServer, stack: contextlib.ExitStack, request: bytes, *, is_answered: bool) -> None:
    """Open 450 connections with a request whose headers take at least 0.3 MiB of memory each."""
    for _ in range(450):
        sock = stack.enter_context(server.connect())
        sock.sendall(request + short_headers(1000) + (b"\r\n" if is_answered else b""))
        if is_answered:
            assert sock.recv(100).startswith(b"HTTP/1.1 ")


@pytest.mark.executed
@pytest.mark.guard("head-memory", never="the connections that hold the most")
def test_headers_of_idle_connections_take_bounded_memory(start_server: StartServer) -> None:
    server = start_server(LENGTHS, WATCHDOG_READ_TIMEOUT="300s", WATCHDOG_METRICS_PORT=str(free_port()))
    before_mib = server.memory_mib("VmRSS")
    with contextlib.ExitStack() as stack:
        send_to_many(server, stack, b"POST / HTTP/1.1\r\nHost: x\r\n", is_answered=False)
        closed = "watchdog_idle_connections_closed_total"
        until(lambda: server.metric(closed) > 300, "the connections that hold the most to be closed")
        assert server.memory_mib("VmHWM") < before_mib + 150


@pytest.mark.executed
@pytest.mark.parametrize(
    "line",
    [b"GET /_/health HTTP/1.1\r\n", b"POST /?output=nothing HTTP/1.1\r\nContent-Length: 1000\r\n"],
    ids=["whole", "rest of the body missing"],
)
def test_headers_of_answered_requests_take_no_memory(start_server: StartServer, line: bytes) -> None:
    server = start_server(LENGTHS, WATCHDOG_READ_TIMEOUT="300s")
    before_mib = server.memory_mib("VmRSS")
    with contextlib.ExitStack() as stack:
        send_to_many(server, stack, line + b"Host: x\r\n", is_answered=True)
        assert server.memory_mib("VmHWM") < before_mib + 70


@PIECES
@pytest.mark.guard("header-limits")
def test_a_request_line_over_the_limit_is_414(shared_server: StartServer, piece_bytes: int) -> None:
    server = shared_server(LENGTHS)
    document = document_in(sent_in_pieces(server, START % (b"a" * MOST_HEAD_BYTES) + END, piece_bytes), 414)
    assert document["title"] == "Request line too long"
    assert server.call(b"").status == 200


@pytest.mark.guard("header-limits")
def test_the_limit_counts_for_each_request_of_a_connection(shared_server: StartServer) -> None:
    server = shared_server(LENGTHS)
    body = b"a" * 300_000
    large_body = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: x/y\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    small = b"GET / HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n" % (b"x" * 40_000)
    answers = sent_in_pieces(server, small + large_body + small * 3 + with_header(MOST_HEAD_BYTES), 50_000)
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 5
    assert answers.count(b"HTTP/1.1 431 ") == 1
    document_in(answers[answers.index(b"HTTP/1.1 431 ") :], 431)


def test_many_requests_in_one_segment_are_each_below_the_limit(shared_server: StartServer) -> None:
    server = shared_server("true", WATCHDOG_MAX_INFLIGHT="1")
    probe = b"GET /_/health HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n" % (b"x" * 500)
    last = probe.replace(b"\r\nX", b"\r\nConnection: close\r\nX")
    answers = server.raw(probe * 400 + last)
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 401


@pytest.mark.parametrize("status", [431, 414])
def test_curl_reads_the_answer(shared_server: StartServer, status: int) -> None:
    """Much of the request is unread when the answer is sent. A reset must not destroy the answer."""
    assert shutil.which("curl")
    server = shared_server(LENGTHS)
    url = f"http://127.0.0.1:{server.port}/"
    value = "v" * 120_000
    command = ["curl", "-sS", "-w", "%{http_code}"]
    command += ["-H", f"X: {value}", url] if status == 431 else [f"{url}?{value}"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=RunningServer.patience_s)
    assert done.stdout.endswith(str(status).encode())
    assert json.loads(done.stdout[:-3])["status"] == status


@pytest.mark.parametrize("size", [65_537, 80_000, 130_000, 250_000])
def test_a_body_that_comes_at_once_after_its_head_does_not_count_as_head(shared_server: StartServer, size: int) -> None:
    """The bytes at the end of a body do not begin another request."""
    server = shared_server('wc -c <"$INPUT_FILE_PATH"')
    head = b"POST /?input=raw HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
    with server.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(30):
            sock.sendall(head)
            sock.sendall(b"x" * size)
            answer = read_answer(sock)
            assert answer.startswith(b"HTTP/1.1 200 "), answer
            assert answer.endswith(b"%d\n" % size)
