"""The behaviour that OpenFaaS expects of the container of a function, tested over sockets.

docs/explanation/platforms.md lists the facts of ``openfaas/classic-watchdog`` and ``openfaas/of-watchdog``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gateway import Gateway
from guards import changed_program
from live_call import LiveCall, outputs_of
from prometheus_client.parser import text_string_to_metric_families
from running_server import PATIENT_STOP, RunningServer, StartServer, problem, read_all, until
from running_server import free_port as a_free_port

import watchdog

LOOPBACK = {"WATCHDOG_BIND": "127.0.0.1", "WATCHDOG_METRICS_PORT": "0"}
FWATCHDOG = str(Path(sys.executable).with_name("fwatchdog"))
VARIABLES = "env | LC_ALL=C grep ^Http_ || true"
# A handshake with a script. The script makes a file when it runs, and ends when the test has made another file.
WAIT = 'touch "$HANDSHAKE/up-$CALL_ID"; while [ ! -e "$HANDSHAKE/go" ]; do sleep 0.02; done; echo done'


def run(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the installed program with this environment, and few other variables."""
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return subprocess.run(
        [FWATCHDOG, *words], env=clean | LOOPBACK | environ, capture_output=True, text=True, timeout=60
    )


def variables_of(body: bytes) -> dict[str, str]:
    return dict(line.split("=", 1) for line in body.decode().splitlines() if line.startswith("Http_"))


def statuses(server: RunningServer, path: str, methods: str) -> dict[str, int]:
    return {method: server.call(None, path, method).status for method in methods.split()}


# ---- settings


@pytest.mark.parametrize("spelled", [str.lower, str.upper, str.title])
def test_settings_have_their_bare_names_in_upper_and_lower_case(spelled: Callable[[str], str]) -> None:
    given = {
        "port": ("8181", "8181"),
        "fprocess": ("cat", "cat"),
        "exec_timeout": ("1m30s", "90s"),
        "read_timeout": ("300", "300s"),
        "write_timeout": ("500ms", "0.5s"),
        "healthcheck_interval": ("1h", "3600s"),
        "max_inflight": ("3", "3"),
        "suppress_lock": ("true", "true"),
        "cgi_headers": ("false", "false"),
        "combine_output": ("true", "true"),
        "content_type": ("text/csv", "text/csv"),
    }
    checked = run("check", **{spelled(name): text for name, (text, _) in given.items()})
    assert checked.returncode == 0, checked.stdout
    for name, (_, shown) in given.items():
        assert re.search(rf"^{name} +{shown} +environment {spelled(name)}$", checked.stdout, re.MULTILINE), name


@pytest.mark.parametrize("duration", ["soon", "-1", "5 minutes", "1d"])
def test_a_bad_duration_stops_the_start(duration: str) -> None:
    started = run("serve", port="0", exec_timeout=duration, read_timeout=duration)
    assert started.returncode == 2
    assert "exec_timeout" in started.stderr
    assert "read_timeout" in started.stderr


def test_settings_without_effect_are_named_once(start_server: StartServer) -> None:
    names = ["write_debug", "debug_headers", "prefix_logs", "log_buffer_size", "log_callid", "content_type"]
    server = start_server("echo hi", log_level="debug", **dict.fromkeys(names, "true"))
    server.stop()
    (told,) = (event for event in server.logs if event["event"] == "settings without effect")
    assert set(names) <= set(told["names"])


def test_authentication_that_is_not_offered_is_not_silently_left_out() -> None:
    started = run("serve", port="0", jwt_auth="true")
    assert started.returncode == 2
    assert "jwt_auth" in started.stderr


def test_settings_that_would_change_the_answer_are_warned_of() -> None:
    checked = run("check", fprocess="cat", marshal_request="true", mode="http", function_process="tac")
    for name in ("marshal_request", "mode", "function_process"):
        assert re.search(rf"^ .*\b{name}\b", checked.stdout.partition("warnings:")[2], re.MULTILINE), name


# ---- health, readiness, verbs


