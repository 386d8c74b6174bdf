"""Classic functions: a command reads the body from stdin while the body arrives, and its output is the answer."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import http.client
import os
import random
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gateway import Gateway
from guards import changed_program
from lifeline import Lifeline
from running_server import PATIENT_STOP, Answer, RunningServer, StartServer, problem, read_all, until
from running_server import free_port as a_free_port

BINARY = bytes(range(256)) + random.Random(11).randbytes(100_000)
LARGE = random.Random(12).randbytes(10 << 20)
# A handshake with a function. The function makes a file when it runs, and ends when the test has made another file.
WAIT = 'touch "$HANDSHAKE/up-$CALL_ID"; while [ ! -e "$HANDSHAKE/go" ]; do sleep 0.02; done\n'
# The function reads five bytes, writes them to a file, and waits for the rest.
FIRST_HALF = 'dd bs=1 count=5 2>&- > "$HANDSHAKE/part"; mv "$HANDSHAKE/part" "$HANDSHAKE/first"\n'
# The function reads all bytes that arrive, and waits for more.
READ_ALL = 'touch "$HANDSHAKE/up-$CALL_ID"; cat > "$HANDSHAKE/read"; echo read\n'
HALF = b"POST / HTTP/1.1\r\nHost: x\r\nX-Call-Id: a\r\nConnection: close\r\nContent-Length: 10\r\n\r\nfirst"


class Functions:
    """Starts servers of a function, given as the text of a shell script. They share the directory ``handshake``."""

    def __init__(self, start_server: StartServer, directory: Path) -> None:
        self._start_server = start_server
        self.handshake = directory
        self._path = directory / "the function.sh"

    def serve(self, text: str, **environ: Any) -> RunningServer:
        self._path.write_text(text)
        return self.command(f"sh '{self._path}'", **environ)

    def command(self, fprocess: str, **environ: Any) -> RunningServer:
        return self._start_server(None, **{"fprocess": fprocess, "HANDSHAKE": str(self.handshake), **environ})

    def wait_for(self, name: str) -> None:
        until((self.handshake / name).exists, name)

    def let_go(self) -> None:
        (self.handshake / "go").touch()


@pytest.fixture
def functions(start_server: StartServer, tmp_path: Path) -> Functions:
    directory = tmp_path / "hand shake"
    directory.mkdir()
    return Functions(start_server, directory)


def chunked(body: bytes) -> Iterator[bytes]:
    """A body that http.client sends in chunks."""
    for at in range(0, len(body), 65536):
        yield body[at : at + 65536]


def call_in_chunks(server: RunningServer, body: bytes, headers: dict[str, str] | None = None) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=server.patience_s)
    with contextlib.closing(connection):
        connection.request("POST", "/", chunked(body), headers or {}, encode_chunked=True)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())


def ended(server: RunningServer) -> dict[str, object]:
    server.stop()
    (event,) = (event for event in server.logs if event["event"] == "invocation ended")
    return event


# ---- commands


def test_sha512sum(functions: Functions) -> None:
    server = functions.command("sha512sum")
    for body in (b"", b"abc", BINARY):
        assert server.call(body).body == hashlib.sha512(body).hexdigest().encode() + b"  -\n"
    assert call_in_chunks(server, LARGE).body == hashlib.sha512(LARGE).hexdigest().encode() + b"  -\n"


def test_env(functions: Functions) -> None:
    server = functions.command("env", OWN="mine")
    answer = server.call(b"QUJD", "/p?q=1", headers={"X-Call-Id": "id-1", "x-api-key": "k"})
    variables = dict(line.split("=", 1) for line in answer.body.decode().splitlines())
    expected = {
        "OWN": "mine",
        "CALL_ID": "id-1",
        "Http_Method": "POST",
        "Http_Path": "/p",
        "Http_Query": "q=1",
        "Http_Content_Length": "4",
        "Http_X_Api_Key": "k",
    }
    assert expected.items() <= variables.items()
    assert "HTTP_RESPONSE_FILE" in variables
    assert not {"INPUT_FILE_PATH", "TMP_INPUT_DIR", "TMP_OUTPUT_DIR"} & variables.keys()


def test_a_program_with_arguments(functions: Functions) -> None:
    program = functions.handshake / "index.py"
    program.write_text("import sys\nprint(sys.argv[1:], sys.stdin.read())\n")
    server = functions.command(f"{sys.executable} {shlex.quote(str(program))} 'a b' \"c\" d\\ e ''")
    assert server.call(b"body").body == b"['a b', 'c', 'd e', ''] body\n"


def test_quoted_arguments(functions: Functions) -> None:
    assert functions.command("sh -c 'cat; echo done'").call(b"body ").body == b"body done\n"


def test_the_program_is_found_as_a_shell_finds_it(functions: Functions) -> None:
    program = functions.handshake / "fn"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    server = functions.command("fn", PATH=f"{functions.handshake}:{os.environ['PATH']}")
    assert server.call(b"").body == b"found\n"


@pytest.mark.parametrize("fprocess", ["sh -c 'cat", "   "])
def test_a_command_that_cannot_be_split_stops_the_start(fprocess: str) -> None:
    command = [sys.executable, "-m", "watchdog", "serve", "--bind", "127.0.0.1", "--port", "0", "--fprocess", fprocess]
    started = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert started.returncode == 2
    assert started.stderr.startswith("fprocess: ")


def test_oscars_supervisor_is_not_a_function(start_server: StartServer) -> None:
    assert start_server("echo script", fprocess="/oscar/bin/supervisor").call(b"").body == b"script\n"


def test_a_missing_command_is_reported(functions: Functions) -> None:
    server = functions.command("no-such-command --flag")
    ready = server.call(None, "/_/ready", "GET")
    assert ready.status == 503
    assert b"no-such-command" in ready.body
    assert server.call(None, "/_/health", "GET").status == 200
    assert "no-such-command" in str(problem(server.call(b"body"), 500)["detail"])

    command = [sys.executable, "-m", "watchdog", "check", "--fprocess", "no-such-command"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 2
    assert "no-such-command" in checked.stdout.partition("problems:")[2]


# ---- the body


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", {}),
        (BINARY, {}),
        (b"aGVsbG8=", {"Content-Type": "text/plain"}),
        (b'{"a": 1, "a": 2}', {"Content-Type": "application/json"}),
        (b"a=1&b=2", {"Content-Type": "application/x-www-form-urlencoded"}),
        (gzip.compress(b"hello"), {"Content-Encoding": "gzip"}),
        (b"--X\r\n\r\n--X--\r\n", {"Content-Type": "multipart/form-data; boundary=X"}),
    ],
    ids=["empty", "binary", "base64", "json", "pairs", "gzip", "form"],
)
def test_the_body_is_passed_as_it_is(functions: Functions, body: bytes, headers: dict[str, str]) -> None:
    server = functions.command("cat")
    for answer in (server.call(body, headers=headers), call_in_chunks(server, body, headers)):
        assert (answer.status, answer.body) == (200, body)
        assert int(answer.headers["Content-Length"]) == len(body)


@pytest.mark.parametrize("path", ["/", "/?input=raw&output=zip", "/?input=nonsense&output=nonsense"])
def test_forms_of_input_and_answer_are_not_for_classic_functions(functions: Functions, path: str) -> None:
    headers = {"Accept": "application/json", "X-Input-Encoding": "nonsense", "X-Filename": "%ff"}
    answer = functions.command("cat").call(b"aGVsbG8=", path, headers=headers)
    assert (answer.status, answer.body) == (200, b"aGVsbG8=")


def test_the_function_reads_while_the_caller_sends(functions: Functions) -> None:
    server = functions.serve(FIRST_HALF + "cat")
    with server.connect() as sock:
        sock.sendall(HALF)
        functions.wait_for("first")
        assert (functions.handshake / "first").read_bytes() == b"first"
        sock.sendall(b" last")
        assert read_all(sock).endswith(b"\r\n\r\n last")
    event = ended(server)
    assert (event["outcome"], event["input_bytes"], event["output_bytes"]) == ("ok", 10, 5)


def test_the_function_reads_while_chunks_come(functions: Functions) -> None:
    server = functions.serve(FIRST_HALF + "cat")
    with server.connect() as sock:
        sock.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"
        )
        functions.wait_for("first")
        sock.sendall(b"5\r\n last\r\n0\r\n\r\n")
        assert read_all(sock).endswith(b"\r\n\r\n last")


def test_a_caller_that_waits_for_100_continue_gets_it_with_the_place(functions: Functions) -> None:
    server = functions.serve(WAIT + "cat", max_inflight="1")
    with ThreadPoolExecutor(1) as pool, server.connect() as sock:
        first = pool.submit(server.call, b"one", headers={"X-Call-Id": "a"})
        functions.wait_for("up-a")
        sock.sendall(HALF.replace(b"X-Call-Id: a", b"X-Call-Id: b\r\nExpect: 100-continue").removesuffix(b"first"))
        functions.let_go()
        assert first.result().body == b"one"
        functions.wait_for("up-b")
        assert sock.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"first last")
        assert read_all(sock).endswith(b"\r\n\r\nfirst last")


@pytest.mark.parametrize("body", [b"small", LARGE], ids=["small", "large"])
def test_a_function_may_leave_its_body_unread(functions: Functions, body: bytes) -> None:
    server = functions.command("echo hi")
    assert server.call(body).body == b"hi\n"
    answer = call_in_chunks(server, body)
    assert (answer.status, answer.body) == (200, b"hi\n")


@pytest.mark.parametrize("body", [b"small", LARGE], ids=["small", "large"])
def test_a_function_may_end_before_it_read_all(functions: Functions, body: bytes) -> None:
    server = functions.command("head -c 3")
    assert server.call(body).body == body[:3]
    assert call_in_chunks(server, body).body == body[:3]


def test_a_function_may_close_its_stdin_and_continue(functions: Functions) -> None:
    server = functions.serve("exec <&-\n" + WAIT + "echo hi")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(server.call, LARGE, headers={"X-Call-Id": "a"})
        functions.wait_for("up-a")
        functions.let_go()
        assert call.result().body == b"hi\n"


def test_the_next_request_on_the_connection_is_read_from_its_beginning(functions: Functions) -> None:
    server = functions.command("head -c 1")
    body = b"xPOST / HTTP/1.1\r\n\r\n" * 20_000
    with server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\nyz")
        answers = read_all(sock)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"200"]
    assert answers.endswith(b"\r\n\r\ny")


def test_a_body_that_is_cut_off_does_not_count_as_complete(functions: Functions, lifeline: Lifeline) -> None:
    server = functions.serve(lifeline.script_line + READ_ALL.replace("echo read", 'touch "$HANDSHAKE/thought-whole"'))
    with server.connect() as sock:
        sock.sendall(HALF)
        functions.wait_for("up-a")
    server.event("invocation ended", outcome="caller_gone")
    until(lambda: not lifeline.is_held(), "the function to be gone")
    assert not (functions.handshake / "thought-whole").exists()


def test_a_malformed_chunk_ends_the_function(functions: Functions, lifeline: Lifeline) -> None:
    server = functions.serve(lifeline.script_line + READ_ALL.replace("echo read", 'touch "$HANDSHAKE/thought-whole"'))
    with server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nX-Call-Id: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        functions.wait_for("up-a")
        sock.sendall(b"zz\r\n")
        assert read_all(sock).startswith(b"HTTP/1.1 400 ")
    assert not lifeline.is_held()
    assert not (functions.handshake / "thought-whole").exists()


# ---- the answer


def test_binary_stdout(functions: Functions) -> None:
    (functions.handshake / "data").write_bytes(BINARY)
    server = functions.command(f"cat {shlex.quote(str(functions.handshake / 'data'))}")
    assert server.call(b"").body == BINARY


def test_empty_stdout(functions: Functions) -> None:
    answer = functions.command("true").call(b"body")
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "0")
    assert answer.headers["X-Exit-Code"] == "0"
    assert re.fullmatch(r"\d+\.\d{6}", answer.headers["X-Duration-Seconds"])


def test_a_function_chooses_status_and_headers(functions: Functions) -> None:
    server = functions.serve(
        "printf 'Status: 404\\nX-Reason: no plant\\nContent-Type: text/x\\n' > $HTTP_RESPONSE_FILE; echo nothing"
    )
    answer = server.call(b"", headers={"Content-Type": "image/x"})
    assert (answer.status, answer.headers["X-Reason"], answer.body) == (404, "no plant", b"nothing\n")
    assert answer.headers.get_all("Content-Type") == ["text/x"]


def test_the_content_type(functions: Functions) -> None:
    server = functions.command("cat")
    assert server.call(b"").headers["Content-Type"] == "application/octet-stream"
    for given in ("text/csv", "application/json; charset=utf-8", "multipart/form-data; boundary=X"):
        assert server.call(b"", headers={"Content-Type": given}).headers["Content-Type"] == given
    server = functions.command("cat", content_type="text/csv; header=present")
    for headers in ({}, {"Content-Type": "image/x"}):
        assert server.call(b"", headers=headers).headers["Content-Type"] == "text/csv; header=present"


def test_a_content_type_of_two_lines_stops_the_start() -> None:
    environ = os.environ | {"fprocess": "cat", "content_type": "text/plain\n; charset=utf-8"}
    command = [sys.executable, "-m", "watchdog", "check"]
    checked = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 2
    assert "expected a media type" in checked.stdout


def test_a_content_type_that_is_not_utf8_harms_nobody(functions: Functions) -> None:
    server = functions.command("cat")
    assert server.call(b"body", headers={"Content-Type": "text/x; a=\xff"}).status in (200, 400)
    assert server.call(b"body").body == b"body"


SAYS = "echo out; echo 'ERROR: bad' >&2; echo '[warning] odd' >&2; echo more"


def test_stderr_goes_to_the_log(functions: Functions) -> None:
    server = functions.serve(SAYS)
    assert server.call(b"", headers={"X-Call-Id": "a"}).body == b"out\nmore\n"
    server.stop()
    said = [event for event in server.logs if event.get("logger") == "script"]
    assert [(e["event"], e["level"], e["stream"], e["call_id"]) for e in said] == [
        ("ERROR: bad", "error", "stderr", "a"),
        ("[warning] odd", "warning", "stderr", "a"),
    ]


def test_combine_output(functions: Functions) -> None:
    server = functions.serve(SAYS, combine_output="true")
    assert server.call(b"").body == b"out\nERROR: bad\n[warning] odd\nmore\n"
    server.stop()
    assert [event for event in server.logs if event.get("logger") == "script"] == []


# ---- failures


FAILS = "echo out; echo why >&2; exit 3"


def test_an_exit_code_is_a_500_with_the_output(functions: Functions) -> None:
    server = functions.serve(FAILS)
    answer = server.call(b"body", headers={"Content-Type": "image/x"})
    assert (answer.status, answer.body) == (500, b"exit status 3\nout\nwhy\n")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert answer.headers["X-Exit-Code"] == "3"
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    event = ended(server)
    assert (event["outcome"], event["exit_code"], event["level"]) == ("failed", 3, "error")


def test_the_answer_has_the_last_words_only(functions: Functions) -> None:
    server = functions.serve("seq 2000 >&2; echo last words >&2; printf 'no line end'; exit 1")
    body = server.call(b"").body
    assert body.startswith(b"exit status 1\nno line end\n")
    assert body.endswith(b"2000\nlast words\n")
    assert len(body) == len(b"exit status 1\nno line end\n") + 4096


def test_a_failure_with_combined_output(functions: Functions) -> None:
    server = functions.serve(FAILS, combine_output="true")
    assert server.call(b"").body == b"exit status 3\nout\nwhy\n"


def test_a_failure_is_counted_as_one_though_the_caller_hangs_up_at_its_last_byte(
    functions: Functions, free_port: int
) -> None:
    server = functions.serve("head -c 300000 /dev/zero; exit 3", WATCHDOG_METRICS_PORT=str(free_port))
    reset = struct.pack("ii", 1, 0)
    for _ in range(50):
        with server.connect() as sock, sock.makefile("rb") as answer:
            sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            assert answer.readline().split()[1] == b"500"
            headers = dict(line.split(b": ") for line in iter(answer.readline, b"\r\n"))
            assert len(answer.read(int(headers[b"Content-Length"]))) == 300_000 + len("exit status 3\n")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)

    def counts() -> set[tuple[str, str]]:
        text = server.call(None, "/metrics", "GET", port=free_port).body.decode()
        return set(re.findall(r'http_requests_total{code="([0-9]+)".*} ([1-9].*)', text))

    until(lambda: sum(float(count) for _, count in counts()) == 50, "all calls to be counted")
    assert counts() == {("500", "50.0")}


@pytest.mark.parametrize("accept", ["application/problem+json", "application/json", "text/html, application/json"])
def test_a_failure_as_a_problem_document(functions: Functions, accept: str) -> None:
    document = problem(functions.serve(FAILS).call(b"", headers={"Accept": accept}), 500)
    assert (document["exit_code"], document["stderr"]) == (3, "why\n")


def test_a_signal(functions: Functions) -> None:
    server = functions.serve("echo out; kill -9 $$")
    answer = server.call(b"")
    assert (answer.status, answer.body) == (500, b"signal: SIGKILL\nout\n")
    assert problem(server.call(b"", headers={"Accept": "application/json"}), 500)["signal"] == "SIGKILL"


def test_a_failing_function_may_choose_its_status(functions: Functions) -> None:
    server = functions.serve("printf 'Status: 422\\nX-Why: blurred' > $HTTP_RESPONSE_FILE; " + FAILS)
    answer = server.call(b"")
    assert (answer.status, answer.headers["X-Why"]) == (422, "blurred")
    server = functions.serve("printf 'Status: 201' > $HTTP_RESPONSE_FILE; " + FAILS)
    assert server.call(b"").status == 500, "a failure is no success"


def test_error_status_false(functions: Functions) -> None:
    answer = functions.serve(FAILS, WATCHDOG_ERROR_STATUS="false").call(b"")
    assert (answer.status, answer.body, answer.headers["X-Exit-Code"]) == (200, b"out\n", "3")


@pytest.mark.parametrize("by", ["setting", "header"])
def test_a_timeout(functions: Functions, lifeline: Lifeline, by: str) -> None:
    environ = {"exec_timeout": "2s"} if by == "setting" else {}
    server = functions.serve(lifeline.script_line + "cat; echo bye >&2; sleep 60 & sleep 60", **environ)
    answer = server.call(b"body", headers={"X-Timeout": "2s" if by == "header" else "50"})
    assert problem(answer, 504)["stderr"] == "bye\n"
    assert lifeline.was_held()
    assert not lifeline.is_held()
    assert ended(server)["outcome"] == "timeout"


def test_a_timeout_while_the_caller_sends(functions: Functions, lifeline: Lifeline) -> None:
    server = functions.serve(lifeline.script_line + READ_ALL, exec_timeout="2s")
    with server.connect() as sock:
        sock.sendall(HALF)
        # The server then still waits for the rest of the body, because a caller may send all before it reads.
        assert sock.recv(65536).startswith(b"HTTP/1.1 504 ")
    assert lifeline.was_held()
    assert not lifeline.is_held()


def test_a_timeout_stays_one_when_the_caller_falls_silent_in_the_grace(functions: Functions) -> None:
    server = functions.serve(
        "trap '' TERM\n" + READ_ALL, exec_timeout="2s", read_timeout="3s", WATCHDOG_KILL_GRACE="4s"
    )
    with server.connect() as sock:
        sock.sendall(HALF)
        assert sock.recv(65536).startswith(b"HTTP/1.1 504 ")
    assert ended(server)["outcome"] == "timeout"


@pytest.mark.guard("disconnect", never="the event 'invocation ended'")
def test_a_caller_that_disconnects_ends_the_function(functions: Functions, lifeline: Lifeline) -> None:
    server = functions.serve(lifeline.script_line + "sleep 600 &\n" + WAIT)
    with server.connect() as sock:
        sock.sendall(HALF + b" last")
        functions.wait_for("up-a")
        assert lifeline.is_held()
    server.event("invocation ended", outcome="caller_gone")
    until(lambda: not lifeline.is_held(), "the function and its child to be gone")


@pytest.mark.guard("unread-end", never="the event 'invocation ended'")
def test_a_caller_that_disconnects_is_noticed_although_its_body_is_not_read(
    functions: Functions, lifeline: Lifeline
) -> None:
    server = functions.serve(lifeline.script_line + WAIT)
    with server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nX-Call-Id: a\r\nContent-Length: 1800000\r\n\r\n")
        functions.wait_for("up-a")
        # Send more than the server reads if the function does not read, but only as much as fits into the buffers of
        # the server's kernel. Otherwise this kernel would not get the end of the connection.
        sent_bytes = 0
        while not is_left_unread(server, sock):
            sock.sendall(bytes(16_384))
            sent_bytes += 16_384
            assert sent_bytes < 1_800_000
    assert server.event("invocation ended", outcome="caller_gone")["input_bytes"] < sent_bytes
    until(lambda: not lifeline.is_held(), "the function to be gone")


def is_left_unread(server: RunningServer, caller: socket.socket) -> bool:
    """Return whether bytes of a caller stay in the kernel although the event loop of the server runs."""
    held_bytes = held_by_the_system(server, caller)
    for _ in range(3):
        assert server.call(None, "/_/health", "GET").status == 200
    return held_bytes > 0 and held_by_the_system(server, caller) == held_bytes


def held_by_the_system(server: RunningServer, caller: socket.socket) -> int:
    """Return the number of bytes that arrived from a caller and were not read (proc_net_tcp(5), rx_queue)."""
    ends = server.port, caller.getsockname()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        if tuple(int(end.partition(":")[2], 16) for end in (local, remote)) == ends:
            return int(queues.partition(":")[2], 16)
    raise AssertionError("no such connection")


@pytest.mark.guard("straggler-search")
def test_nothing_survives_the_function(functions: Functions, lifeline: Lifeline) -> None:
    server = functions.serve(lifeline.script_line + "setsid sleep 600 >/dev/null 2>&1 & cat")
    assert server.call(b"body").body == b"body"
    assert lifeline.was_held()
    assert not lifeline.is_held()


@pytest.mark.guard("body-timer", never="the connection was not closed")
def test_a_caller_that_falls_silent(functions: Functions, lifeline: Lifeline) -> None:
    server = functions.serve(lifeline.script_line + READ_ALL, read_timeout="1s")
    with server.connect() as sock:
        sock.settimeout(server.patience_s)
        sock.sendall(HALF.replace(b"Content-Length: 10", b"Content-Length: 1000000"))
        # The function may need longer to start than the caller may be silent.
        until(lambda: sock.send(b"x") and (functions.handshake / "up-a").exists(), "the start of the function")
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"read_timeout" in answer
    assert lifeline.was_held()
    assert not lifeline.is_held()
    assert ended(server)["outcome"] == "caller_silent"


def test_an_input_that_is_too_large(functions: Functions, lifeline: Lifeline) -> None:
    server = functions.serve(lifeline.script_line + READ_ALL, WATCHDOG_MAX_INPUT_SIZE="1Ki")
    assert server.call(bytes(1024)).body == call_in_chunks(server, bytes(1024)).body == b"read\n"
    assert lifeline.was_held()
    problem(server.call(bytes(1025)), 413)
    assert not lifeline.was_held(), "the function is not started for what is known to be too large"
    problem(call_in_chunks(server, LARGE), 413)
    with server.connect() as sock:
        sock.sendall(HALF.replace(b"Content-Length: 10", b"Transfer-Encoding: chunked").removesuffix(b"first"))
        sock.sendall(b"5\r\nfirst\r\n")
        functions.wait_for("up-a")
        sock.sendall(b"400\r\n" + bytes(1024) + b"\r\n0\r\n\r\n")
        assert read_all(sock).startswith(b"HTTP/1.1 413 ")
    assert not lifeline.is_held()


def test_an_output_that_is_too_large(functions: Functions) -> None:
    server = functions.command("cat", WATCHDOG_MAX_OUTPUT_SIZE="1Ki")
    assert server.call(bytes(1024)).body == bytes(1024)
    for body in (bytes(1025), LARGE):
        assert "max_output_size" in str(problem(server.call(body), 500)["detail"])


# ---- places, drain, token


def test_a_second_call_waits_for_its_place(functions: Functions) -> None:
    metrics_port = a_free_port()
    server = functions.serve(
        WAIT + "cat", max_inflight="1", WATCHDOG_MAX_QUEUE="1", WATCHDOG_METRICS_PORT=str(metrics_port)
    )

    def is_waiting() -> bool:
        return b"watchdog_calls_waiting 1.0" in server.call(None, "/metrics", "GET", port=metrics_port).body

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(server.call, b"one", headers={"X-Call-Id": "a"})
        functions.wait_for("up-a")
        second = pool.submit(server.call, b"two", headers={"X-Call-Id": "b"})
        until(is_waiting, "the second call to wait")
        problem(server.call(b"three"), 429)
        assert not (functions.handshake / "up-b").exists()
        functions.let_go()
        assert (first.result().body, second.result().body) == (b"one", b"two")


def test_a_slow_caller_holds_its_place_and_no_more(functions: Functions) -> None:
    """The call gets its place before the body is read, because the function runs while the body arrives."""
    server = functions.serve(READ_ALL, max_inflight="2")
    with server.connect() as sock:
        sock.sendall(HALF)
        functions.wait_for("up-a")
        assert server.call(b"", headers={"X-Call-Id": "b"}).body == b"read\n"
        sock.sendall(b" last")
        assert read_all(sock).endswith(b"read\n")


def test_a_drain_lets_a_function_finish(functions: Functions) -> None:
    server = functions.serve(WAIT + "cat")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(server.call, b"body", headers={"X-Call-Id": "a"})
        functions.wait_for("up-a")
        server.signal(signal.SIGTERM)
        server.event("draining")
        functions.let_go()
        assert call.result().body == b"body"
    assert server.wait() == 0


def test_a_drain_lets_a_function_read_on(functions: Functions) -> None:
    server = functions.serve(FIRST_HALF + "cat")
    with server.connect() as sock:
        sock.sendall(HALF)
        functions.wait_for("first")
        server.signal(signal.SIGTERM)
        until(functools.partial(is_refused, server), "new connections to be refused")
        sock.sendall(b" last")
        assert read_all(sock).endswith(b"\r\n\r\n last")
    assert server.wait() == 0
    assert server.leftovers() == []


def is_refused(server: RunningServer) -> bool:
    try:
        server.connect().close()
    except (ConnectionRefusedError, TimeoutError):
        return True
    return False


def test_a_drain_ends_a_function_whose_body_never_ends(functions: Functions, lifeline: Lifeline) -> None:
    server = functions.serve(lifeline.script_line + READ_ALL, write_timeout="300ms")
    with server.connect() as sock:
        sock.sendall(HALF)
        functions.wait_for("up-a")
        server.signal(signal.SIGTERM)
        assert read_all(sock).startswith(b"HTTP/1.1 503 ")
    assert server.wait() == 0
    assert not lifeline.is_held()
    assert server.leftovers() == []


@pytest.mark.parametrize("signals", [1, 2])
def test_a_drain_sends_the_answer_although_the_body_never_ends(functions: Functions, signals: int) -> None:
    server = functions.serve(
        'touch "$HANDSHAKE/up-$CALL_ID"; echo done',
        program=changed_program(PATIENT_STOP, None),
        write_timeout="1s",
        max_inflight="1",
        healthcheck_interval="100ms",
    )
    with server.connect() as sock:
        sock.sendall(HALF)
        functions.wait_for("up-a")
        until(lambda: server.call(None, "/_/ready", "GET").status == 200, "the function's end")
        server.signal(signal.SIGTERM)
        server.event("draining")  # two signals at the same time could count as one
        if signals == 2:
            server.signal(signal.SIGTERM)
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\ndone\n")
    assert ended(server)["outcome"] == "ok"


def test_the_token(functions: Functions) -> None:
    server = functions.command("env", WATCHDOG_AUTH_TOKEN="s3cret")
    problem(server.call(b"x" * 300_000), 401)
    answer = server.call(b"", headers={"Authorization": "Bearer s3cret"})
    assert answer.status == 200
    assert b"s3cret" not in answer.body


# ---- without HTTP, behind the gateway, large


def test_watchdog_run(functions: Functions, tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(BINARY)
    environ = os.environ | {"fprocess": "sh -c 'cat; echo said >&2; exit ${CODE:-0}'", "WATCHDOG_LOG_FORMAT": "json"}
    command = [sys.executable, "-m", "watchdog", "run", str(tmp_path / "input")]
    done = subprocess.run(command, env=environ, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, BINARY)
    assert b'"said"' in done.stderr
    failed = subprocess.run(command, env=environ | {"CODE": "4"}, capture_output=True, timeout=60)
    assert failed.returncode == 4
    output = tmp_path / "output"
    done = subprocess.run([*command, "-o", str(output)], env=environ, capture_output=True, timeout=60)
    assert (done.returncode, output.read_bytes()) == (0, BINARY)


@pytest.mark.parametrize(("fprocess", "code"), [("true", 0), ("sleep 600", 124)], ids=["exit", "timeout"])
def test_watchdog_run_does_not_wait_for_stdin(tmp_path: Path, fprocess: str, code: int) -> None:
    """No process writes to stdin, and it does not end. A terminal is an example."""
    environ = os.environ | {"fprocess": fprocess, "TMPDIR": str(tmp_path), "exec_timeout": "1s"}
    command = [sys.executable, "-m", "watchdog", "run", "-"]
    with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.wait(timeout=RunningServer.patience_s) == code


def test_watchdog_run_passes_stdin_on_as_it_comes(tmp_path: Path) -> None:
    environ = os.environ | {"fprocess": "head -n 1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "watchdog", "run", "-"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environ, bufsize=0, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"a line\nhalf")
        assert process.wait(timeout=RunningServer.patience_s) == 0
        assert process.stdout.read() == b"a line\n"


def test_behind_the_gateway(functions: Functions) -> None:
    server = functions.command("cat")
    with Gateway(server.port) as gateway:
        for body in (b"", b"hello", LARGE):
            answer = server.call(body, "/function/fn", headers={"Content-Type": "image/x"}, port=gateway.port)
            assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, body, "image/x")


def test_many_at_once(functions: Functions) -> None:
    server = functions.command("sha512sum", max_inflight="8", WATCHDOG_MAX_QUEUE="100")
    bodies = [random.Random(seed).randbytes(200_000) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(server.call, bodies))
    assert [answer.body.split()[0].decode() for answer in answers] == [hashlib.sha512(b).hexdigest() for b in bodies]
    server.stop()
    assert server.leftovers() == []


BLOCK = random.Random(7).randbytes(1 << 20)
# Each body is larger than the memory that the server may use.
MEBIBYTES = pytest.mark.parametrize("mib", [256, pytest.param(1024, marks=pytest.mark.nightly)])


@pytest.mark.slow
@pytest.mark.timeout(600)
@MEBIBYTES
def test_a_large_body_in_and_out(functions: Functions, mib: int) -> None:
    """The server needs constant memory: the body passes through a pipe, and the answer through a file."""
    server = functions.command("cat")
    expected = hashlib.sha256()
    for _ in range(mib):
        expected.update(BLOCK)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    with contextlib.closing(connection):
        connection.request("POST", "/", (BLOCK for _ in range(mib)), {"Content-Type": "image/x"}, encode_chunked=True)
        response = connection.getresponse()
        assert response.status == 200
        assert response.headers["Content-Length"] == str(len(BLOCK) * mib)
        found = hashlib.sha256()
        while piece := response.read(4 << 20):
            found.update(piece)
    assert found.digest() == expected.digest()
    assert server.memory_mib("VmHWM") < 96
    assert server.stop() == 0
    assert server.leftovers() == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@MEBIBYTES
def test_a_large_body_that_is_only_read(functions: Functions, mib: int) -> None:
    """The server stores no part of the body, so the body may be larger than the disk."""
    server = functions.command("sha512sum")
    largest = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal largest
        while not done.wait(0.05):
            sizes = [path.stat().st_size for path in server.tmp.rglob("*") if path.is_file()]
            largest = max([largest, *sizes])

    watcher = threading.Thread(target=watch)
    watcher.start()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    with contextlib.closing(connection):
        try:
            connection.request("POST", "/", (BLOCK for _ in range(mib)), {}, encode_chunked=True)
            body = connection.getresponse().read()
        finally:
            done.set()
            watcher.join()
    expected = hashlib.sha512()
    for _ in range(mib):
        expected.update(BLOCK)
    assert body == expected.hexdigest().encode() + b"  -\n"
    assert largest < 1 << 20
    assert server.memory_mib("VmHWM") < 96
