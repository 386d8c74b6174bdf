"""The behaviour of the program for its callers, with a real process, real sockets and real scripts."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import pty
import random
import re
import select
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from control_groups import ControlGroup, joining, made_control_group
from guards import changed_program
from running_server import PATIENT_STOP, Answer, RunningServer, StartServer, problem, read_all, read_answer, until

COPY = 'cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/output.bin"\n'
PICTURE = b"\xff\xd8\xff\xe0" + random.Random(3).randbytes(50_000)
# A handshake with a script. The script makes a file when it runs, and ends when the test has made another file.
WAIT = 'touch "$HANDSHAKE/up-$CALL_ID"; while [ ! -e "$HANDSHAKE/go" ]; do sleep 0.02; done; '


# ---- the seed case


SEED_SCRIPT = """\
#!/bin/bash
echo "SCRIPT: Invoked deepaas-predict command."
mv "$INPUT_FILE_PATH" "$INPUT_FILE_PATH.jpg"
printf '{"name": "%s", "sha": "%s"}' "$(basename "$INPUT_FILE_PATH")" \
    "$(sha256sum < "$INPUT_FILE_PATH.jpg" | cut -d' ' -f1)" > "$TMP_OUTPUT_DIR/result.json"
echo noise; echo noise >&2
"""


@pytest.fixture
def seed(start_server: StartServer) -> RunningServer:
    return start_server(SEED_SCRIPT)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (base64.b64encode(PICTURE), {"Content-Type": "application/x-www-form-urlencoded"}),
        (base64.encodebytes(PICTURE), {}),
        (b'="' + base64.b64encode(PICTURE) + b'"', {"Content-Type": "application/x-www-form-urlencoded"}),
        (PICTURE, {"Content-Type": "image/jpeg"}),
        (
            b'--X\r\nContent-Disposition: form-data; name="file"; filename="image3.jpg"\r\n\r\n'
            + PICTURE
            + b"\r\n--X--\r\n",
            {"Content-Type": "multipart/form-data; boundary=X"},
        ),
        (gzip.compress(PICTURE), {"Content-Type": "image/jpeg", "Content-Encoding": "gzip"}),
    ],
    ids=["curl --data", "wrapped", "quoted", "raw", "form", "gzip"],
)
def test_the_seed_case(seed: RunningServer, body: bytes, headers: dict[str, str]) -> None:
    answer = seed.call(body, "/run/plant-classification-sync", headers=headers)
    assert answer.status == 200, answer.body
    assert answer.body.endswith(b"\n")
    result = json.loads(base64.b64decode(answer.body, validate=False))
    assert result["sha"] == hashlib.sha256(PICTURE).hexdigest()
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    assert answer.headers["X-Output-Name"] == "result.json"
    assert answer.headers["X-Output-Content-Type"] == "application/json"
    assert answer.headers["X-Exit-Code"] == "0"
    assert float(answer.headers["X-Duration-Seconds"]) > 0


def test_curl_as_in_oscars_guide(seed: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "image3.jpg").write_bytes(PICTURE)
    url = f"http://127.0.0.1:{seed.port}/run/plant-classification-sync"
    commands = [
        f"base64 image3.jpg | curl -s --data @- {url} | base64 -d",
        f"base64 -w0 image3.jpg | curl -s --data-binary @- {url} | base64 -d",
        f"""curl -s -d '="'$(head -c 3000 image3.jpg | base64 -w0)'"' {url} | base64 -d""",
        f"curl -s --data-binary @image3.jpg -H 'Content-Type: image/jpeg' {url} | base64 -d",
        f"curl -s -F file=@image3.jpg {url} | base64 -d",
        f"curl -s -T image3.jpg -H 'Content-Type: image/jpeg' {url} | base64 -d",
        f"curl -s -F file=@image3.jpg '{url}?output=raw'",
    ]
    for command in commands:
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, check=True)
        size = 3000 if "head -c" in command else None
        assert json.loads(done.stdout)["sha"] == hashlib.sha256(PICTURE[:size]).hexdigest(), command


@pytest.mark.parametrize("level", ["NOTSET", "debug", "INFO", "WARNING", "CRITICAL"])
def test_logs_are_never_part_of_the_answer(start_server: StartServer, level: str) -> None:
    script = 'echo "DEBUG: a"; echo "ERROR: b" >&2; printf answer > "$TMP_OUTPUT_DIR/x"'
    server = start_server(script, WATCHDOG_LOG_LEVEL=level)
    assert server.call(b"").body == base64.b64encode(b"answer") + b"\n"
    server.stop()
    lines = {event["event"] for event in server.logs if event.get("logger") == "script"}
    shown = {"NOTSET": 2, "debug": 2, "INFO": 1, "WARNING": 1, "CRITICAL": 0}[level]
    assert len(lines) == shown


# ---- the input


def test_names(start_server: StartServer) -> None:
    server = start_server('basename "$INPUT_FILE_PATH"')
    assert server.call(b"", headers={"X-Filename": "a%20b.jpg"}).body == b"a b.jpg\n"
    assert server.call(b"", headers={"Content-Disposition": 'attachment; filename="c.png"'}).body == b"c.png\n"
    utf8 = "attachment; filename*=UTF-8''%C3%A9.png"
    assert server.call(b"", headers={"Content-Disposition": utf8}).body == "é.png\n".encode()
    assert server.call(b"", "/?filename=../../etc/d.txt").body == b"d.txt\n"
    assert server.call(b"").body.startswith(b"event-file-")
    for headers in ({"X-Filename": "a%00b"}, {"X-Filename": "%ff"}, {"Content-Disposition": "@@@"}):
        problem(server.call(b"", headers=headers), 400)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_methods(start_server: StartServer, method: str) -> None:
    server = start_server('cat "$INPUT_FILE_PATH"; echo $Http_Method $Http_Path $Http_Query')
    answer = server.call(None, "/a/b%20c?x=1&y=%26", method)
    assert answer.body == f"{method} /a/b%20c x=1&y=%26\n".encode()
    assert server.call(b"", method="OPTIONS").status == 405


def test_a_chunked_body_and_expect_100(start_server: StartServer) -> None:
    server = start_server('cat "$INPUT_FILE_PATH"')
    with server.connect() as sock:
        sock.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: image/x\r\nTransfer-Encoding: chunked\r\n"
            b"Expect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        assert sock.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"5\r\nhello\r\n1;ext=1\r\n!\r\n0\r\nTrailer: x\r\n\r\n")
        assert read_all(sock).endswith(b"\r\n\r\nhello!")


def test_the_environment_of_the_script(start_server: StartServer) -> None:
    environ = {"OWN": "mine", "WATCHDOG_AUTH_TOKEN": "s3cret", "PYTHONHOME": ""}
    server = start_server("tr '\\0' '\\n' < /proc/self/environ", **environ)
    trace = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
    answer = server.call(
        b"aGk=",
        "/p?q=1",
        headers={
            "Authorization": "Bearer s3cret",
            "Cookie": "a=b",
            "Proxy": "http://evil",
            "X-My-Header": "v",
            "X-Call-Id": "id-1",
            "traceparent": trace,
            "tracestate": "a=1",
        },
    )
    variables = dict(line.split("=", 1) for line in answer.body.decode().splitlines())
    assert variables["OWN"] == "mine"
    assert variables["CALL_ID"] == answer.headers["X-Call-Id"] == "id-1"
    assert variables["Http_X_My_Header"] == "v"
    assert variables["Http_Method"] == "POST"
    assert variables["Http_Path"] == "/p"
    assert variables["Http_Query"] == "q=1"
    assert variables["Http_Content_Length"] == variables["Http_ContentLength"] == "4"
    assert variables["TRACEPARENT"] == trace
    assert variables["TRACESTATE"] == "a=1"
    assert "s3cret" not in answer.body.decode()
    assert not [name for name in variables if re.match("(?i)http_(authorization|cookie|proxy)", name)]
    own = set(variables) - set(os.environ) - set(environ) - {"_", "SHLVL", "PWD", "OLDPWD"}
    added = {name for name in own if not name.startswith(("Http_", "WATCHDOG_"))}
    contract = {"INPUT_FILE_PATH", "TMP_INPUT_DIR", "TMP_OUTPUT_DIR", "CALL_ID", "HTTP_RESPONSE_FILE"}
    assert added - {"TMPDIR"} == contract | {"TRACEPARENT", "TRACESTATE"}


def test_cgi_headers_can_be_off(start_server: StartServer) -> None:
    server = start_server("env", WATCHDOG_CGI_HEADERS="false")
    assert b"Http_" not in server.call(b"").body


def test_script_in_the_environment_wins_and_files_are_read_each_time(start_server: StartServer) -> None:
    server = start_server("echo one")
    assert server.call(b"").body == b"one\n"
    server.script.write_text("#!/usr/bin/env python3\nprint('two')\n")
    assert server.call(b"").body == b"two\n"
    text = base64.b64encode(b"#!/bin/bash\necho ${BASH_VERSION:+bash}\n").decode()
    server = start_server("echo file", SCRIPT=text)
    assert server.call(b"").body == b"bash\n"


# ---- the answer


OUTPUTS = 'printf one > "$TMP_OUTPUT_DIR/a.txt"; mkdir "$TMP_OUTPUT_DIR/d"; printf two > "$TMP_OUTPUT_DIR/d/b.json"'


def unzipped(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_several_outputs_are_a_zip(start_server: StartServer) -> None:
    server = start_server(OUTPUTS)
    both = {"a.txt": b"one", "d/b.json": b"two"}
    answer = server.call(b"")
    assert answer.body.endswith(b"\n")
    assert unzipped(base64.b64decode(answer.body)) == both
    assert "X-Output-Name" not in answer.headers
    answer = server.call(b"", "/?output=zip")
    assert answer.headers["Content-Type"] == "application/zip"
    assert unzipped(answer.body) == both
    assert unzipped(server.call(b"", headers={"Accept": "application/zip"}).body) == both
    problem(server.call(b"", "/?output=raw"), 406)


def test_forms_of_one_output(start_server: StartServer) -> None:
    server = start_server('echo log; printf \'{"a":1}\' > "$TMP_OUTPUT_DIR/r.json"; echo err >&2')
    raw = server.call(b"", "/?output=raw")
    assert (raw.body, raw.headers["Content-Type"]) == (b'{"a":1}', "application/json")
    assert "r.json" in raw.headers["Content-Disposition"]
    document = server.call(b"", headers={"Accept": "application/json"}).json
    assert document["exit_code"] == 0
    assert document["stdout"] == "log\n"
    assert document["stderr"] == "err\n"
    (output,) = document["outputs"]
    assert output["name"] == "r.json"
    assert output["size"] == 7
    assert base64.b64decode(output["data"]) == b'{"a":1}'
    assert output["sha256"] == hashlib.sha256(b'{"a":1}').hexdigest()
    for accept in ("*/*", "text/plain", "text/html, */*;q=0.8"):
        assert server.call(b"", headers={"Accept": accept}).body == b"eyJhIjoxfQ==\n"
    problem(server.call(b"", headers={"Accept": "image/png"}), 406)
    problem(server.call(b"", "/?output=nonsense"), 400)


def test_stdout_is_the_answer_where_there_is_no_file(start_server: StartServer) -> None:
    server = start_server("printf 'a\\nERROR: b\\n\\377'")
    answer = server.call(b"")
    assert answer.body == b"a\nERROR: b\n\xff"
    problem(server.call(b"", "/?output=zip"), 406)


def test_an_empty_output_is_an_empty_line(start_server: StartServer) -> None:
    server = start_server('echo no; : > "$TMP_OUTPUT_DIR/empty"')
    answer = server.call(b"")
    assert (answer.body, answer.headers["X-Output-Name"]) == (b"\n", "empty")


def test_a_script_chooses_status_and_headers(start_server: StartServer) -> None:
    server = start_server(
        "printf 'Status: 404 Not Found\\r\\nX-Reason: no plant\\n' > $HTTP_RESPONSE_FILE; echo nothing"
    )
    answer = server.call(b"")
    assert (answer.status, answer.headers["X-Reason"], answer.body) == (404, "no plant", b"nothing\n")


@pytest.mark.parametrize(
    "line",
    [
        "Content-Length: 1",
        "Transfer-Encoding: chunked",
        "no colon",
        "A b: c",
        "Status: 100",
        "Status: x",
        "X: \x01",
    ],
)
def test_a_script_cannot_break_the_response(start_server: StartServer, line: str) -> None:
    server = start_server('cp "$INPUT_FILE_PATH" $HTTP_RESPONSE_FILE; echo ok')
    answer = server.call(line.encode(), headers={"Content-Type": "x/raw"})
    assert "line 1 of $HTTP_RESPONSE_FILE" in str(problem(answer, 500)["detail"])
    assert server.call(b"").body == b"ok\n"


# ---- every row of the table of errors


def test_400(start_server: StartServer) -> None:
    server = start_server(COPY)
    detail = str(problem(server.call(b"QUJD!"), 400)["detail"])
    assert "'!' at offset 4" in detail
    for headers in ({"X-Input-Encoding": "x"}, {"X-Timeout": "soon"}, {"X-Timeout": "0"}, {"Accept": "@"}):
        problem(server.call(b"", headers=headers), 400)
    detail = str(problem(server.call(b"", headers={"X-Timeout": "soon"}), 400)["detail"])
    assert "expected seconds like 90 or 1.5, or a duration like 1m30s" in detail
    assert problem_status(server.call(b"", headers={"X-Call-Id": "a b"})) == 400
    assert server.call(b"QUJD").status == 200


def problem_status(answer: Answer) -> int:
    assert answer.headers["Content-Type"] == "application/problem+json"
    return answer.status


def test_headers_that_are_not_utf8_get_a_clear_answer(start_server: StartServer) -> None:
    server = start_server(COPY)
    for header in ({"Expect": "\xff"}, {"Accept": 'text/html;a="\xff";q=0'}):
        assert server.call(b"", headers=header).status in (400, 406)


def test_a_header_may_come_twice(start_server: StartServer) -> None:
    server = start_server("printf 'Link: <a>\\nLink: <b>\\nContent-Type: text/x\\n' > $HTTP_RESPONSE_FILE")
    answer = server.call(b"")
    assert answer.headers.get_all("Link") == ["<a>", "<b>"]
    assert answer.headers.get_all("Content-Type") == ["text/x"]


def test_many_outputs_and_many_that_do_not_count(start_server: StartServer) -> None:
    server = start_server(
        "cd $TMP_OUTPUT_DIR; for i in $(seq 300); do echo $i > f$i; ln -s /etc/passwd l$i; done",
    )
    assert len(unzipped(server.call(b"", "/?output=zip").body)) == 300
    server.stop()
    assert len([event for event in server.logs if event["event"] == "output skipped"]) == 100
    assert [event["count"] for event in server.logs if event["event"] == "more outputs skipped"] == [200]


def test_a_request_that_is_not_http_is_answered_400_and_closed(start_server: StartServer) -> None:
    server = start_server(COPY)
    for request in (
        b"NONSENSE\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ):
        answer = server.raw(request)
        assert b" 400 " in answer.split(b"\r\n")[0], answer
        assert b"application/problem+json" in answer
    assert server.call(b"QUJD").status == 200


def test_401(start_server: StartServer) -> None:
    server = start_server("echo in", WATCHDOG_AUTH_TOKEN="tok")
    for header in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic t"},
        {"Authorization": "tok"},
        {"Authorization": "Bearer t\xf6k"},
    ):
        answer = server.call(b"x" * 300_000, headers=header)
        problem(answer, 401)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert server.call(b"", headers={"Authorization": "bearer tok"}).body == b"in\n"
    assert server.call(None, "/_/health", "GET").status == 200


def test_408_for_a_body_and_for_headers(start_server: StartServer) -> None:
    # Long enough for a caller that has to wait for its processor between two lines of this test.
    server = start_server(COPY, WATCHDOG_READ_TIMEOUT="2s", WATCHDOG_HEALTHCHECK_INTERVAL="0")

    def second_request() -> bytes:
        with server.connect() as sock:
            sock.sendall(b"GET /_/health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 200 OK" in read_answer(sock)
            sock.sendall(b"GET /_/he")
            return read_all(sock)

    with ThreadPoolExecutor(4) as pool:
        body = pool.submit(server.raw, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nQUJD")
        headers = pool.submit(server.raw, b"POST / HTTP/1.1\r\nHost: x\r\nX-Slow")
        nothing = pool.submit(server.raw, b"")
        on_a_kept_connection = pool.submit(second_request)
        assert body.result().startswith(b"HTTP/1.1 408 ")
        assert b"read_timeout" in body.result()
        assert headers.result().startswith(b"HTTP/1.1 408 ")
        assert nothing.result() == b""  # closed without an answer
        assert on_a_kept_connection.result().startswith(b"HTTP/1.1 408 ")
    server.stop()
    assert server.leftovers() == []


def test_413(start_server: StartServer) -> None:
    server = start_server(COPY, WATCHDOG_MAX_INPUT_SIZE="1Ki")
    assert server.call(base64.b64encode(bytes(1024))).status == 200
    problem(server.call(base64.b64encode(bytes(1025))), 413)
    problem(server.call(bytes(3_000_000), headers={"Content-Type": "image/x"}), 413)
    bomb = gzip.compress(bytes(10_000_000))
    problem(server.call(bomb, headers={"Content-Type": "image/x", "Content-Encoding": "gzip"}), 413)


def test_429_and_the_order_of_the_queue(start_server: StartServer, tmp_path: Path, free_port: int) -> None:
    server = start_server(
        WAIT + "echo $CALL_ID >> $HANDSHAKE/order",
        HANDSHAKE=str(tmp_path),
        WATCHDOG_MAX_INFLIGHT="1",
        WATCHDOG_METRICS_PORT=str(free_port),
    )
    with ThreadPoolExecutor(12) as pool:
        calls = []
        for n in range(11):
            calls.append(pool.submit(server.call, b"", headers={"X-Call-Id": f"c{n}"}))
            if n == 0:
                until((tmp_path / "up-c0").exists, "the first script")
            server.await_waiting(n)
        answer = server.call(b"", headers={"X-Call-Id": "eleventh"})
        problem(answer, 429)
        assert int(answer.headers["Retry-After"]) >= 1
        assert server.call(None, "/_/ready", "GET").status == 429
        assert [path.name for path in tmp_path.glob("up-*")] == ["up-c0"]
        (tmp_path / "go").touch()
        assert [call.result().status for call in calls] == [200] * 11
    assert (tmp_path / "order").read_text().split() == [f"c{n}" for n in range(11)]
    assert server.call(None, "/_/ready", "GET").status == 200


def test_queue_timeout(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(WAIT, HANDSHAKE=str(tmp_path), WATCHDOG_MAX_INFLIGHT="1", WATCHDOG_QUEUE_TIMEOUT="100ms")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.call, b"", headers={"X-Call-Id": "c"})
        until((tmp_path / "up-c").exists, "the first script")
        assert "queue_timeout" in str(problem(server.call(b""), 429)["detail"])
        (tmp_path / "go").touch()
        assert first.result().status == 200


def test_500_exit_code(start_server: StartServer) -> None:
    server = start_server("seq 2000 >&2; echo last words >&2; printf x > $TMP_OUTPUT_DIR/x; exit 3")
    answer = server.call(b"")
    document = problem(answer, 500)
    assert document["exit_code"] == 3
    assert answer.headers["X-Exit-Code"] == "3"
    assert str(document["stderr"]).endswith("2000\nlast words\n")
    assert len(str(document["stderr"])) == 4096
    assert "exit code 3" in str(document["detail"])


def test_500_command_not_found_and_crlf(start_server: StartServer) -> None:
    server = start_server("no-such-command")
    assert "not found in the image" in str(problem(server.call(b""), 500)["detail"])
    server.script.write_text("#!/bin/sh\r\nset -e\r\nfalse\r\n", newline="")
    assert "CRLF" in str(problem(server.call(b""), 500)["detail"])


def test_a_failing_script_may_choose_its_status(start_server: StartServer) -> None:
    server = start_server("printf 'Status: 422\\nX-Why: blurred' > $HTTP_RESPONSE_FILE; exit 1")
    answer = server.call(b"")
    problem(answer, 422)
    assert answer.headers["X-Why"] == "blurred"


@pytest.mark.parametrize(
    ("script", "is_hinted"),
    [
        ("import sys\nprint(open(sys.argv[1]).read())\n", True),
        ("exit 2", True),
        ("no-such-command", True),
        ("exit 3", False),
        ("#!/bin/sh\nexit 2", False),
    ],
)
def test_500_a_script_without_its_interpreter_is_explained(
    start_server: StartServer, script: str, is_hinted: bool
) -> None:
    server = start_server("true", PATH="")
    server.script.write_text(script)
    detail = str(problem(server.call(b""), 500)["detail"])
    assert ("names no interpreter" in detail) is is_hinted


def test_500_signal(start_server: StartServer) -> None:
    server = start_server("kill -SEGV $$")
    assert problem(server.call(b""), 500)["signal"] == "SIGSEGV"


@pytest.fixture
def small_cgroup() -> Iterator[ControlGroup]:
    with made_control_group("memory", ("memory.limit_in_bytes", "memory.max"), str(100 << 20)) as group:
        yield group


def test_500_out_of_memory(start_server: StartServer, small_cgroup: ControlGroup) -> None:
    server = start_server(f"exec {sys.executable} -c 'bytearray(300 << 20)'", prefix=joining(small_cgroup))
    document = problem(server.call(b""), 500)
    assert document["out_of_memory"] is True
    assert document["signal"] == "SIGKILL"
    assert "out of memory, limit 100 MiB" in str(document["detail"])
    server.event("invocation ended", outcome="out_of_memory", signal="SIGKILL")
    server.script.write_text(f"{sys.executable} -c 'bytearray(300 << 20)'; echo $?")  # the shell survives its child
    assert server.call(b"").body.endswith(b"137\n")
    server.script.write_text("kill -9 $$")
    assert problem(server.call(b""), 500)["out_of_memory"] is False
    assert server.call(None, "/_/health", "GET").status == 200
    server.kill()


def test_500_no_script(start_server: StartServer) -> None:
    server = start_server(None)
    assert "there is no script at " + str(server.script) in str(problem(server.call(b""), 500)["detail"])
    ready = server.call(None, "/_/ready", "GET")
    assert ready.status == 503
    assert b"SCRIPT" in ready.body
    assert server.call(None, "/_/health", "GET").status == 200
    server.script.write_text("#!/no/interpreter\n")
    assert "/no/interpreter" in str(problem(server.call(b""), 500)["detail"])
    server.script.write_text("echo yes")
    assert server.call(None, "/_/ready", "GET").status == 200


def test_500_output_too_large(start_server: StartServer) -> None:
    server = start_server("head -c 2000 /dev/zero > $TMP_OUTPUT_DIR/x", WATCHDOG_MAX_OUTPUT_SIZE="1999")
    assert "2000 bytes, over 1999" in str(problem(server.call(b""), 500)["detail"])
    server.script.write_text("head -c 200000 /dev/zero")
    assert "max_output_size" in str(problem(server.call(b""), 500)["detail"])


def test_504(start_server: StartServer) -> None:
    server = start_server("trap 'echo late > $TMP_OUTPUT_DIR/x; exit 0' TERM; echo bye >&2; sleep 60 & wait")
    # This is long enough for the shell to start and to set its trap.
    answer = server.call(b"", headers={"X-Timeout": "2s"})
    document = problem(answer, 504)
    assert document["stderr"] == "bye\n"
    assert document["exit_code"] == 0
    server = start_server("sleep 60", WATCHDOG_EXEC_TIMEOUT="0.3")
    problem(server.call(b"", headers={"X-Timeout": "50"}), 504)


def test_error_status_false_is_oscars_old_answer(start_server: StartServer) -> None:
    server = start_server("echo out; exit 3", WATCHDOG_ERROR_STATUS="false")
    answer = server.call(b"")
    assert (answer.status, answer.body, answer.headers["X-Exit-Code"]) == (200, b"out\n", "3")


# ---- concurrency and size


@pytest.mark.executed
def test_a_script_that_prints_without_end_finishes(start_server: StartServer) -> None:
    script = (
        "yes 'a line of the flood' | head -c 110000000 >&2; yes out | head -c 110000000; printf ok > $TMP_OUTPUT_DIR/x"
    )
    server = start_server(script)
    assert server.call(b"").body == b"b2s=\n"
    assert server.memory_mib("VmHWM") < 96


# ---- the program's end


def test_an_idle_server_ends_at_once_and_leaves_nothing(start_server: StartServer) -> None:
    server = start_server("echo hi")
    assert server.call(b"").body == b"hi\n"
    assert (server.tmp / ".lock").exists()
    assert server.stop() == 0
    assert list(server.tmp.iterdir()) == []
    assert server.logs[-1]["event"] == "stopped"


def test_ctrl_c_at_a_terminal_ends_a_running_script_at_once(tmp_path: Path) -> None:
    (tmp_path / "script.sh").write_text("trap '' TERM INT; " + WAIT)
    (tmp_path / "tmp").mkdir()
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(Path(__file__).parent.parent)
        environ = {
            "PATH": os.environ["PATH"],
            "HANDSHAKE": str(tmp_path),
            "TMPDIR": str(tmp_path / "tmp"),
            "WATCHDOG_SCRIPT_PATH": str(tmp_path / "script.sh"),
        }
        flags = ["serve", "--port", "0", "--bind", "127.0.0.1", "--metrics-port", "0", "--log-format", "json"]
        os.execve(sys.executable, [sys.executable, *changed_program(PATIENT_STOP, None), *flags], environ)
    screen = Screen(terminal)
    port = int(re.search(rb'"port":(\d+)', screen.until(b"listening"))[1])  # type: ignore[index]
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nX-Call-Id: c\r\nContent-Length: 0\r\n\r\n")
        until((tmp_path / "up-c").exists, "the script")
        os.write(terminal, b"\x03")
        assert b" 503 " in read_all(sock)
    screen.until(b"stopped")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)
    assert b"Traceback" not in screen.text
    assert list((tmp_path / "tmp").iterdir()) == []


class Screen:
    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self.text = b""

    def until(self, part: bytes) -> bytes:
        deadline = time.monotonic() + RunningServer.patience_s
        while part not in self.text:
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, self.text
            self.text += os.read(self._terminal, 65536)
        return self.text


# ---- operations


def test_health_and_the_lock_file(start_server: StartServer) -> None:
    server = start_server("echo hi")
    answer = server.call(None, "/_/health", "GET")
    assert (answer.status, answer.body) == (200, b"OK")
    assert server.call(b"", "/_/health").status == 405
    (server.tmp / ".lock").unlink()
    assert server.call(None, "/_/health", "GET").status == 200
    assert (server.tmp / ".lock").exists()


def test_suppress_lock(start_server: StartServer) -> None:
    server = start_server("echo hi", suppress_lock="true")
    assert not (server.tmp / ".lock").exists()
    assert server.call(None, "/_/health", "GET").status == 200


def test_metrics(start_server: StartServer, free_port: int) -> None:
    server = start_server('[ "$Http_Query" = fail ] && exit 1; echo hi', WATCHDOG_METRICS_PORT=str(free_port))
    server.call(b"")
    server.call(b"", "/?fail")
    answer = server.call(None, "/metrics", "GET", port=free_port)
    assert answer.headers["Content-Type"].startswith("text/plain")
    text = answer.body.decode()
    for line in (
        'http_requests_total{code="200",method="POST"} 1.0',
        'http_requests_total{code="500",method="POST"} 1.0',
        'http_request_duration_seconds_count{code="200",method="POST"} 1.0',
        "http_requests_in_flight 0.0",
        'watchdog_invocation_duration_seconds_count{outcome="ok"} 1.0',
        'watchdog_invocation_duration_seconds_count{outcome="failed"} 1.0',
        "watchdog_places_taken 0.0",
    ):
        assert line in text.splitlines(), line


def test_every_invocation_ends_in_one_event(start_server: StartServer) -> None:
    server = start_server('cat "$INPUT_FILE_PATH"; exit ${Http_X_Exit:-0}')
    server.call(b"aGVsbG8=", headers={"X-Call-Id": "good"})
    server.call(b"", headers={"X-Call-Id": "bad", "X-Exit": "4", "Authorization": "Bearer never-logged"})
    server.stop()
    good, bad = (event for event in server.logs if event["event"] == "invocation ended")
    expected = {
        "call_id": "good",
        "outcome": "ok",
        "exit_code": 0,
        "input_bytes": 5,
        "output_bytes": 5,
        "level": "info",
    }
    assert expected.items() <= good.items()
    assert {"duration_s", "queue_wait_s", "cpu_s"} <= good.keys()
    assert {"call_id": "bad", "outcome": "failed", "exit_code": 4, "level": "error"}.items() <= bad.items()
    assert "never-logged" not in json.dumps(server.logs)
    script_lines = [event for event in server.logs if event.get("logger") == "script"]
    assert [(e["event"], e["stream"], e["call_id"]) for e in script_lines] == [("hello", "stdout", "good")]


def test_keep_alive_and_pipelining(start_server: StartServer) -> None:
    server = start_server('cat "$INPUT_FILE_PATH"; echo')
    one = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"
    bad = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nQUJD!"
    last = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\n"
    answers = server.raw(one + b"YQ==" + bad + last + b"Yg==")
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"400", b"200"]
    assert answers.endswith(b"b\n")


def test_http_1_0(start_server: StartServer) -> None:
    server = start_server("echo hi")
    answer = server.raw(b"POST / HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
    assert answer.split(b"\r\n")[0].endswith(b"200 OK")
    assert answer.endswith(b"hi\n")


@pytest.mark.parametrize("script", ["echo done", "exit 3", "cat >$TMP_OUTPUT_DIR/o; mkdir $TMP_OUTPUT_DIR/d"])
def test_nothing_of_a_call_is_left(start_server: StartServer, script: str) -> None:
    server = start_server(script)
    server.call(b"")
    server.event("invocation ended")
    until(lambda: not server.leftovers_of_calls(), "all directories to be removed")


def test_a_refusal_of_the_system_is_reported(start_server: StartServer) -> None:
    server = start_server("echo hi")
    server.call(b"")
    until(lambda: not server.leftovers_of_calls(), "the workspace to be removed")
    away = server.tmp.with_name("away")
    server.tmp.rename(away)
    server.tmp.touch()  # a file in the place of each workspace
    assert "a workspace cannot be made: Not a directory" in str(problem(server.call(b""), 500)["detail"])
    server.event("invocation ended", outcome="no_resources", level="error")
    server.tmp.unlink()
    away.rename(server.tmp)
    assert server.call(b"").body == b"hi\n"