def test_health(start_server: StartServer) -> None:
    server = start_server("echo hi")
    answer = server.call(None, "/_/health", "GET")
    assert (answer.status, answer.body) == (200, b"OK")
    assert server.call(None, "/_/health", "HEAD").headers["Content-Length"] == "2"
    assert set(statuses(server, "/_/health", "POST PUT PATCH DELETE OPTIONS").values()) == {405}
    lock = server.tmp / ".lock"
    lock.unlink()
    assert server.call(None, "/_/health", "GET").status == 200
    assert lock.exists()
    put_directory_in_place_of(lock)
    assert server.call(None, "/_/health", "GET").status == 503
    assert server.call(b"").body == b"hi\n"
    lock.rmdir()
    assert server.call(None, "/_/health", "GET").status == 200


def test_a_mistyped_path_of_the_server_does_not_run_the_function(start_server: StartServer, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    server = start_server(fprocess=f"tee {runs}")
    assert set(statuses(server, "/_/helth", "GET POST PUT PATCH DELETE").values()) == {404}
    assert not runs.exists()


def put_directory_in_place_of(path: Path) -> None:
    """Replace a file that the server may write again at any moment."""
    while not path.is_dir():
        path.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir()


def test_ready(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(None, HANDSHAKE=str(tmp_path), max_inflight="1")
    assert server.call(None, "/_/ready", "GET").status == 503
    server.script.write_text(WAIT)
    assert server.call(None, "/_/ready", "GET").status == 200
    assert server.call(None, "/_/ready", "HEAD").status == 200
    assert set(statuses(server, "/_/ready", "POST PUT PATCH DELETE OPTIONS").values()) == {405}
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(server.call, b"", headers={"X-Call-Id": "a"})
        until((tmp_path / "up-a").exists, "the script")
        assert server.call(None, "/_/ready", "GET").status == 429
        assert server.call(None, "/_/health", "GET").status == 200
        (tmp_path / "go").touch()
        assert call.result().status == 200
    until(lambda: server.call(None, "/_/ready", "GET").status == 200, "the place to be free again")
    (server.tmp / ".lock").unlink()
    assert server.call(None, "/_/ready", "GET").status == 200
    put_directory_in_place_of(server.tmp / ".lock")
    assert server.call(None, "/_/ready", "GET").status == 503


def test_verbs(start_server: StartServer) -> None:
    server = start_server("echo hi")
    assert set(statuses(server, "/any/path", "GET HEAD POST PUT PATCH DELETE").values()) == {200}
    assert set(statuses(server, "/any/path", "OPTIONS TRACE PROPFIND").values()) == {405}


# ---- the lock file


def test_the_lock_file(start_server: StartServer) -> None:
    server = start_server("echo hi")
    lock = server.tmp / ".lock"
    umask = int(Path(f"/proc/{server.process.pid}/status").read_text().split("Umask:")[1].split()[0], 8)
    assert stat.S_ISREG(lock.stat().st_mode)
    assert stat.S_IMODE(lock.stat().st_mode) == 0o660 & ~umask
    assert lock.read_bytes() == b""
    assert server.stop() == 0
    assert not lock.exists()


def test_the_lock_file_is_written_once_it_listens(tmp_path: Path) -> None:
    port = a_free_port()
    environ = os.environ | LOOPBACK | {"TMPDIR": str(tmp_path), "port": str(port)}
    with subprocess.Popen([FWATCHDOG], env=environ, stderr=subprocess.DEVNULL) as server:
        until((tmp_path / ".lock").exists, "the lock file")
        socket.create_connection(("127.0.0.1", port), timeout=RunningServer.patience_s).close()
        server.terminate()
        assert server.wait(timeout=RunningServer.patience_s) == 0

    with socket.create_server(("127.0.0.1", port)):
        failed = run(TMPDIR=str(tmp_path), port=str(port))
    assert failed.returncode == 1
    assert not (tmp_path / ".lock").exists()


def test_a_lock_file_that_cannot_be_written_stops_the_start(start_server: StartServer, tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    failed = run("--port", "0", TMPDIR=str(tmp_path))
    assert failed.returncode == 1
    assert "suppress_lock=true" in failed.stderr
    # OpenFaaS's watchdogs look for the lock file nevertheless, so their /_/health would be 503 for ever.
    server = start_server("echo hi", suppress_lock="true", TMPDIR=str(tmp_path))
    assert server.call(None, "/_/health", "GET").status == 200
    assert server.call(None, "/_/ready", "GET").status == 200


# ---- metrics


def test_metrics_have_the_names_and_labels_of_the_watchdogs(start_server: StartServer, tmp_path: Path) -> None:
    port = a_free_port()
    environ = {"HANDSHAKE": str(tmp_path), "WATCHDOG_METRICS_PORT": str(port)}
    server = start_server(f'[ "$Http_Query" != wait ] || {{ {WAIT}; }}; exit ${{Http_X_Exit:-0}}', **environ)
    server.call(b"")
    server.call(None, method="GET", headers={"X-Exit": "1"})
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(server.call, b"", "/?wait", headers={"X-Call-Id": "a"})
        until((tmp_path / "up-a").exists, "the script")
        families = {
            family.name: family
            for family in text_string_to_metric_families(server.call(None, "/metrics", "GET", port=port).body.decode())
        }
        (tmp_path / "go").touch()
        assert call.result().status == 200

    total = families["http_requests"]
    assert total.type == "counter"
    samples = {(s.name, *sorted(s.labels.items())): s.value for s in total.samples}
    for labels in ((("code", "200"), ("method", "POST")), (("code", "500"), ("method", "GET"))):
        assert samples["http_requests_total", *labels] == 1

    duration = families["http_request_duration_seconds"]
    assert duration.type == "histogram"
    assert {frozenset(s.labels) - {"le"} for s in duration.samples} == {frozenset({"code", "method"})}
    bounds = {s.labels["le"] for s in duration.samples if s.name.endswith("_bucket")}
    of_go = {"0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "+Inf"}
    assert bounds >= of_go

    in_flight = families["http_requests_in_flight"]
    assert (in_flight.type, [(s.labels, s.value) for s in in_flight.samples]) == ("gauge", [({}, 1)])

    # On the port of the function, it is a call like any other.
    assert server.call(None, "/metrics", "GET").body == b""


# ---- the variables of a request


def test_the_variables_of_a_request(start_server: StartServer) -> None:
    server = start_server(VARIABLES)
    answer = server.raw(
        b"PUT /a/b%20c?x=1&y=%26 HTTP/1.1\r\nHost: fn.example:8080\r\nConnection: close\r\nContent-Length: 4\r\n"
        b"x-api-key: k\r\nX-FORWARDED-BY: one\r\nX-Forwarded-By: two\r\nwWw-aUTH: z\r\n\r\nQUJD"
    )
    assert variables_of(answer.partition(b"\r\n\r\n")[2]) == {
        "Http_Method": "PUT",
        "Http_Path": "/a/b%20c",
        "Http_Query": "x=1&y=%26",
        "Http_Host": "fn.example:8080",
        "Http_Content_Length": "4",
        "Http_ContentLength": "4",
        "Http_Connection": "close",
        # Header names have the form of Go, whatever the caller sends. If a header has several values, the first one
        # counts.
        "Http_X_Api_Key": "k",
        "Http_X_Forwarded_By": "one",
        "Http_Www_Auth": "z",
    }


def test_the_variables_of_a_chunked_request(start_server: StartServer) -> None:
    server = start_server(VARIABLES)
    answer = server.raw(
        b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\ntransfer-encoding: chunked\r\n\r\n4\r\nQUJD\r\n0\r\n\r\n"
    )
    variables = variables_of(answer.partition(b"\r\n\r\n")[2])
    assert variables["Http_Transfer_Encoding"] == "chunked"
    assert variables["Http_Content_Length"] == variables["Http_ContentLength"] == "-1"


def test_credentials_are_not_among_the_variables(start_server: StartServer) -> None:
    secrets = {"authorization": "Bearer s3cret", "Cookie": "s3cret", "PROXY": "s3cret", "Proxy-Authorization": "s3cret"}
    answer = start_server("env").call(b"", headers=secrets)
    assert answer.status == 200
    assert b"s3cret" not in answer.body


def test_cgi_headers_false(start_server: StartServer) -> None:
    server = start_server(VARIABLES, cgi_headers="false")
    assert server.call(b"", headers={"X-Call-Id": "a", "X-Api-Key": "k"}).body == b""


# ---- answers


def test_what_the_queue_worker_may_send_again(start_server: StartServer, tmp_path: Path) -> None:
    """Its list of statuses has 429, but not 503. With this header, it sends the call again for any status."""
    server = start_server(
        WAIT,
        program=changed_program(PATIENT_STOP, None),
        HANDSHAKE=str(tmp_path),
        max_inflight="1",
        WATCHDOG_MAX_QUEUE="0",
        WATCHDOG_HEALTHCHECK_INTERVAL="600",
    )
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.call, b"", headers={"X-Call-Id": "a"})
        until((tmp_path / "up-a").exists, "the script")
        refused = server.call(b"")
        problem(refused, 429)
        assert int(refused.headers["Retry-After"]) >= 1
        server.signal(signal.SIGTERM)
        server.event("draining")
        server.signal(signal.SIGTERM)
        ended = running.result()
    problem(ended, 503)
    for answer in (refused, ended):
        assert answer.headers["X-OpenFaaS-Internal"]


def test_a_failure_of_the_function_is_not_for_the_queue_worker_to_repeat(start_server: StartServer) -> None:
    answer = start_server("exit 3").call(b"")
    problem(answer, 500)
    assert "X-OpenFaaS-Internal" not in answer.headers


def test_headers_of_an_answer(start_server: StartServer) -> None:
    server = start_server("exit ${Http_X_Exit:-0}")
    for headers in ({}, {"X-Exit": "1"}):
        answer = server.call(b"", headers={"X-Call-Id": "id-1", "X-Start-Time": "17", **headers})
        assert answer.headers["X-Call-Id"] == "id-1"
        assert re.fullmatch(r"\d+\.\d{6}", answer.headers["X-Duration-Seconds"])
        assert int(answer.headers["Content-Length"]) == len(answer.body)
    server.stop()
    ended = [event for event in server.logs if event["event"] == "invocation ended"]
    assert [event["call_id"] for event in ended] == ["id-1", "id-1"]


# ---- the drain


def test_a_drain_begins_with_not_ready_and_serves_on(start_server: StartServer) -> None:
    server = start_server("echo hi", healthcheck_interval="10m")
    lock = server.tmp / ".lock"
    server.call(None, "/_/health", "GET")
    server.signal(signal.SIGTERM)
    server.event("draining", signal="SIGTERM")
    assert not lock.exists()
    assert server.call(None, "/_/health", "GET").status == 503
    assert server.call(None, "/_/ready", "GET").status == 503
    assert server.call(b"").body == b"hi\n"
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


def test_a_drain_ends_with_what_runs(start_server: StartServer, tmp_path: Path, free_port: int) -> None:
    server = start_server(
        WAIT,
        HANDSHAKE=str(tmp_path),
        max_inflight="1",
        healthcheck_interval="10ms",
        WATCHDOG_METRICS_PORT=str(free_port),
    )
    server.call(None, "/_/ready", "GET")
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(server.call, b"", headers={"X-Call-Id": "runs"})
        until((tmp_path / "up-runs").exists, "the script")
        waiting = pool.submit(server.call, b"", headers={"X-Call-Id": "waits"})
        server.await_waiting()
        server.signal(signal.SIGTERM)
        problem(waiting.result(), 503)
        until(server.refuses_connections, "new connections to be refused")
        assert not running.done()
        (tmp_path / "go").touch()
        assert running.result().body == b"done\n"
    assert server.wait() == 0
    assert not (tmp_path / "up-waits").exists()


# ---- flags


def test_the_flags_of_the_watchdogs(start_server: StartServer) -> None:
    for flag in ("-version", "--version"):
        told = run(flag)
        assert told.returncode == 0
        assert watchdog.__version__ in told.stdout

    server = start_server("echo hi", healthcheck_interval="10m")
    for flag in ("-run-healthcheck", "--run-healthcheck"):
        assert run(flag, port=str(server.port)).returncode == 0, flag
    server.call(None, "/_/health", "GET")
    server.signal(signal.SIGTERM)
    server.event("draining")
    assert run("-run-healthcheck", port=str(server.port)).returncode == 1
    server.signal(signal.SIGTERM)
    server.wait()
    assert run("-run-healthcheck", port=str(server.port)).returncode == 1


# ---- behind the gateway


def test_behind_the_gateway(start_server: StartServer) -> None:
    server = start_server(VARIABLES)
    with Gateway(server.port) as gateway:
        answer = server.call(b"QUJD", "/function/fn/a/b%20c?x=%26", "PUT", port=gateway.port)
        assert answer.status == 200
        variables = variables_of(answer.body)
        # The body always comes in chunks, and the path without the part for the gateway.
        assert variables["Http_Transfer_Encoding"] == "chunked"
        assert variables["Http_Content_Length"] == "-1"
        assert (variables["Http_Method"], variables["Http_Path"]) == ("PUT", "/a/b%20c")
        assert variables["Http_Query"] == "x=%26"
        assert variables["Http_X_Call_Id"] == answer.headers["X-Call-Id"]
        assert variables["Http_X_Start_Time"] == answer.headers["X-Start-Time"]
        assert variables["Http_X_Forwarded_Host"] == f"127.0.0.1:{gateway.port}"
        assert "Http_X_Forwarded_For" in variables
        assert "Content-Encoding" not in answer.headers, "Accept-Encoding is the gateway's, who would not decode"
        assert answer.headers.get_all("X-Call-Id") == [answer.headers["X-Call-Id"]]
        assert float(answer.headers["X-Duration-Seconds"]) > 0

        own = server.call(b"", "/function/fn", headers={"X-Call-Id": "own"}, port=gateway.port)
        assert own.headers.get_all("X-Call-Id") == ["own"]
        assert variables_of(server.call(None, "/function/fn", "GET", port=gateway.port).body)["Http_Path"] == "/"


def test_files_pass_the_gateway(start_server: StartServer) -> None:
    server = start_server('mv "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/out.bin"')
    data = random.Random(5).randbytes(8 << 20)
    with Gateway(server.port) as gateway:
        raw = server.call(data, "/function/fn?output=raw", headers={"Content-Type": "image/x"}, port=gateway.port)
    assert hashlib.sha256(raw.body).digest() == hashlib.sha256(data).digest()
    assert int(raw.headers["Content-Length"]) == len(data)


def test_errors_pass_the_gateway(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(WAIT, HANDSHAKE=str(tmp_path), max_inflight="1", WATCHDOG_MAX_QUEUE="0")
    with Gateway(server.port) as gateway, ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.call, b"", "/function/fn", headers={"X-Call-Id": "a"}, port=gateway.port)
        until((tmp_path / "up-a").exists, "the script")
        refused = server.call(b"x" * 300_000, "/function/fn", port=gateway.port)
        problem(refused, 429)
        assert int(refused.headers["Retry-After"]) >= 1
        (tmp_path / "go").touch()
        assert first.result().status == 200
        problem(server.call(b"QUJD!", "/function/fn", port=gateway.port), 400)


def test_a_caller_that_leaves_the_gateway_leaves_the_function(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(WAIT, HANDSHAKE=str(tmp_path))
    with Gateway(server.port) as gateway:
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=RunningServer.patience_s) as sock:
            sock.sendall(b"POST /function/fn HTTP/1.1\r\nHost: x\r\nX-Call-Id: a\r\nContent-Length: 0\r\n\r\n")
            until((tmp_path / "up-a").exists, "the script")
        server.event("invocation ended", call_id="a", outcome="caller_gone")


def test_a_request_without_a_body_on_a_kept_connection(start_server: StartServer) -> None:
    """The gateway keeps its connections to a function and uses each for many callers."""
    server = start_server("echo $CALL_ID")
    with server.connect() as sock:
        for number in range(3):
            last = b"Connection: close\r\n" if number == 2 else b""
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Call-Id: c%d\r\n%s\r\n" % (number, last))
        assert re.findall(rb"\n(c\d)\n", read_all(sock)) == [b"c0", b"c1", b"c2"]


def test_live_call_passes_the_gateway_event_by_event(start_server: StartServer, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    server = start_server('echo here; until [ -e "$GATE" ]; do sleep 0.02; done; echo end', GATE=str(gate))
    with Gateway(server.port) as gateway, LiveCall(gateway.port, b"", "/function/fn?output=events") as call:
        assert call.next("log").data["text"] == "here"
        gate.touch()
        assert call.next("completed").data["outcome"] == "ok"


def test_live_call_of_a_classic_function_passes_the_gateway(start_server: StartServer, tmp_path: Path) -> None:
    """The gateway sends the body in chunks, and the stream begins before the function has read all of it."""
    gate = tmp_path / "gate"
    command = """sh -c 'echo here >&2; until [ -e "$GATE" ]; do sleep 0.02; done; cat'"""
    server = start_server(None, fprocess=command, GATE=str(gate))
    accept = {"Accept": "text/event-stream"}
    with Gateway(server.port) as gateway, LiveCall(gateway.port, b"x" * 300_000, "/function/fn", accept) as call:
        assert call.next("log").data["text"] == "here"
        gate.touch()
        assert len(outputs_of(call.rest())[None]) == 300_000
