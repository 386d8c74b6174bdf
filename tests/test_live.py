"""Live calls: the caller gets the events of its call while the call runs."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from live_call import Event, LiveCall, outputs_of
from running_server import RunningServer, StartServer, read_all, until

from watchdog.system import proc

# Waits until the test has made the file. The name of the variable is that of the environment of the server.
WAIT = 'until [ -e "$GATE" ]; do sleep 0.02; done\n'
WARM = """#!/bin/bash
echo "ready sh" >&4
while IFS= read -r call <&3; do eval "export $call"
  {body}
  echo "done $?" >&4
done
"""


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


def live(server: RunningServer, body: bytes = b"", query: str = "", **headers: str) -> LiveCall:
    path = f"/?output=events&input=raw{query}"
    return LiveCall(server.port, body, path, {name.replace("_", "-"): value for name, value in headers.items()})


def completed(call: LiveCall) -> dict[str, object]:
    """The verdict. Nothing may come after it."""
    last = call.rest()[-1]
    assert last.name == "completed"
    return last.data


# ---- while the script runs


def test_caller_sees_a_line_while_the_script_waits(start_server: StartServer, gate: Path) -> None:
    server = start_server(f"echo first; echo 'WARNING second' >&2; {WAIT} echo third", GATE=str(gate))
    with live(server, X_Call_Id="mine") as call:
        assert (call.status, call.headers["Content-Type"]) == (200, "text/event-stream")
        assert call.headers["Cache-Control"] == "no-store"
        assert call.headers["X-Call-Id"] == "mine"
        assert call.next() == Event("started", {"call_id": "mine"})
        lines = [call.next("log").data for _ in range(2)]
        assert sorted(lines, key=lambda line: str(line["stream"])) == [
            {"level": "warning", "stream": "stderr", "text": "WARNING second"},
            {"level": "info", "stream": "stdout", "text": "first"},
        ]
        gate.touch()
        assert call.next("log").data == {"level": "info", "stream": "stdout", "text": "third"}
        assert completed(call)["status"] == 200


def test_accept_header_asks_for_the_stream(start_server: StartServer) -> None:
    server = start_server("cat")
    with LiveCall(server.port, b"", "/", {"Accept": "text/event-stream"}) as call:
        assert call.headers["Content-Type"] == "text/event-stream"
    with LiveCall(server.port, b"", "/?output=events", {"Accept": "application/json"}) as call:
        assert call.headers["Content-Type"] == "text/event-stream"
    answer = server.call(b"", "/", headers={"Accept": "text/event-stream;q=0.5, text/plain"})
    assert answer.headers["Content-Type"].startswith("text/plain")


def test_traceback_is_one_event_of_several_lines(start_server: StartServer) -> None:
    server = start_server(f"#!{sys.executable}\nraise ValueError('no')")
    with live(server) as call:
        log = call.next("log").data
        assert log["level"] == "error"
        assert log["text"].splitlines()[0] == "Traceback (most recent call last):"
        assert log["text"].splitlines()[-1] == "ValueError: no"
        assert completed(call)["exit_code"] == 1


def test_lines_below_the_level_of_the_log_are_not_sent(start_server: StartServer) -> None:
    server = start_server("echo quiet; echo 'ERROR loud'", WATCHDOG_LOG_LEVEL="ERROR")
    with live(server) as call:
        events = call.rest()
    assert [event.data["text"] for event in events if event.name == "log"] == ["ERROR loud"]


def test_caller_sees_its_position_in_the_queue(start_server: StartServer, gate: Path) -> None:
    server = start_server(WAIT, "--max-inflight", "1", "--max-queue", "5", GATE=str(gate))
    with live(server, X_Call_Id="a") as first, LiveCallInQueue(server) as second, LiveCallInQueue(server) as third:
        assert first.next() == Event("started", {"call_id": "a"})
        assert (second.next(), third.next()) == (Event("queued", {"position": 1}), Event("queued", {"position": 2}))
        first.leave()
        assert second.next().name == "started"
        assert third.next() == Event("queued", {"position": 1})
        gate.touch()
        assert completed(second)["outcome"] == "ok"
        verdict = completed(third)
        assert verdict["outcome"] == "ok"
        assert verdict["queue_wait_s"] > 0  # type: ignore[operator]


class LiveCallInQueue(LiveCall):
    def __init__(self, server: RunningServer) -> None:
        super().__init__(server.port)


# ---- progress


def test_script_reports_its_progress_on_descriptor_4(start_server: StartServer, gate: Path) -> None:
    server = start_server(f"echo 'progress 0.25 one of four' >&4; echo nonsense >&4; {WAIT}", GATE=str(gate))
    with live(server) as call:
        assert call.next("progress").data == {"fraction": 0.25, "text": "one of four"}
        gate.touch()
        assert completed(call)["outcome"] == "ok"


def test_worker_reports_its_progress(start_server: StartServer, gate: Path) -> None:
    body = f"echo 'progress 0.5' >&4; {WAIT}"
    server = start_server(WARM.replace("{body}", body), WATCHDOG_WARM="1", GATE=str(gate))
    with live(server) as call:
        assert call.next("started").data["worker"] == {"calls": 0}
        assert call.next("progress").data == {"fraction": 0.5, "text": ""}
        gate.touch()
        assert completed(call)["worker"] == {"calls": 0}
    with live(server) as call:
        assert call.next("started").data["worker"] == {"calls": 1}


def test_progress_without_a_stream_goes_nowhere(start_server: StartServer) -> None:
    server = start_server("echo 'progress 0.5' >&4; echo $?; readlink /proc/$$/fd/4")
    assert server.call(b"").body == b"0\n/dev/null\n"


@pytest.mark.parametrize(
    "text", [b"progress 2\n", b"progress\n", b"progress 0.1x\n", b"x" * 100_000 + b"\n", b"\xff\n"]
)
def test_other_lines_on_descriptor_4_are_ignored(start_server: StartServer, text: bytes) -> None:
    server = start_server('cat "$INPUT_FILE_PATH" >&4; echo "progress 1 end" >&4')
    with live(server, text) as call:
        assert [event.data for event in call.rest() if event.name == "progress"] == [{"fraction": 1.0, "text": "end"}]


def test_flood_of_progress_does_not_delay_the_verdict(start_server: StartServer) -> None:
    server = start_server("for i in $(seq 20000); do echo 'progress 0.5 flood'; done >&4")
    with live(server) as call:
        events = call.rest()
    assert events[-1].data["outcome"] == "ok"
    assert sum(event.name == "progress" for event in events) < 20_000


# ---- the verdict


def test_outputs_come_before_the_verdict(start_server: StartServer) -> None:
    script = """
    cd "$TMP_OUTPUT_DIR"; mkdir sub; cp "$INPUT_FILE_PATH" sub/large.png; : > empty; printf '{}' > a.json
    """
    server = start_server(script)
    body = os.urandom(1_000_001)
    with live(server, body) as call:
        events = call.rest()
    assert outputs_of(events) == {"a.json": b"{}", "empty": b"", "sub/large.png": body}
    assert sum(event.data.get("name") == "sub/large.png" for event in events) == 3
    types = {each["name"]: each["content_type"] for each in events[-1].data["outputs"]}
    assert types == {"a.json": "application/json", "empty": "application/octet-stream", "sub/large.png": "image/png"}


def test_printed_answer_is_an_output_without_a_name(start_server: StartServer) -> None:
    server = start_server('cat "$INPUT_FILE_PATH"')
    with live(server, b"\x89PNG\r\n\x1a\n\0\0") as call:
        events = call.rest()
    assert outputs_of(events) == {None: b"\x89PNG\r\n\x1a\n\0\0"}
    assert [event.data["content_type"] for event in events if event.name == "output"] == ["image/png"]
    assert events[-1].data["outputs"] == []


def test_printed_answer_has_the_type_that_the_script_chose(start_server: StartServer) -> None:
    server = start_server("""echo 'Content-Type: text/html' > "$HTTP_RESPONSE_FILE"; echo '<b>'""")
    assert server.call(b"").headers["Content-Type"] == "text/html"
    with live(server) as call:
        assert call.next("output").data["content_type"] == "text/html"


@pytest.mark.parametrize(("setting", "media_type"), [("", "image/png"), ("image/gif", "image/gif")])
def test_answer_of_a_classic_function_has_the_type_of_an_ordinary_answer(
    start_server: StartServer, setting: str, media_type: str
) -> None:
    server = start_server(None, fprocess="cat", content_type=setting)
    headers = {"Content-Type": "image/png"}
    assert server.call(b"data", headers=headers).headers["Content-Type"] == media_type
    with LiveCall(server.port, b"data", "/?output=events", headers) as call:
        assert call.next("output").data["content_type"] == media_type


def test_name_that_is_not_utf8_has_escapes(start_server: StartServer) -> None:
    server = start_server("""cd "$TMP_OUTPUT_DIR"; : > "$(printf 'a\\377')"; printf 'line \\377\\n'""")
    with live(server) as call:
        events = call.rest()
    assert [event.data["text"] for event in events if event.name == "log"] == ["line \\xff"]
    assert [event.data["name"] for event in events if event.name == "output"] == ["a\\xff"]


def test_failed_script_has_the_verdict_of_an_ordinary_call(start_server: StartServer) -> None:
    server = start_server("echo half; echo why >&2; exit 3")
    ordinary = server.call(b"", "/?output=json")
    with live(server) as call:
        verdict = completed(call)
    assert (verdict["status"], verdict["outcome"], verdict["exit_code"]) == (ordinary.status, "failed", 3)
    assert (verdict["stdout"], verdict["stderr"]) == ("half\n", "why\n")
    problem = ordinary.json
    assert isinstance(verdict["error"], dict)
    assert verdict["error"] | {"call_id": ""} == problem | {"call_id": ""}


@pytest.mark.parametrize(
    ("script", "settings", "status", "outcome"),
    [
        ("sleep 1000", {"WATCHDOG_EXEC_TIMEOUT": "300ms"}, 504, "timeout"),
        ("kill -9 $$", {}, 500, "killed"),
        ("head -c 3000000 /dev/zero", {"WATCHDOG_MAX_OUTPUT_SIZE": "1MB"}, 500, "output_too_large"),
        ("echo status: 99 > $HTTP_RESPONSE_FILE", {}, 500, "bad_response"),
    ],
)
def test_verdict_of_a_failure(
    start_server: StartServer, script: str, settings: dict[str, str], status: int, outcome: str
) -> None:
    server = start_server(script, **settings)
    with live(server) as call:
        verdict = completed(call)
    assert (verdict["status"], isinstance(verdict["error"], dict)) == (status, True), verdict
    assert verdict["outcome"] == server.event("invocation ended")["outcome"]


def test_metrics_count_a_stream_with_the_status_of_its_verdict(start_server: StartServer, free_port: int) -> None:
    """An alert on 5xx must also see the live calls that fail."""
    server = start_server('[ ! -s "$INPUT_FILE_PATH" ]', WATCHDOG_METRICS_PORT=str(free_port))
    for body in (b"", b"x"):
        with live(server, body) as call:
            call.rest()
    lines = [b'http_requests_total{code="%d",method="POST"} 1.0\n' % code for code in (200, 500)]

    def are_counted() -> bool:
        metrics = server.call(None, "/metrics", "GET", port=free_port).body
        return all(line in metrics for line in lines)

    until(are_counted, "both calls to be counted")


def test_script_may_choose_the_status_of_the_verdict(start_server: StartServer) -> None:
    server = start_server("""echo '{"status": 418}' > "$HTTP_RESPONSE_FILE" """)
    ordinary = server.call(b"")
    with live(server) as call:
        verdict = completed(call)
    assert verdict["status"] == ordinary.status


@pytest.mark.parametrize(
    ("chosen", "seconds"),
    [
        (b"7", 7),
        (b"1.5", None),
        (b"Wed, 21 Oct 2026 07:28:00 GMT", None),
        (b"9" * 5000, None),
        ("\u0663".encode(), None),
    ],
)
def test_failing_script_may_choose_any_retry_after(
    shared_server: StartServer, chosen: bytes, seconds: int | None
) -> None:
    server = shared_server(
        """printf 'Status: 503\nRetry-After: %s\n' "$(cat "$INPUT_FILE_PATH")" > "$HTTP_RESPONSE_FILE"; exit 1"""
    )
    with live(server, chosen) as call:
        verdict = completed(call)
    assert (verdict["status"], verdict["outcome"], verdict.get("retry_after_s")) == (503, "failed", seconds)


def test_caller_that_leaves_after_the_verdict_has_the_whole_answer(start_server: StartServer) -> None:
    server = start_server('cat "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/out"')
    request = "POST /?output=events HTTP/1.1\r\nHost: x\r\nX-Call-Id: %d\r\nContent-Length: 0\r\n\r\n"
    for number in range(20):
        with server.connect() as sock:
            sock.sendall((request % number).encode())
            received = b""
            while b"event: completed" not in received:
                received += sock.recv(65536)
        assert server.event("invocation ended", call_id=str(number))["outcome"] == "ok"


def test_drain_ends_the_stream_with_a_verdict(start_server: StartServer) -> None:
    server = start_server("echo here; exec sleep 1000", WATCHDOG_DRAIN_TIMEOUT="100ms", WATCHDOG_KILL_GRACE="100ms")
    with live(server) as call:
        call.next("log")
        server.signal(signal.SIGTERM)
        verdict = completed(call)
    assert verdict["status"] == 503
    assert verdict["retry_after_s"] == 5
    assert server.stop() == 0


def test_killed_server_leaves_a_stream_without_a_verdict(start_server: StartServer) -> None:
    server = start_server("echo here; exec sleep 1000")
    with live(server) as call:
        call.next("log")
        server.process.kill()
        # The end of the chunks is missing, so each HTTP client notices that the answer is not complete.
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            call.read_all()


def test_caller_that_leaves_ends_the_script(start_server: StartServer) -> None:
    server = start_server("echo $$; exec sleep 1000")
    with live(server) as call:
        pid = int(call.next("log").data["text"])
    until(lambda: proc.process(pid) is None, "the end of the script")
    assert server.event("invocation ended")["outcome"] == "caller_gone"


# ---- refusals


@pytest.mark.parametrize(
    ("body", "query", "headers", "status"),
    [
        (b"a b+c", "/?output=events", {}, 400),
        (b"QUJD", "/?output=nonsense", {"Accept": "text/event-stream"}, 400),
        (b"x" * 2000, "/?output=events&input=raw", {}, 413),
        (b"", "/?output=events", {"Authorization": "Bearer wrong"}, 401),
        (b"", "/?output=events", {"X-Timeout": "never"}, 400),
    ],
)
def test_refused_call_has_its_own_status(
    shared_server: StartServer, body: bytes, query: str, headers: dict[str, str], status: int
) -> None:
    server = shared_server("cat", "--max-input-size", "1000", WATCHDOG_AUTH_TOKEN="right-token-of-32-characters-here")
    right = {"Authorization": "Bearer right-token-of-32-characters-here"}
    with LiveCall(server.port, body, query, right | headers) as call:
        assert call.status == status
        assert call.problem()["status"] == status


def test_missing_script_has_its_own_status(start_server: StartServer) -> None:
    server = start_server(None)
    with live(server) as call:
        assert call.status == 500
        assert call.problem() == server.call(b"", headers={"X-Call-Id": call.headers["X-Call-Id"]}).json


def test_full_queue_has_its_own_status(start_server: StartServer, gate: Path) -> None:
    server = start_server(WAIT, "--max-inflight", "1", "--max-queue", "0", GATE=str(gate))
    with live(server) as first:
        first.next("started")
        with live(server) as second:
            assert (second.status, second.headers["Retry-After"]) == (429, "1")
        gate.touch()
        assert completed(first)["outcome"] == "ok"


def test_wait_that_is_too_long_ends_the_stream_with_the_status(start_server: StartServer, gate: Path) -> None:
    server = start_server(WAIT, "--max-inflight", "1", "--queue-timeout", "200ms", GATE=str(gate))
    with live(server) as first:
        first.next("started")
        with live(server) as second:
            assert second.next() == Event("queued", {"position": 1})
            verdict = completed(second)
            assert (verdict["status"], verdict["outcome"]) == (429, "overloaded")
            assert isinstance(verdict["retry_after_s"], int)
        gate.touch()
        assert completed(first)["outcome"] == "ok"


def test_worker_that_cannot_load_has_its_own_status(start_server: StartServer) -> None:
    server = start_server("echo broken >&2; exit 4", WATCHDOG_WARM="1")
    with live(server) as call:
        assert call.status == 503
        assert call.problem()["exit_code"] == 4


def test_caller_is_not_left_in_silence_while_a_worker_loads(start_server: StartServer, gate: Path) -> None:
    """Proxies end a connection on which nothing was sent for a minute. A worker may load for longer."""
    program = (str(Path(__file__).parent / "quick_heartbeat.py"),)
    server = start_server(f"{WAIT} echo broken >&2; exit 4", WATCHDOG_WARM="1", GATE=str(gate), program=program)
    with live(server) as call:
        assert call.status == 200
        for _ in range(3):
            call.next_comment()
        gate.touch()
        verdict = completed(call)
    assert (verdict["status"], verdict["outcome"]) == (503, server.event("invocation ended")["outcome"])
    assert isinstance(verdict["retry_after_s"], int)


def test_comments_do_not_begin_before_the_body_is_complete(
    start_server: StartServer, gate: Path, free_port: int
) -> None:
    """A body that cannot be read is answered with its own status, even if the caller sends it slowly."""
    program = (str(Path(__file__).parent / "quick_heartbeat.py"),)
    server = start_server(WAIT, GATE=str(gate), WATCHDOG_METRICS_PORT=str(free_port), program=program)
    with server.connect() as slow:
        slow.sendall(b"POST /?output=events HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\na b")
        server.await_bodies()
        with live(server) as other:
            for _ in range(5):
                other.next_comment()
            slow.sendall(b"+c")
            assert slow.recv(65536).startswith(b"HTTP/1.1 400 ")
            gate.touch()
            assert completed(other)["outcome"] == "ok"


# ---- HTTP


def test_connection_serves_another_call_after_a_stream(start_server: StartServer) -> None:
    server = start_server("cat")
    request = b"POST /?output=events HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    last = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    text = server.raw(request + last)
    assert text.count(b"HTTP/1.1 200 OK") == 2
    assert b"\r\n0\r\n\r\nHTTP/1.1 200 OK" in text


def test_stream_of_http_1_0_ends_with_the_connection(start_server: StartServer) -> None:
    server = start_server("echo line")
    text = server.raw(b"POST /?output=events HTTP/1.0\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    head, _, body = text.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding" not in head
    assert b"Content-Length" not in head
    assert b"\n\nevent: started\ndata: " in body
    assert body.split(b"\n\n")[-2].startswith(b"event: completed\ndata: ")


def test_silent_script_does_not_leave_the_connection_silent(start_server: StartServer, gate: Path) -> None:
    program = (str(Path(__file__).parent / "quick_heartbeat.py"),)
    server = start_server(WAIT, GATE=str(gate), program=program)
    with live(server) as call:
        call.next("started")
        for _ in range(3):
            call.next_comment()
        gate.touch()
        assert completed(call)["outcome"] == "ok"


@pytest.mark.guard("reconnection")
def test_event_source_that_connects_again_does_not_run_the_script_again(
    start_server: StartServer, tmp_path: Path
) -> None:
    """The EventSource of a browser sends its request again when a stream has ended. A 204 stops it."""
    runs = tmp_path / "runs"
    server = start_server(f"echo run >> {runs}")
    request = b"GET /?output=events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\nConnection: close\r\n"
    first = server.raw(request + b"X-Call-Id: mine\r\n\r\n")
    assert b"\r\nid: mine\n\n\r\n" in first
    again = server.raw(request + b"Last-Event-ID: mine\r\n\r\n")
    assert again.startswith(b"HTTP/1.1 204 ")
    assert runs.read_text() == "run\n"


def test_last_event_id_does_not_keep_a_post_from_running(start_server: StartServer) -> None:
    server = start_server("echo ran")
    with live(server, Last_Event_ID="mine") as call:
        assert completed(call)["stdout"] == "ran\n"


# ---- slow callers


def test_stalled_reader_does_not_slow_down_the_script(start_server: StartServer, tmp_path: Path) -> None:
    """The script prints more than all buffers hold. It ends although the caller reads nothing."""
    ended = tmp_path / "ended"
    script = f'yes "$(printf %0999d 7)" | head -n 16000; touch {ended}'
    flags = ("--max-log-rate", "0", "--max-output-size", "1GB", "--write-timeout", "300s")
    server = start_server(script, *flags)
    with live(server) as call:
        until(ended.exists, "the end of the script", patience_s=200)
        events = call.rest()
    dropped = sum(event.data["lines"] for event in events if event.name == "dropped")
    sent = sum(event.name == "log" for event in events)
    assert dropped > 0
    assert sent + dropped == 16_000
    assert events[-1].data["outcome"] == "ok"
    assert len(outputs_of(events)[None]) == 16_000_000


def test_outputs_of_many_stalled_readers_take_little_memory(start_server: StartServer, tmp_path: Path) -> None:
    """Each caller stops after the first piece of its output. The server has read some pieces ahead for each of them."""
    large = tmp_path / "large"
    large.write_bytes(os.urandom(1 << 20) * 16)
    script = f'ln {large} "$TMP_OUTPUT_DIR/out"'
    server = start_server(script, "--max-inflight", "2", "--max-queue", "50", WATCHDOG_WRITE_TIMEOUT="0")
    callers = 40
    with contextlib.ExitStack() as stack:
        before_mib = server.memory_mib("VmRSS")
        calls = [stack.enter_context(live(server)) for _ in range(callers)]
        for call in calls:
            call.next("output")
        assert server.memory_mib("VmHWM") - before_mib < 4.5 * callers  # 6 without a limit for all
        for call in calls:
            call.leave()


def test_one_stalled_reader_does_not_delay_other_callers(start_server: StartServer) -> None:
    script = 'if [ -s "$INPUT_FILE_PATH" ]; then yes "$(printf %0999d 7)" | head -n 20000; fi; echo end'
    server = start_server(script, "--max-inflight", "2", "--max-log-rate", "0", "--max-output-size", "1GB")
    with live(server, b"flood") as call:
        call.next("log")
        for _ in range(3):
            with live(server) as other:
                assert completed(other)["outcome"] == "ok"


# ---- classic functions, jobs, local runs


def test_classic_function_streams_its_stderr(start_server: StartServer, gate: Path) -> None:
    command = f"sh -c 'cat; echo note >&2; {WAIT.strip()}'"
    server = start_server(None, fprocess=command, GATE=str(gate))
    with LiveCall(server.port, b"data", "/?output=events") as call:
        assert call.next("log").data == {"level": "info", "stream": "stderr", "text": "note"}
        gate.touch()
        events = call.rest()
    assert outputs_of(events) == {None: b"data"}
    assert events[-1].data["outcome"] == "ok"


def test_classic_function_that_fails_has_a_verdict(start_server: StartServer) -> None:
    server = start_server(None, fprocess="sh -c 'echo why >&2; exit 5'")
    with LiveCall(server.port, b"", "/?output=events") as call:
        verdict = completed(call)
    assert (verdict["status"], verdict["exit_code"], verdict["stderr"]) == (500, 5, "why\n")


def test_caller_of_a_classic_function_may_wait_for_100_continue(start_server: StartServer) -> None:
    """The function runs before its body has come, so the stream is open by then."""
    server = start_server(None, fprocess="cat")
    with server.connect() as sock:
        sock.sendall(b"POST /?output=events HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        text = b""
        while b"started" not in text:
            text += sock.recv(65536)
        assert text.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
        sock.sendall(b"data")
        while b"event: completed" not in text:
            text += sock.recv(65536)
    assert text.count(b"100 Continue") == 1
    assert b'"data":"ZGF0YQ=="' in text


@pytest.mark.guard("rest-beside-verdict")
@pytest.mark.parametrize(("command", "status"), [("echo early", 200), ("sh -c 'exit 3'", 500)])
def test_verdict_does_not_wait_for_a_body_that_a_classic_function_does_not_read(
    start_server: StartServer, command: str, status: int
) -> None:
    server = start_server(None, fprocess=command)
    with server.connect() as sock:
        sock.sendall(b"POST /?output=events HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
        text = b""
        while b"event: completed" not in text or not text.endswith(b"\n\n\r\n"):
            text += sock.recv(65536)
            assert b"\n:\n" not in text, "the verdict waits for the body, so a comment came first"
        assert b'"status":%d,' % status in text
        sock.sendall(b"cdPOST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        rest = read_all(sock)
    assert rest.startswith(b"0\r\n\r\nHTTP/1.1 "), rest
    assert server.event("invocation ended")["outcome"] == ("ok" if status == 200 else "failed")


def test_classic_function_may_print_much_while_its_caller_only_sends(start_server: StartServer) -> None:
    """Neither side may wait for the other one for ever. The caller reads only after it has sent all."""
    server = start_server(None, "--max-output-size", "1GB", fprocess="head -c 20000000 /dev/zero")
    with LiveCall(server.port, bytes(20_000_000), "/?output=events") as call:
        assert len(outputs_of(call.rest())[None]) == 20_000_000


def test_local_run_may_report_progress(tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text("echo 'progress 0.5' >&4 && echo fine")
    finished = subprocess.run(
        [sys.executable, "-m", "watchdog", "run", "-"],
        env=os.environ | {"WATCHDOG_SCRIPT_PATH": str(script), "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=RunningServer.patience_s,
    )
    assert finished.stdout == b"fine\n", finished.stderr


def test_skipped_event_has_a_verdict(start_server: StartServer) -> None:
    """The event of a removal does not run the script."""
    definition = """
functions:
  oscar:
    - cluster:
        name: fn
        input: [{storage_provider: minio, path: bucket/in}]
        storage_providers: {minio: {default: {endpoint: "http://127.0.0.1:1", access_key: a, secret_key: b}}}
"""
    record = {
        "eventSource": "aws:s3",
        "eventName": "s3:ObjectRemoved:Delete",
        "s3": {"bucket": {"name": "bucket"}, "object": {"key": "in/x"}},
    }
    server = start_server("echo ran", FUNCTION_CONFIG=base64.b64encode(definition.encode()).decode())
    with LiveCall(server.port, json.dumps({"Records": [record]}).encode(), "/?output=events") as call:
        (event,) = call.rest()
    assert event.data["outcome"] == "skipped"
    assert "skipped" in event.data
