"""Hostile or unusual HTTP gets the right answer, or an error and a closed connection. The next call then works.

The script of most tests answers with its path and its input. So each answer shows which call ran, and with which bytes.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import gzip
import http.client
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import running_server
from running_server import RunningServer, StartServer, problem, read_all, until

ECHO = '[ "$Http_Path" = /500 ] && exit 1; '
ECHO += 'printf "[%s:%s:" "$Http_Path" "$Http_X_Mark"; cat "$INPUT_FILE_PATH"; printf "]"'
# The answer to the request after each unusual one. At a wrong place, it shows that bytes of one request were read as
# another.
NEXT = b"POST /next HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
ONE = b"POST /one HTTP/1.1\r\nHost: x\r\nContent-Type: a/b\r\n"
ABC = b"3\r\nabc\r\n0\r\n\r\n"
MIB = 1 << 20


@dataclass(frozen=True)
class Reply:
    status: int
    headers: bytes
    body: bytes


def replies(data: bytes) -> list[Reply]:
    """Return the answers in the bytes of a connection. Each must be complete."""
    found = []
    while data:
        head, end, rest = data.partition(b"\r\n\r\n")
        line = re.match(rb"HTTP/1\.[01] (\d\d\d) ", head)
        assert line, f"no answer of HTTP/1 begins here: {data[:200]!r}"
        assert end, f"headers are cut off: {data[:200]!r}"
        length = re.search(rb"\r\nContent-Length: (\d+)", head)
        assert length or int(line[1]) == 100, head
        size = int(length[1]) if length else 0
        assert len(rest) >= size, "a body is cut off"
        found.append(Reply(int(line[1]), head, rest[:size]))
        data = rest[size:]
    return found


def exchange(server: RunningServer, pieces: list[bytes]) -> list[Reply]:
    """Send pieces, if possible each in a separate segment, and read until the server closes the connection."""
    with server.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                sock.sendall(piece)
        return replies(read_all(sock))


def chunked(body: bytes) -> bytes:
    return ONE + b"Transfer-Encoding: chunked\r\n\r\n" + body


def coded(transfer_encoding: bytes) -> bytes:
    return ONE + transfer_encoding + b"\r\n\r\n" + ABC


@pytest.fixture(scope="module")
def echo_metrics_port() -> int:
    return running_server.free_port()


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory, echo_metrics_port: int) -> Iterator[RunningServer]:
    """One server for all tables of requests. If a request breaks something, the next tests fail."""
    directory = tmp_path_factory.mktemp("echo")
    yield from shared_server(
        directory,
        ECHO,
        WATCHDOG_READ_TIMEOUT="5s",
        WATCHDOG_MAX_INFLIGHT="2",
        WATCHDOG_METRICS_PORT=str(echo_metrics_port),
    )


def shared_server(directory: Path, script: str, **environ: Any) -> Iterator[RunningServer]:
    """One server for many tests. At their end, it must stop without an error."""
    server = RunningServer(directory, script, **environ)
    try:
        yield server
        assert server.stop() == 0
        assert server.leftovers() == []
        assert [event for event in server.logs if event["event"] in ("internal error", "not json")] == []
    finally:
        server.kill()


@pytest.fixture
def after(echo: RunningServer) -> Iterator[None]:
    """Check that the next call works."""
    yield
    answer = echo.call(b"YWdhaW4=", "/after")
    assert (answer.status, answer.body) == (200, b"[/after::again]")


# A read_timeout in seconds, for tests that wait until it is over. It is longer than any wait of a test for a processor.
SHORT_S = "2"
both_ways = pytest.mark.parametrize("cut", [False, True], ids=["at once", "byte by byte"])


def pieces_of(data: bytes, cut: bool) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))] if cut else [data]


# ---- valid but unusual requests

RIGHT: dict[str, bytes] = {
    "length": ONE + b"Content-Length: 3\r\n\r\nabc",
    "length with zeros": ONE + b"Content-Length: 003\r\n\r\nabc",
    "length with spaces": ONE + b"Content-Length: \t 3 \t\r\n\r\nabc",
    "length in another case": ONE + b"cONTENT-lENGTH: 3\r\n\r\nabc",
    "length and empty lines before the next": ONE + b"Content-Length: 3\r\n\r\nabc\r\n\r\n",
    "GET with a body": b"GET /one HTTP/1.1\r\nHost: x\r\nContent-Type: a/b\r\nContent-Length: 3\r\n\r\nabc",
    "empty lines first": b"\r\n\r\n" + ONE + b"Content-Length: 3\r\n\r\nabc",
    "header without a value": ONE + b"X-Empty:\r\nContent-Length: 3\r\n\r\nabc",
    "a hundred headers": ONE + b"".join(b"X-%d: y\r\n" % n for n in range(100)) + b"Content-Length: 3\r\n\r\nabc",
    "a header of 8 KB": ONE + b"X: " + b"y" * 8000 + b"\r\nContent-Length: 3\r\n\r\nabc",
    "chunked": chunked(ABC),
    "chunked in another case": coded(b"tRANSFER-eNCODING: cHUNKED"),
    "chunked in a list": coded(b"Transfer-Encoding: ,chunked"),
    "a header like Transfer-Encoding": ONE + b"Transfer_Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
    "chunks of one byte": chunked(b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n"),
    "chunk extensions": chunked(b'1;a\r\na\r\n2;b=c;d="e f"\r\nbc\r\n0;g\r\n\r\n'),
    "chunk size with zeros": chunked(b"000000000000003\r\nabc\r\n000\r\n\r\n"),
    "upgrade to WebSocket": ONE + b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc",
}


def awaits_a_body(server: RunningServer, metrics_port: int) -> bool:
    """Return whether one call has read all bytes of its body that were sent, and waits for more."""
    return b"\nwatchdog_bodies_awaited 1.0\n" in server.call(None, "/metrics", "GET", port=metrics_port).body


def held_bytes(server: RunningServer) -> int:
    """Return the disk space of inputs whose script has not started. Their files have no name."""
    directory = Path(f"/proc/{server.process.pid}/fd")
    total = 0
    for name in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):  # closed after it was listed
            target = os.readlink(directory / name)
            if target.startswith(f"{server.tmp}/") and target.endswith(" (deleted)"):
                total += (directory / name).stat().st_size
    return total


@pytest.mark.usefixtures("after")
@both_ways
@pytest.mark.parametrize("name", RIGHT)
def test_right(echo: RunningServer, name: str, cut: bool) -> None:
    got = exchange(echo, pieces_of(RIGHT[name] + NEXT, cut))
    assert {reply.status for reply in got} == {200}
    bodies = [reply.body for reply in got]
    assert bodies == [b"[/one::abc]", b"[/next::]"]


RAW = b" HTTP/1.1\r\nHost:x\r\nX-Input-Encoding:raw\r\n"
SMALL = b"PUT /a" + RAW + b"Content-Length:1\r\n\r\na" + b"PUT /b" + RAW + b"Connection:close\r\n"
SMALL += b"Transfer-Encoding:chunked\r\n\r\n1\r\nb\r\n0\r\n\r\n"


@pytest.mark.usefixtures("after")
def test_pipelined_requests_cut_in_two_at_every_byte(echo: RunningServer) -> None:
    def one(cut: int) -> None:
        got = exchange(echo, [SMALL[:cut], SMALL[cut:]])
        assert [reply.body for reply in got] == [b"[/a::a]", b"[/b::b]"], cut

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(len(SMALL))))


@pytest.mark.usefixtures("after")
def test_more_pipelined_requests_than_a_server_queues(echo: RunningServer) -> None:
    count = 100
    calls = b"".join(
        b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Type: a/b\r\nContent-Length: 2\r\n\r\n%02d" % (n, n)
        for n in range(count)
    )
    got = exchange(echo, [calls + NEXT])
    assert [reply.body for reply in got] == [*(b"[/%d::%02d]" % (n, n) for n in range(count)), b"[/next::]"]


@pytest.mark.usefixtures("after")
@pytest.mark.parametrize(
    ("request_", "bodies"),
    [
        (b"POST /one HTTP/1.0\r\nContent-Length: 0\r\n\r\n", [b"[/one::]"]),
        (
            b"POST /one HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n" + NEXT,
            [b"[/one::]", b"[/next::]"],
        ),
        (b"POST /one HTTP/1.0\r\n\r\n", [b"[/one::]"]),
        (b"POST /one HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n", [b"[/one::]"]),
        (b"GET /one HTTP/1.0\r\n\r\n\r\n", [b"[/one::]"]),
        (ONE + b"Connection: close\r\nContent-Length: 3\r\n\r\nabc\r\n", [b"[/one::abc]"]),
        (ONE + b"Connection: foo, close\r\nContent-Length: 3\r\n\r\nabc", [b"[/one::abc]"]),
    ],
    ids=["1.0", "1.0 kept", "1.0 without length", "1.0 expect", "1.0 and a line end", "closed", "closed in a list"],
)
def test_which_connections_are_kept(echo: RunningServer, request_: bytes, bodies: list[bytes]) -> None:
    got = exchange(echo, [request_])
    assert [(reply.status, reply.body) for reply in got] == [(200, body) for body in bodies]


@pytest.mark.parametrize(
    "request_",
    [b"POST / HTTP/1.1\r\n\r\n", chunked(b"zz\r\n"), b"POST / HTTP/1.1\r\nHost\r\n\r\n"],
    ids=["host", "chunk", "head"],
)
def test_a_caller_that_is_gone_before_its_refusal_causes_no_error(start_server: StartServer, request_: bytes) -> None:
    server = start_server(ECHO)
    server.process.send_signal(signal.SIGSTOP)  # so the server reads the request after the caller has disconnected
    try:
        with server.connect() as sock:
            sock.sendall(request_)
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert server.call(b"").status == 200
    server.stop()
    assert not [event for event in server.logs if event["level"] == "error"]


def test_bytes_after_the_last_request_do_not_cut_its_answer(start_server: StartServer, tmp_path: Path) -> None:
    size = 16 * MIB
    server = start_server(HOLD + f"head -c {size} /dev/zero", HANDSHAKE=str(tmp_path))
    with server.connect() as sock:
        sock.sendall(b"POST /hold HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        until((tmp_path / "up").exists, "the script")
        sock.sendall(bytes(512 * 1024))  # more than the server reads at once
        (tmp_path / "go").touch()
        data = bytearray()
        while len(data) < size - MIB:
            data += sock.recv(65536)
        # The kernel has the rest of the answer now, and the server closes the connection.
        server.event("invocation ended")
        assert server.call(None, "/_/health", "GET").status == 200
        (reply,) = replies(bytes(data) + read_all(sock))
    assert reply.body == bytes(size)


@pytest.mark.usefixtures("after")
@pytest.mark.parametrize(
    ("headers", "statuses"),
    [
        (b"Expect: 100-continue\r\n", [100, 200, 200]),
        (b"Expect: 100-Continue\r\n", [100, 200, 200]),
        (b"Expect: \t100-continue \t\r\n", [100, 200, 200]),
        (b"Expect: 100-continue\r\nExpect: 100-continue\r\n", [100, 200, 200]),
        (b"Expect: 200-ok\r\n", [400, 200]),
        (b"Expect: 100-continue, other\r\n", [400, 200]),
        (b"Expect: 100-continue\r\nExpect: other\r\n", [400, 200]),
    ],
    ids=["known", "other case", "with spaces", "twice", "unknown", "unknown in a list", "unknown in a second header"],
)
def test_expect_with_a_body_that_does_not_wait(echo: RunningServer, headers: bytes, statuses: list[int]) -> None:
    got = exchange(echo, [ONE + headers + b"Content-Length: 3\r\n\r\nabc" + NEXT])
    assert [reply.status for reply in got] == statuses
    assert got[-1].body == b"[/next::]"
    if statuses[0] == 100:
        assert got[1].body == b"[/one::abc]"


@pytest.mark.usefixtures("after")
@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/a//b/../c", "/a//b/../c"),
        (b"//other/x", "//other/x"),
        (b"/%2e%2e/%00%0d%0a", "/%2e%2e/%00%0d%0a"),
        (b"http://other:99/abs?q=1", "/abs"),
    ],
)
def test_targets(echo: RunningServer, target: bytes, path: str) -> None:
    got = exchange(echo, [b"POST " + target + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" + NEXT])
    assert [reply.body for reply in got] == [f"[{path}::]".encode(), b"[/next::]"]


# ---- malformed requests

WRONG: dict[str, bytes] = {
    # The first line
    "length with very many zeros": ONE + b"Content-Length: " + b"0" * 5000 + b"3\r\n\r\nabc",
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "HTTP/1.2": b"POST /one HTTP/1.2\r\nHost: x\r\n\r\n",
    "lower-case method": b"post /one HTTP/1.1\r\nHost: x\r\n\r\n",
    "lower-case protocol": b"POST /one http/1.1\r\nHost: x\r\n\r\n",
    "no target": b"POST  HTTP/1.1\r\nHost: x\r\n\r\n",
    "authority as target": b"POST other:99 HTTP/1.1\r\nHost: x\r\n\r\n",
    "asterisk as target": b"POST * HTTP/1.1\r\nHost: x\r\n\r\n",
    "space in target": b"POST /o ne HTTP/1.1\r\nHost: x\r\n\r\n",
    "NUL in target": b"POST /o\0ne HTTP/1.1\r\nHost: x\r\n\r\n",
    "UTF-8 in target": "POST /ö HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "target of 70 KB": b"POST /" + b"o" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "bare LF": b"POST /one HTTP/1.1\nHost: x\nContent-Length: 3\n\nabc",
    "bare CR": b"POST /one HTTP/1.1\rHost: x\r\n\r\n",
    "binary": bytes(range(256)) * 4,
    # Headers
    "no Host": b"POST /one HTTP/1.1\r\n\r\n",
    "two Hosts": ONE + b"Host: y\r\n\r\n",
    "folded": ONE + b"A: b\r\n c\r\n\r\n",
    "folded length": ONE + b"Content-Length:\r\n 3\r\n\r\nabc",
    "space before the first header": b"POST /one HTTP/1.1\r\n Host: x\r\n\r\n",
    "NUL in a value": ONE + b"A: b\0c\r\n\r\n",
    "CR in a value": ONE + b"A: b\rc\r\n\r\n",
    "LF in a value": ONE + b"A: b\nc\r\n\r\n",
    "control character in a value": ONE + b"A: b\x01c\r\n\r\n",
    "space before the colon": ONE + b"Content-Length : 3\r\n\r\nabc",
    "tab before the colon": ONE + b"Content-Length\t: 3\r\n\r\nabc",
    "empty name": ONE + b": b\r\n\r\n",
    "no colon": ONE + b"Ab\r\n\r\n",
    "name that is not ASCII": ONE + "ä: b\r\n\r\n".encode(),
    "headers end in a bare LF": ONE + b"Content-Length: 3\r\n\nabc",
    "7000 headers": ONE + b"".join(b"X-%d: y\r\n" % n for n in range(7000)) + b"\r\n",
    # Length
    "length twice": ONE + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "two lengths": ONE + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "list of lengths": ONE + b"Content-Length: 3, 3\r\n\r\nabc",
    "negative length": ONE + b"Content-Length: -3\r\n\r\nabc",
    "length with a plus sign": ONE + b"Content-Length: +3\r\n\r\nabc",
    "hexadecimal length": ONE + b"Content-Length: 0x3\r\n\r\nabc",
    "length with an underscore": ONE + b"Content-Length: 0_3\r\n\r\nabc",
    "length in other digits": ONE + "Content-Length: \u0663\r\n\r\nabc".encode(),
    "length with a space inside": ONE + b"Content-Length: 3 3\r\n\r\nabc",
    "empty length": ONE + b"Content-Length:\r\n\r\nabc",
    "length of 23 digits": ONE + b"Content-Length: 99999999999999999999999\r\n\r\nabc",
    "length of 2^64 + 3": ONE + b"Content-Length: 18446744073709551619\r\n\r\nabc",
    # Transfer-Encoding
    "both, length first": ONE + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n" + ABC,
    "both, length last": ONE + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n" + ABC,
    "xchunked": coded(b"Transfer-Encoding: xchunked"),
    "identity": coded(b"Transfer-Encoding: identity"),
    "gzip only": coded(b"Transfer-Encoding: gzip"),
    "chunked, identity": coded(b"Transfer-Encoding: chunked, identity"),
    "chunked, chunked": coded(b"Transfer-Encoding: chunked, chunked"),
    "chunked and a parameter": coded(b"Transfer-Encoding: chunked;q=1"),
    "chunked in quotes": coded(b'Transfer-Encoding: "chunked"'),
    "chunked after a vertical tab": coded(b"Transfer-Encoding: \x0bchunked"),
    "chunked and a NUL": coded(b"Transfer-Encoding: chunked\0"),
    "chunked twice": coded(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
    "chunked and identity": coded(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
    "identity and chunked": coded(b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked"),
    "space before the colon of chunked": coded(b"Transfer-Encoding : chunked"),
    "folded chunked": coded(b"Transfer-Encoding:\r\n chunked"),
    "chunked in HTTP/1.0": b"POST /one HTTP/1.0\r\nTransfer-Encoding: gzip\r\n\r\n" + ABC,
    # Chunks
    "chunk size over 2^64": chunked(b"FFFFFFFFFFFFFFFFFFF\r\nabc\r\n0\r\n\r\n"),
    "chunk size of 2^64 - 1": chunked(b"ffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    "negative chunk size": chunked(b"-3\r\nabc\r\n0\r\n\r\n"),
    "chunk size with a plus sign": chunked(b"+3\r\nabc\r\n0\r\n\r\n"),
    "chunk size with 0x": chunked(b"0x3\r\nabc\r\n0\r\n\r\n"),
    "chunk size with an underscore": chunked(b"0_3\r\nabc\r\n0\r\n\r\n"),
    "space after the chunk size": chunked(b"3 \r\nabc\r\n0\r\n\r\n"),
    "space before the chunk size": chunked(b" 3\r\nabc\r\n0\r\n\r\n"),
    "no chunk size": chunked(b"\r\nabc\r\n0\r\n\r\n"),
    "bare LF after the size": chunked(b"3\nabc\r\n0\r\n\r\n"),
    "bare LF after the chunk": chunked(b"3\r\nabc\n0\r\n\r\n"),
    "bare LF after an extension": chunked(b"3;a\nabc\r\n0\r\n\r\n"),
    "CR in an extension": chunked(b"3;a\rb\r\nabc\r\n0\r\n\r\n"),
    "chunk longer than its size": chunked(b"2\r\nabc\r\n0\r\n\r\n"),
    "chunk shorter than its size": chunked(b"5\r\nabc\r\n0\r\n\r\n"),
    "no last chunk": chunked(b"3\r\nabc\r\n"),
    "bare LF in a trailer": chunked(b"3\r\nabc\r\n0\r\nA: b\n\r\n"),
    "trailer with a space in its name": chunked(b"3\r\nabc\r\n0\r\nA b: c\r\n\r\n"),
    "framing in trailers": chunked(b"3\r\nabc\r\n0\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n"),
}


@pytest.mark.usefixtures("after")
@pytest.mark.parametrize(
    ("name", "cut"),
    [
        pytest.param(name, cut, id=f"{name}-{'byte by byte' if cut else 'at once'}")
        for name in WRONG
        for cut in (False, True)
    ],
)
def test_wrong(echo: RunningServer, name: str, cut: bool) -> None:
    """llhttp, a compiled parser, makes most of these checks. So they cannot be taken out."""
    got = exchange(echo, pieces_of(WRONG[name] + NEXT, cut))
    assert got
    assert all(400 <= reply.status < 500 for reply in got), got
    assert not [reply for reply in got if b"[/" in reply.body]


@pytest.mark.guard("end-of-malformed-body")
@pytest.mark.parametrize("rest", [b"0\r\nA b: c\r\n\r\n", b"zz\r\n", b"0\r\nA: b\n\r\n"])
def test_what_is_malformed_after_a_chunk_that_was_awaited(
    start_server: StartServer, free_port: int, rest: bytes
) -> None:
    """The end of the chunk wakes the code that waits for more. The malformed bytes arrive together with it."""
    echo = start_server(ECHO, WATCHDOG_METRICS_PORT=str(free_port))
    with echo.connect() as sock:
        sock.sendall(chunked(b"3\r\nabc"))
        until(lambda: awaits_a_body(echo, free_port), "the call to wait for more")
        sock.sendall(b"\r\n" + rest)
        (reply,) = replies(read_all(sock))
    assert reply.status == 400
    assert b"the body is malformed" in reply.body


def test_what_is_malformed_is_so_at_any_moment(start_server: StartServer) -> None:
    """This also holds in the turn of the event loop between a request and the start of its handler.

    There is no guard to take out: only Python 3.11 has this turn (later ones start the task of the handler at once),
    and a test meets it only by chance.
    """
    echo = start_server(ECHO)
    data = chunked(b"3\r\nabc\r\n0\r\nA b: c\r\n\r\n")
    statuses = set()
    for attempt in range(400):
        with echo.connect() as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            cut = data.index(b"abc") + attempt % 5
            sock.sendall(data[:cut])
            time.sleep(attempt % 7 / 10_000)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(data[cut:])
            statuses |= {reply.status for reply in replies(read_all(sock))}
    assert statuses == {400}


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(b"GET /one\r\n\r\n", id="HTTP/0.9"),
        pytest.param(b"POST /one HTTP/2.0\r\nHost: x\r\nContent-Length: 0\r\n\r\n", id="HTTP/2.0"),
    ],
)
@pytest.mark.guard("request-checks")
def test_other_versions(start_server: StartServer, request_: bytes) -> None:
    echo = start_server(ECHO, WATCHDOG_READ_TIMEOUT="5s", WATCHDOG_MAX_INFLIGHT="2")
    (reply,) = exchange(echo, [request_])
    assert reply.status in (400, 505)


# ---- wrong lengths, and bodies that contain requests

SMUGGLED = b"POST /smuggled HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.usefixtures("after")
@both_ways
def test_what_follows_a_body_that_is_too_long_is_the_next_request(echo: RunningServer, cut: bool) -> None:
    """A body ends where its length says (RFC 9112, section 6.3). If the rest is not a request, it is refused."""
    got = exchange(echo, pieces_of(ONE + b"Content-Length: 2\r\n\r\nabc\r\n\r\n" + NEXT, cut))
    assert [reply.status for reply in got] == [200, 400]
    assert got[0].body == b"[/one::ab]"


@pytest.mark.usefixtures("after")
@pytest.mark.parametrize("framing", [b"Content-Length: %d", b"Transfer-Encoding: chunked"], ids=["length", "chunked"])
@pytest.mark.parametrize("end", ["half closed", "closed"])
def test_a_body_that_is_cut_off_is_not_run(
    echo: RunningServer, echo_metrics_port: int, framing: bytes, end: str
) -> None:
    request = ONE + (framing % 100 if b"%" in framing else framing) + b"\r\nX-Call-Id: cut\r\n\r\n4\r\nabcd\r\n"
    with echo.connect() as sock:
        sock.sendall(request)
        until(lambda: awaits_a_body(echo, echo_metrics_port), "the call to wait for more")
        if end == "half closed":
            sock.shutdown(socket.SHUT_WR)
            assert all(reply.status == 400 for reply in replies(read_all(sock)))
    assert echo.event("invocation ended", call_id="cut")["outcome"] == "caller_gone"


@pytest.mark.guard("body-timer", never="the connection was not closed", never_s=6)
def test_a_body_that_stops_is_answered_408(start_server: StartServer) -> None:
    server = start_server(ECHO, WATCHDOG_READ_TIMEOUT=SHORT_S)
    requests = (
        ONE + b"Content-Length: 10\r\n\r\nabc" + b"",
        ONE + b"Content-Length: 9223372036854775807\r\n\r\nabc",
        chunked(b"3\r\nabc\r\n"),
        chunked(b"3\r\nabc\r\n0\r\n"),
        chunked(b"7fffffffffffffff\r\nabc\r\n"),
    )
    with ThreadPoolExecutor(len(requests)) as pool:
        for request, found in zip(requests, pool.map(lambda each: exchange(server, [each]), requests), strict=True):
            assert [reply.status for reply in found] == [408], request
    assert server.call(b"YQ==").body == b"[/::a]"


@pytest.mark.usefixtures("after")
@both_ways
@pytest.mark.parametrize(
    "head",
    [
        pytest.param(ONE + b"Content-Length: %d\r\n\r\n", id="length"),
        pytest.param(ONE + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n", id="chunked"),
        pytest.param(b"OPTIONS /one HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", id="405"),
        pytest.param(ONE + b"X-Timeout: x\r\nContent-Length: %d\r\n\r\n", id="400"),
        pytest.param(b"GET /_/health HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", id="health"),
        pytest.param(
            b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n",
            id="CONNECT",
        ),
    ],
)
def test_a_body_is_never_a_request(echo: RunningServer, head: bytes, cut: bool) -> None:
    end = b"\r\n0\r\n\r\n" if b"chunked" in head else b""
    got = exchange(echo, pieces_of(head % len(SMUGGLED) + SMUGGLED + end + NEXT, cut))
    assert not [reply for reply in got if reply.body.startswith(b"[/smuggled")]
    assert [reply.body for reply in got[1:]] in ([], [b"[/next::]"])


@pytest.mark.guard("closing-requests")
def test_nothing_after_a_connect_is_a_request(start_server: StartServer) -> None:
    """It is not certain whether a CONNECT has a body (RFC 9110, section 9.3.6)."""
    echo = start_server(ECHO, WATCHDOG_READ_TIMEOUT="5s", WATCHDOG_MAX_INFLIGHT="2")
    head = b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED)
    (reply,) = exchange(echo, [head + SMUGGLED + NEXT])
    assert reply.status == 405


@pytest.mark.parametrize("length", [3, 0])
def test_an_upgrade_that_is_declined_loses_nothing(start_server: StartServer, length: int) -> None:
    """A proxy may pipeline other requests after it, cut at any place."""
    echo = start_server(ECHO, WATCHDOG_READ_TIMEOUT="5s", WATCHDOG_MAX_INFLIGHT="2")
    upgrade = ONE + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n" % length + b"abc"[:length]
    outer = b"POST /outer HTTP/1.1\r\nHost: x\r\nContent-Type: a/b\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED)
    with echo.connect() as sock:
        sock.sendall(upgrade + outer)
        first = sock.recv(65536)
        sock.sendall(SMUGGLED + NEXT)
        got = replies(first + read_all(sock))
    assert [reply.status for reply in got] == [200, 200, 200]
    assert got[0].body == b"[/one::%b]" % b"abc"[:length]
    assert got[1].body == b"[/outer::%b]" % SMUGGLED
    assert got[2].body == b"[/next::]"


def test_the_largest_length_of_all(start_server: StartServer) -> None:
    echo = start_server(ECHO, WATCHDOG_READ_TIMEOUT="5s", WATCHDOG_MAX_INFLIGHT="2")
    with echo.connect() as sock:
        sock.sendall(ONE + b"Content-Length: 18446744073709551615\r\n\r\n")
        assert sock.recv(65536)[:12] in (b"HTTP/1.0 400", b"HTTP/1.1 400", b"HTTP/1.1 408", b"HTTP/1.1 413")


@pytest.mark.guard("request-checks")
@pytest.mark.parametrize("coding", [b"gzip, chunked", b"x, chunked", b"identity, chunked"])
def test_transfer_codings_that_are_not_known(start_server: StartServer, coding: bytes) -> None:
    echo = start_server(ECHO, WATCHDOG_READ_TIMEOUT="5s", WATCHDOG_MAX_INFLIGHT="2")
    got = exchange(echo, [ONE + b"Transfer-Encoding: " + coding + b"\r\n\r\n" + ABC + NEXT])
    assert got[0].status in (400, 501)
    assert got[-1].body == b"[/next::]" or b"Connection: close" in got[-1].headers


@pytest.mark.usefixtures("after")
def test_an_empty_transfer_encoding_is_refused(echo: RunningServer) -> None:
    (reply,) = exchange(echo, [ONE + b"Transfer-Encoding: \r\n\r\n" + NEXT])
    assert reply.status == 400


@pytest.mark.guard("request-checks")
def test_chunked_in_http_1_0_ends_the_connection(start_server: StartServer) -> None:
    echo = start_server(ECHO, WATCHDOG_READ_TIMEOUT="5s", WATCHDOG_MAX_INFLIGHT="2")
    request = (
        b"POST /one HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nYWJj\r\n0\r\n\r\n"
    )
    (reply,) = exchange(echo, [request + NEXT])
    assert reply.status == 400


@both_ways
@pytest.mark.guard("distrust", never="the connection was not closed")
def test_a_trailer_is_not_a_header_of_the_next_request(start_server: StartServer, cut: bool) -> None:
    """Behind a proxy that shares its connections, the next request is from another caller."""
    echo = start_server(ECHO, WATCHDOG_READ_TIMEOUT="5s", WATCHDOG_MAX_INFLIGHT="2")
    got = exchange(echo, pieces_of(chunked(b"3\r\nabc\r\n0\r\nX-A: b\r\nX-Mark: mine\r\n\r\n") + NEXT, cut))
    assert [reply.body for reply in got] == [b"[/one::abc]", b"[/next::]"]


@pytest.mark.guard("end-of-malformed-body")
@pytest.mark.parametrize("bad", [b"zz\r\n", b"0\r\nA b: c\r\n\r\n"], ids=["chunk", "trailer"])
def test_a_chunk_that_is_malformed_in_a_later_segment_is_reported(
    start_server: StartServer, free_port: int, bad: bytes
) -> None:
    server = start_server(ECHO, WATCHDOG_METRICS_PORT=str(free_port))
    with server.connect() as sock:
        sock.sendall(chunked(b"3\r\nabc\r\n"))
        until(lambda: awaits_a_body(server, free_port), "the call to wait for more")
        sock.sendall(bad)
        (reply,) = replies(read_all(sock))
    assert reply.status == 400
    assert b"malformed" in reply.body


# ---- headers without end

ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "target": (b"POST /", b"a" * 65536),
    "header line": (ONE + b"X: ", b"a" * 65536),
    "header name": (ONE, b"a" * 65536),
    "headers": (ONE, b"".join(b"X-%d: y\r\n" % n for n in range(5000))),
    "trailers": (chunked(b"3\r\nabc\r\n0\r\n"), b"".join(b"X-%d: y\r\n" % n for n in range(5000))),
    "trailer line": (chunked(b"3\r\nabc\r\n0\r\nX: "), b"a" * 65536),
    "chunk extension": (chunked(b"3\r\nabc\r\n3;"), b"a" * 65536),
}
ENDLESS_STATUS = {"target": 414, "trailers": 400, "trailer line": 400, "chunk extension": 400}


@pytest.mark.executed
@pytest.mark.guard("header-limits", never="the connection was not closed")
@pytest.mark.parametrize("name", ENDLESS)
def test_headers_without_end_are_refused_in_little_memory(start_server: StartServer, name: str) -> None:
    server = start_server(ECHO, WATCHDOG_READ_TIMEOUT="30s")
    start, more = ENDLESS[name]
    before = server.memory_mib("VmRSS")
    with server.connect() as sock:
        sock.sendall(start + more)
        send_until_closed(sock, more, 24 * MIB)
        (reply,) = replies(read_all(sock))
    assert reply.status == ENDLESS_STATUS.get(name, 431)
    if reply.status == 400:
        detail = json.loads(reply.body)["detail"]
        assert detail == "the body is malformed: more than 65536 bytes arrived that carry no data"
    # Two thirds of the sent bytes. The normal memory of a server, and its variation, is much less.
    assert server.memory_mib("VmHWM") < before + 16
    assert server.call(b"YQ==").body == b"[/::a]"


@pytest.mark.guard("body-timer", never="the connection was not closed", never_s=6)
def test_a_chunk_extension_that_stops_is_answered_408(start_server: StartServer) -> None:
    server = start_server(ECHO, WATCHDOG_READ_TIMEOUT=SHORT_S)
    with server.connect() as sock:
        sock.sendall(chunked(b"3\r\nabc\r\n3;") + b"a" * 4096)
        (reply,) = replies(read_all(sock))
    assert reply.status == 408
    assert server.call(b"YQ==").body == b"[/::a]"


def send_until_closed(sock: socket.socket, piece: bytes, most_bytes: int) -> None:
    with contextlib.suppress(OSError):
        for _ in range(most_bytes // len(piece)):
            sock.sendall(piece)


# ---- answers before the body is there

LARGE = 64 * MIB
EARLY = {
    401: {"WATCHDOG_AUTH_TOKEN": "tok"},
    413: {"WATCHDOG_MAX_INPUT_SIZE": "1Ki"},
    429: {"WATCHDOG_MAX_INFLIGHT": "1", "WATCHDOG_MAX_QUEUE": "0"},
}
# With the path /hold, the script runs until its handshake.
HOLD = (
    'if [ "$Http_Path" = /hold ]; then touch "$HANDSHAKE/up"; while [ ! -e "$HANDSHAKE/go" ]; do sleep 0.02; done; fi; '
)


@contextlib.contextmanager
def refusing(start_server: StartServer, tmp_path: Path, status: int) -> Iterator[RunningServer]:
    """Start a server that answers calls with this status before it has their bodies."""
    server = start_server(HOLD + ECHO, HANDSHAKE=str(tmp_path), **EARLY[status])
    with ThreadPoolExecutor(1) as pool:
        if status == 429:
            held = pool.submit(server.call, b"", "/hold")
            until((tmp_path / "up").exists, "the script")
        try:
            yield server
        finally:
            (tmp_path / "go").touch()
        if status == 429:
            assert held.result().status == 200


def send_all(server: RunningServer, is_chunked: bool) -> list[Reply]:
    """Send a large body, and read the answer only after the whole body is sent. Return the answer."""
    piece = bytes(64 * 1024)
    with server.connect() as sock:
        length = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % LARGE
        sock.sendall(ONE + length + b"\r\nConnection: close\r\n\r\n")
        for _ in range(LARGE // len(piece)):
            sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
        if is_chunked:
            sock.sendall(b"0\r\n\r\n")
        return replies(read_all(sock))


@pytest.mark.executed
@pytest.mark.guard("lingering")
@pytest.mark.parametrize("status", EARLY)
def test_a_caller_that_is_answered_early_can_send_all(start_server: StartServer, tmp_path: Path, status: int) -> None:
    with refusing(start_server, tmp_path, status) as server:
        (reply,) = send_all(server, is_chunked=False)
        assert reply.status == status
        assert server.memory_mib("VmHWM") < 96


@pytest.mark.executed
@pytest.mark.parametrize("status", EARLY)
@pytest.mark.parametrize("client", ["chunked", "http.client", "curl"])
def test_clients_that_are_answered_early(start_server: StartServer, tmp_path: Path, status: int, client: str) -> None:
    with refusing(start_server, tmp_path, status) as server:
        if client == "curl":
            file = tmp_path / "large"
            file.touch()
            os.truncate(file, LARGE)
            url = f"http://127.0.0.1:{server.port}/"
            command = ["curl", "-sS", "-i", "-H", "Expect:", "-H", "Content-Type: a/b", "--data-binary", f"@{file}"]
            # Two calls to the same server. The second is answered on the connection of the first, or on a new one.
            done = subprocess.run([*command, url, url], capture_output=True, timeout=server.patience_s, check=False)
            assert (done.returncode, done.stderr) == (0, b"")
            assert [reply.status for reply in replies(done.stdout)] == [status, status]
        elif client == "http.client":
            answer = server.call(bytes(LARGE), headers={"Content-Type": "a/b"})
            problem(answer, status)
        else:
            (reply,) = send_all(server, is_chunked=True)
            assert reply.status == status
        assert server.memory_mib("VmHWM") < 96


@pytest.mark.guard("late-continue")
@pytest.mark.parametrize("status", [401, 429])
def test_a_body_that_is_not_wanted_is_not_asked_for(start_server: StartServer, tmp_path: Path, status: int) -> None:
    with refusing(start_server, tmp_path, status) as server, server.connect() as sock:
        sock.sendall(ONE + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % LARGE)
        first = sock.recv(65536)
        assert b"HTTP/1.1 %d " % status == first[:13]


@pytest.mark.usefixtures("after")
@pytest.mark.parametrize(
    "line", [b"OPTIONS /one", b"HEAD /one", b"GET /_/health", b"GET /_/openapi.json", b"POST /_/ready"]
)
def test_a_caller_that_was_not_asked_for_its_body_needs_a_new_connection(echo: RunningServer, line: bytes) -> None:
    """Such a caller may send its body or not. So the server cannot know whether the next bytes are a body."""
    with echo.connect() as sock:
        sock.sendall(line + b" HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        first = sock.recv(65536)
    assert b"100 Continue" not in first
    assert b"\r\nConnection: close\r\n" in first


def test_an_empty_line_after_a_body_does_not_begin_a_request(start_server: StartServer) -> None:
    server = start_server(ECHO, WATCHDOG_READ_TIMEOUT=SHORT_S)
    with server.connect() as sock:
        sock.sendall(ONE + b"Content-Length: 3\r\n\r\nabc\r\n")
        first = sock.recv(65536)
        with server.connect() as silent:
            assert read_all(silent) == b""  # read_timeout is over, also for the empty line
        sock.sendall(NEXT)
        got = replies(first + read_all(sock))
    assert [(reply.status, reply.body) for reply in got] == [(200, b"[/one::abc]"), (200, b"[/next::]")]


@pytest.mark.parametrize("status", [400, 401, 405, 406, 413, 429, 500])
def test_the_next_request_on_the_connection_of_an_error(
    start_server: StartServer, echo: RunningServer, tmp_path: Path, status: int
) -> None:
    wrong = {
        400: b"POST /one HTTP/1.1\r\nHost: x\r\n",
        401: ONE,
        405: b"OPTIONS /one HTTP/1.1\r\nHost: x\r\n",
        406: ONE + b"Accept: image/png\r\n",
        413: ONE,
        429: ONE,
        500: b"POST /500 HTTP/1.1\r\nHost: x\r\n",
    }
    body = {400: b"!!!!", 413: bytes(2 * MIB)}.get(status, b"YWJj")
    token = b"Authorization: Bearer tok\r\n" if status == 401 else b""
    with contextlib.ExitStack() as stack:
        server = echo
        if status in EARLY:
            server = stack.enter_context(refusing(start_server, tmp_path, status))
        sock = stack.enter_context(server.connect())
        sock.sendall(wrong[status] + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        first = sock.recv(65536)
        assert first.startswith(b"HTTP/1.1 %d " % status), first
        if status == 429:
            (tmp_path / "go").touch()
            until(lambda: server.call(b"").status == 200, "a free place")
        second = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(NEXT.replace(b"Host: x\r\n", b"Host: x\r\n" + token))
            second = read_all(sock)
        got = replies(first + second)
        assert got[0].status == status
        assert [reply.body for reply in got[1:]] in ([], [b"[/next::]"])
        # The connection is closed only if the answer said so.
        assert len(got) == 2 or b"Connection: close" in got[0].headers


# ---- many slow callers


@pytest.mark.guard("header-timer", never="the connection was not closed")
def test_five_hundred_callers_with_a_byte_now_and_then(start_server: StartServer) -> None:
    server = start_server(ECHO, WATCHDOG_READ_TIMEOUT=SHORT_S)
    before = server.descriptors_at_rest()
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(server.connect()) for _ in range(500)]
        for sock in slow:
            sock.setblocking(False)
        # The first caller sends nothing more. So no reset takes its answer away, even if the other bytes come late.
        slow[0].sendall(ONE[:1])
        for byte in itertools.islice(ONE, 5):
            for sock in slow[1:]:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    sock.send(bytes([byte]))
            answer = server.call(b"YQ==")
            assert (answer.status, answer.body) == (200, b"[/::a]")
        for sock in slow:
            sock.settimeout(RunningServer.patience_s)
            statuses = [reply.status for reply in replies(read_all(sock))]
            assert statuses == [408] or (statuses == [] and sock is not slow[0])
    until(lambda: server.descriptors() <= before, "the descriptors to be closed")
    assert server.call(b"YQ==").status == 200


@pytest.mark.slow
@pytest.mark.executed
@pytest.mark.guard("write-timer", never="the descriptors to be closed")
def test_a_hundred_callers_that_never_read(start_server: StartServer) -> None:
    server = start_server(
        '[ "$Http_Path" = /big ] && truncate -s 20M "$TMP_OUTPUT_DIR/x" || echo small',
        WATCHDOG_WRITE_TIMEOUT="1s",
        WATCHDOG_MAX_INFLIGHT="0",
    )
    before = server.descriptors_at_rest()
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            sock = stack.enter_context(server.connect())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(b"POST /big?output=raw HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert server.call(b"").body == b"small\n"
        until(lambda: server.descriptors() <= before, "the descriptors to be closed")
        assert server.call(b"").body == b"small\n"
        assert server.memory_mib("VmHWM") < 300
    until(lambda: not server.leftovers_of_calls(), "the workspaces to be removed")


# ---- bombs

BOMB_BYTES = 64 * MIB
FORM = b'--B\r\nContent-Disposition: form-data; name="f"; filename="%b"\r\n'


@functools.cache
def bomb(kind: str) -> tuple[bytes, dict[str, str]]:
    zeros = bytes(BOMB_BYTES)
    form = {"Content-Type": "multipart/form-data; boundary=B", "Content-Encoding": "gzip"}
    if kind == "gzip":
        return gzip.compress(zeros, 1), {"Content-Type": "a/b", "Content-Encoding": "gzip"}
    if kind == "many members":
        return gzip.compress(bytes(MIB), 1) * 64, {"Content-Type": "a/b", "Content-Encoding": "gzip"}
    if kind == "deflate":
        return zlib.compress(zeros, 1), {"Content-Type": "a/b", "Content-Encoding": "deflate"}
    if kind == "base64":
        return gzip.compress(b"A" * BOMB_BYTES, 1), {"Content-Encoding": "gzip"}
    if kind == "part":
        return gzip.compress(FORM % b"x" + b"\r\n" + zeros + b"\r\n--B--\r\n", 1), form
    assert kind == "base64 part"
    head = FORM % b"x" + b"Content-Transfer-Encoding: base64\r\n\r\n"
    return gzip.compress(head + b"A" * BOMB_BYTES + b"\r\n--B--\r\n", 1), form


@pytest.mark.guard("input-limit")
@pytest.mark.parametrize("kind", ["gzip", "deflate", "part"])
def test_a_bomb_stops_at_the_limit(start_server: StartServer, kind: str) -> None:
    server = start_server('wc -c < "$INPUT_FILE_PATH"', WATCHDOG_MAX_INPUT_SIZE="1Mi")
    body, headers = bomb(kind)
    problem(server.call(body, headers=headers), 413)
    until(lambda: not held_bytes(server) and not server.leftovers_of_calls(), "the space to be free")
    assert server.call(b"YQ==").body == b"1\n"


@pytest.mark.executed
@pytest.mark.guard("inflate-bound")
@pytest.mark.parametrize("kind", ["gzip", "deflate", "part"])
def test_a_bomb_is_never_in_memory(start_server: StartServer, kind: str) -> None:
    server = start_server('stat -c %s "$INPUT_FILE_PATH"')
    body, headers = bomb(kind)
    before = server.memory_mib("VmRSS")
    answer = server.call(body, headers=headers)
    assert (answer.status, int(answer.body)) == (200, BOMB_BYTES)
    assert server.memory_mib("VmHWM") < before + 32


@pytest.mark.executed
def test_bombs_take_no_more_memory_and_disk_than_the_limit(start_server: StartServer) -> None:
    limit = 4 * MIB
    server = start_server(ECHO, WATCHDOG_MAX_INPUT_SIZE=str(limit))
    most = 0
    is_over = threading.Event()

    def watch() -> None:
        nonlocal most
        while not is_over.wait(0.001):
            most = max(most, held_bytes(server))

    before = server.memory_mib("VmRSS")
    with server.connect() as sock:
        sock.sendall(ONE + b"Content-Length: %d\r\n\r\n" % limit + bytes(3 * MIB))
        # Up to one MiB of it is still in the memory of the server.
        until(lambda: held_bytes(server) >= MIB, "the begin of an input to be seen on the disk")
    until(lambda: not held_bytes(server), "the space to be free")
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for kind in ("gzip", "many members", "deflate", "base64", "part", "base64 part"):
            body, headers = bomb(kind)
            problem(server.call(body, headers=headers), 413)
    finally:
        is_over.set()
        watcher.join()
    assert most <= limit
    assert server.memory_mib("VmHWM") < before + 32
    assert server.call(b"YQ==").body == b"[/::a]"


# ---- names that try to leave the workspace, or to hide

# The workspace of the last call is removed while this script runs. So it is not a failure if find misses files.
LIST = r"""
printf '%s\0' "$INPUT_FILE_PATH" "$TMP_INPUT_DIR"
find "$TMP_INPUT_DIR" -mindepth 1 -print0
printf 'OUTSIDE\0'
find "$TMP_INPUT_DIR/.." "$TMP_INPUT_DIR/../.." -mindepth 1 -maxdepth 1 -print0 2>/dev/null || :
"""
NAMES: dict[str, str] = {
    "dots": "..",
    "dot": ".",
    "empty": "",
    "up": "../../up",
    "deep up": "../../../../../up",
    "absolute": "{directory}/absolute",
    "backslashes": "..\\..\\up",
    "folder": "name/",
    "folder below": "input/name",
    "hidden": ".bashrc",
    "hidden by white space": " \t.bashrc".replace("\t", ""),
    "device of Windows": "CON",
    "dash": "-rf",
    "300 bytes": "n" * 300 + ".jpg",
    "300 characters": "ñ" * 300 + ".jpg",
    "long ending": "n." + "e" * 300,
    "right to left": "a\u202egpj.exe",
    "right to left then hidden": "\u202e.bashrc",
    "zero width then hidden": "\u200b.bashrc",
    "dots with zero width": ".\u200b.",
    "only zero width": "\u200b\u2060",
    "line separator": "a\u2028b",
}
REFUSED_NAMES = {"NUL": "a\0b", "newline": "a\nb", "CR": "a\rb", "DEL": "a\x7fb", "escape": "a\x1b[2Jb"}


def percent(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode())


def named(way: str, name: str) -> tuple[str, dict[str, str], bytes]:
    """Return a call with this name, sent in this way: path, headers, body."""
    form = {"Content-Type": "multipart/form-data; boundary=B"}
    utf8 = name.encode()
    quoted = utf8.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    end = b"\r\n\r\nabc\r\n--B--\r\n"
    if way == "X-Filename":
        return "/", {"Content-Type": "a/b", "X-Filename": percent(name)}, b"abc"
    if way == "Content-Disposition":
        disposition = f"attachment; filename*=UTF-8''{percent(name)}"
        return "/", {"Content-Type": "a/b", "Content-Disposition": disposition}, b"abc"
    if way == "query":
        return f"/?filename={percent(name)}", {"Content-Type": "a/b"}, b"abc"
    start = b"--B\r\nContent-Disposition: form-data; "
    if way == "filename":
        return "/", form, start + b'name="f"; filename="' + quoted + b'"' + end
    if way == "filename*":
        return "/", form, start + b"name=\"f\"; filename*=UTF-8''" + percent(name).encode() + end
    assert way == "field"
    return "/", form, start + b'name="' + quoted + b'"' + end


# The files that may exist beside an input: other workspaces and their content.
_OF_THE_SERVER = r"\d+-[0-9a-f]{12}|input|output|response|lock"
WAYS = ["X-Filename", "Content-Disposition", "query", "filename", "filename*", "field"]


def check_the_workspace(listing: bytes) -> None:
    inside, _, outside = listing.partition(b"OUTSIDE\0")
    path, directory, *files = inside.split(b"\0")[:-1]
    assert path.startswith(directory + b"/")
    assert files == [path], "one file, right inside"
    name = path.removeprefix(directory + b"/").decode()
    assert "/" not in name
    assert not name.startswith((".", " "))
    assert len(name.encode()) <= 255
    assert not re.search("[\x00-\x1f\x7f\u200b\u202e\u2028\u2060]", name)
    around = {Path(os.fsdecode(each)).name for each in outside.split(b"\0")[:-1]}
    assert {"input", "output"} <= around
    strange = {each for each in around if not re.fullmatch(_OF_THE_SERVER, each)}
    assert strange == set()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("which", NAMES)
def test_a_name_stays_inside(listing: RunningServer, way: str, which: str) -> None:
    path, headers, body = named(way, NAMES[which].format(directory=listing.directory))
    answer = listing.call(body, path, headers=headers)
    assert answer.status == 200, answer.body
    check_the_workspace(answer.body)
    assert not (listing.directory / "absolute").exists()


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("filename", "field")])
@pytest.mark.parametrize("which", REFUSED_NAMES)
def test_a_name_with_a_control_character_is_refused(listing: RunningServer, way: str, which: str) -> None:
    path, headers, body = named(way, REFUSED_NAMES[which])
    problem(listing.call(body, path, headers=headers), 400)


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    yield from shared_server(tmp_path_factory.mktemp("names"), LIST)


@pytest.mark.guard("file-names")
@pytest.mark.parametrize("way", ["X-Filename", "filename", "field"])
def test_the_guard_is_what_keeps_a_name_inside(start_server: StartServer, way: str) -> None:
    server = start_server(LIST)
    path, headers, body = named(way, "../../up")
    answer = server.call(body, path, headers=headers)
    assert answer.status == 200
    check_the_workspace(answer.body)


# ---- content of $HTTP_RESPONSE_FILE

RESPONSES: dict[str, str] = {
    "CR in a value": r"printf 'X-A: b\rX-Split: c\n' > $HTTP_RESPONSE_FILE",
    "CR LF CR LF": r"printf 'X-A: b\r\n\r\nHTTP/1.1 200 OK\r\nX-Split: c\r\n' > $HTTP_RESPONSE_FILE",
    "CR CR LF": r"printf 'X-A: b\r\r\n' > $HTTP_RESPONSE_FILE",
    "NUL in a value": r"printf 'X-A: b\0c\n' > $HTTP_RESPONSE_FILE",
    "not UTF-8": r"printf 'X-A: \377\n' > $HTTP_RESPONSE_FILE",
    "length": "echo 'Content-Length: 1' > $HTTP_RESPONSE_FILE",
    "chunked": "echo 'Transfer-Encoding: chunked' > $HTTP_RESPONSE_FILE",
    "connection": "echo 'connection: upgrade' > $HTTP_RESPONSE_FILE",
    "another call's id": "echo 'X-Call-Id: other' > $HTTP_RESPONSE_FILE",
    "status 101": "echo 'Status: 101' > $HTTP_RESPONSE_FILE",
    "status 999": "echo 'Status: 999' > $HTTP_RESPONSE_FILE",
    "status of words": "echo 'Status: 200OK' > $HTTP_RESPONSE_FILE",
    "space in a name": "echo 'X A: b' > $HTTP_RESPONSE_FILE",
    "space before the colon": "echo 'X-A : b' > $HTTP_RESPONSE_FILE",
    "no name": "echo ': b' > $HTTP_RESPONSE_FILE",
    "a megabyte": "yes 'X-A: b' | head -c 1000000 > $HTTP_RESPONSE_FILE",
    "link to a secret": "ln -s $SECRET $HTTP_RESPONSE_FILE",
    "directory": "mkdir $HTTP_RESPONSE_FILE",
    "link to a device": "ln -s /dev/zero $HTTP_RESPONSE_FILE",
    "device": "mknod $HTTP_RESPONSE_FILE c 1 5",
    "link to itself": "ln -s response $HTTP_RESPONSE_FILE",
}


def choosing(commands: dict[str, str]) -> str:
    cases = "".join(f"'/{n}') {command};; " for n, command in enumerate(commands.values()))
    return f'case "$Http_Path" in {cases} esac; echo ok'


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("answers")
    (directory / "secret").write_text("X-Secret: 12345\n")
    yield from shared_server(directory, choosing(RESPONSES), SECRET=str(directory / "secret"))


def check_the_answer(server: RunningServer, number: int) -> None:
    answer = server.call(b"", f"/{number}")
    assert "$HTTP_RESPONSE_FILE" in str(problem(answer, 500)["detail"])
    assert b"12345" not in answer.body + bytes(answer.headers)
    assert "X-Split" not in answer.headers
    assert server.call(b"", "/fine").body == b"ok\n"


@pytest.mark.parametrize("which", RESPONSES)
def test_a_response_file_cannot_harm(answering: RunningServer, which: str) -> None:
    check_the_answer(answering, list(RESPONSES).index(which))


@pytest.mark.guard("response-file-checks")
@pytest.mark.parametrize("which", ["CR in a value", "length", "link to a secret"])
def test_the_checks_are_what_stops_a_response_file(start_server: StartServer, tmp_path: Path, which: str) -> None:
    (tmp_path / "secret").write_text("X-Secret: 12345\n")
    server = start_server(choosing({which: RESPONSES[which]}), SECRET=str(tmp_path / "secret"))
    check_the_answer(server, 0)


@pytest.mark.guard("response-file-checks", never="no answer came")
def test_a_fifo_as_response_file_delays_no_call(start_server: StartServer) -> None:
    server = start_server('[ "$Http_Path" = /bad ] && mkfifo $HTTP_RESPONSE_FILE; echo ok')
    problem(server.call(b"", "/bad"), 500)
    assert server.call(b"").body == b"ok\n"


def test_the_bytes_of_a_request_come_back_unchanged_through_all_of_this(echo: RunningServer) -> None:
    """After all tables, the server still works as before."""
    data = os.urandom(200_000)
    assert echo.call(base64.b64encode(data)).body == b"[/::" + data + b"]"
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", echo.port, timeout=echo.patience_s)) as connection:
        for n in range(5):
            connection.request("POST", f"/{n}", b"YQ==")
            assert connection.getresponse().read() == b"[/%d::a]" % n


@pytest.mark.guard("hyphens-before-underscores")
def test_header_with_hyphens_wins_over_one_with_underscores(start_server: StartServer) -> None:
    server = start_server('printf "[%s]" "$Http_X_1"')
    for headers in (
        b"X-1: right\r\nX_1: wrong",
        b"X_1: wrong\r\nX-1: right",
        b"x_1: wrong\r\nX_1: wrong\r\nx-1: right",
        b"X_1: right",
    ):
        answer = server.raw(
            b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n%b\r\n\r\n" % headers
        )
        assert answer.endswith(b"\r\n\r\n[right]"), headers


def test_header_with_underscores_is_left_out_whatever_its_case(start_server: StartServer) -> None:
    server = start_server("env")
    printed = server.call(b"", headers={"X_Api_Key": "wrong", "X-Api-Key": "right", "X_Other": "kept"}).body
    assert b"Http_X_Api_Key=right\n" in printed
    assert b"Http_X_other=kept\n" in printed
    assert b"wrong" not in printed


@pytest.mark.guard("no-sniffing")
def test_every_answer_forbids_sniffing(start_server: StartServer, free_port: int) -> None:
    script = (
        'echo "$Http_X_Lines" > "$HTTP_RESPONSE_FILE"; head -c "${Http_X_Size:-10}" /dev/zero; exit ${Http_X_Exit:-0}'
    )
    server = start_server(script, "--metrics-port", str(free_port), "--max-queue", "0")
    answers = {
        "call": server.call(b""),
        "long answer": server.call(b"", headers={"X-Size": "3000000"}),
        "failed call": server.call(b"", headers={"X-Exit": "3"}),
        "bad input": server.call(b"!"),
        "answer without a body": server.call(b"", headers={"X-Lines": "Status: 204"}),
        "wrong method": server.call(b"", method="OPTIONS"),
        "HEAD": server.call(None, method="HEAD"),
        "health": server.call(None, "/_/health", "GET"),
        "ready": server.call(None, "/_/ready", "GET"),
        "OpenAPI": server.call(None, "/_/openapi.json", "GET"),
        "metrics": server.call(None, "/metrics", "GET", port=free_port),
        "no metrics": server.call(None, "/", "GET", port=free_port),
    }
    for name, answer in answers.items():
        assert answer.headers.get_all("X-Content-Type-Options") == ["nosniff"], name
    for request in (
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ):
        assert b"\r\nX-Content-Type-Options: nosniff\r\n" in server.raw(request), request[:40]
    impatient = start_server("true", WATCHDOG_READ_TIMEOUT="100ms")
    given_up = impatient.raw_at_once(b"POST / HTTP/1.1\r\nHost: x\r\n")
    assert given_up.startswith(b"HTTP/1.1 408 ")
    assert b"\r\nX-Content-Type-Options: nosniff\r\n" in given_up
    chosen = server.call(b"", headers={"X-Lines": "X-Content-Type-Options: other"})
    assert chosen.headers.get_all("X-Content-Type-Options") == ["other"]


@pytest.mark.guard("linear-duration", never="no answer came")
def test_long_digits_in_x_timeout_delay_no_call(start_server: StartServer) -> None:
    server = start_server("echo in")
    for ending in ("x", ".", ".1x"):
        problem(server.call(b"", headers={"X-Timeout": "1" * 60_000 + ending}), 400)
    assert server.call(b"", headers={"X-Timeout": "1h2m3.5s"}).body == b"in\n"
