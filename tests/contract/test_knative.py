"""The server as Knative's user container: the runtime contract, through a replacement for queue-proxy.

Tests of callers, HTTP and stops are in ``tests/faults/``. The tests here are only about Knative.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pod
import pytest
from live_call import LiveCall
from queue_proxy import QueueProxy
from running_server import Answer, RunningServer, StartServer, read_all, read_answer, until

from watchdog.http.connection import KEEP_ALIVE_S

# Makes a file when it runs, and ends when the test has made another file.
WAIT = 'touch "$HANDSHAKE/up-$CALL_ID"; while [ ! -e "$HANDSHAKE/go" ]; do sleep 0.02; done; '
# If two scripts ever run at the same time, the script makes a file.
ALONE = 'exec 9> "$HANDSHAKE/lock"; flock --nonblock 9 || touch "$HANDSHAKE/overlap"; '
# The settings that examples/knative/service.yaml gives to a function of one call at a time.
ONE_AT_A_TIME = {
    "max_inflight": "1",
    "WATCHDOG_MAX_QUEUE": "2",
    "WATCHDOG_QUEUE_TIMEOUT": "15s",
    "healthcheck_interval": "0s",
    "suppress_lock": "true",
}
# After this time, Go's http.DefaultTransport closes an idle connection. queue-proxy uses a copy of this transport.
IDLE_AT_QUEUE_PROXY_S = 90
PROBE = b"GET /_/health HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: kube-probe/1.34\r\nConnection: close\r\n\r\n"


@pytest.fixture
def handshake(tmp_path: Path) -> Path:
    directory = tmp_path / "handshake"
    directory.mkdir()
    return directory


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as pool:
        yield pool


# ---- the port and the probes


def test_it_listens_on_port_and_only_when_it_can_serve(tmp_path: Path, free_port: int) -> None:
    """The default probe connects over TCP every few milliseconds. A caller that can connect must be served."""
    (tmp_path / "script.sh").write_text("echo served")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WATCHDOG_")}
    environ |= {"PORT": str(free_port), "TMPDIR": str(tmp_path), "WATCHDOG_METRICS_PORT": "0"}
    environ |= {"WATCHDOG_SCRIPT_PATH": str(tmp_path / "script.sh"), "K_SERVICE": "s", "K_REVISION": "s-00001"}
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen([sys.executable, "-m", "watchdog"], env=environ, stdin=subprocess.DEVNULL, stderr=log)
    try:
        with first_connection(free_port) as sock:
            sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            assert read_all(sock).endswith(b"\r\n\r\nserved\n")
    finally:
        server.terminate()
        assert server.wait(RunningServer.patience_s) == 0


def first_connection(port: int) -> socket.socket:
    deadline = time.monotonic() + RunningServer.patience_s
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=RunningServer.patience_s)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.001)


def test_probes_while_it_is_busy(start_server: StartServer, handshake: Path, callers: ThreadPoolExecutor) -> None:
    """Probes do not need a place in queue-proxy. A busy pod is healthy, and must still get calls."""
    server = start_server(f"{WAIT}echo done", HANDSHAKE=str(handshake), **ONE_AT_A_TIME)
    running = callers.submit(server.call, b"")
    until(lambda: list(handshake.glob("up-*")), "the script to run")
    for _ in range(20):
        server.connect().close()
    health = server.raw(PROBE)
    assert health.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nConnection: close\r\n" in health
    assert server.raw(PROBE.replace(b"health", b"ready")).startswith(b"HTTP/1.1 429 ")
    (handshake / "go").touch()
    assert running.result().body == b"done\n"
    assert server.raw(PROBE.replace(b"health", b"ready")).startswith(b"HTTP/1.1 200 ")
    server.stop()
    assert not [event for event in server.logs if event["level"] not in ("debug", "info")]


# ---- queue-proxy before it


@pytest.mark.parametrize("end", ["timed out", "vanished"])
@pytest.mark.parametrize("deaf", [False, True], ids=["obedient", "ignores SIGTERM"])
def test_the_next_call_takes_the_place_of_one_that_ended(
    start_server: StartServer, handshake: Path, callers: ThreadPoolExecutor, end: str, deaf: bool
) -> None:
    """For queue-proxy, the place is free at once, so the next call waits in the server for the old script to end."""
    trap = "trap '' TERM; " if deaf else ""
    script = f'{trap}{ALONE}if [ "$CALL_ID" = first ]; then {WAIT}fi; echo "$CALL_ID"'
    server = start_server(script, HANDSHAKE=str(handshake), **ONE_AT_A_TIME, WATCHDOG_KILL_GRACE="1s")
    with QueueProxy(server.port) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=server.patience_s) as first:
            first.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nX-Call-Id: first\r\nContent-Length: 0\r\n\r\n")
            until((handshake / "up-first").exists, "the first script to run")
            second = callers.submit(server.call, b"", headers={"X-Call-Id": "second"}, port=proxy.port)
            until(lambda: proxy.waiting == 1, "the second call to wait in queue-proxy")
            if end == "timed out":
                proxy.let_the_oldest_reach_its_limit()
                assert first.recv(1024).startswith(b"HTTP/1.1 504 ")
        assert (second.result().status, second.result().body) == (200, b"second\n")
    assert not (handshake / "overlap").exists()
    ended = server.event("invocation ended", call_id="first")
    assert ended["outcome"] == "caller_gone"
    until(lambda: not server.leftovers_of_calls(), "the workspaces to be removed")


def test_a_crowd_waits_in_queue_proxy_and_not_here(
    start_server: StartServer, handshake: Path, callers: ThreadPoolExecutor
) -> None:
    server = start_server(f"{ALONE}{WAIT}echo done", HANDSHAKE=str(handshake), **ONE_AT_A_TIME)
    with QueueProxy(server.port) as proxy:

        def call() -> Answer:
            return server.call(b"", port=proxy.port)

        calls = [callers.submit(call)]
        until(lambda: list(handshake.glob("up-*")), "the first script to run")
        calls += [callers.submit(call) for _ in range(10)]
        until(lambda: proxy.waiting == 10, "ten calls to wait")
        refused = call()
        assert (refused.status, refused.body) == (503, b"pending request queue full\n")
        (handshake / "go").touch()
        assert [each.result().body for each in calls] == [b"done\n"] * 11
    assert not (handshake / "overlap").exists()


def test_many_callers_share_one_connection(start_server: StartServer) -> None:
    """queue-proxy keeps one connection for each place, and uses it for the calls of any caller."""
    server = start_server('cat "$INPUT_FILE_PATH"; exit "${Http_X_Exit:-0}"', **ONE_AT_A_TIME)
    raw = {"Content-Type": "image/x"}
    with QueueProxy(server.port) as proxy:
        for number in range(6):
            text = f"caller {number}".encode()
            assert server.call(text, headers=raw, port=proxy.port).body == text
            assert chunked_call(proxy.port, text).endswith(b"\r\n\r\n" + text)
            # After an error for a complete request, the connection can be used again.
            assert server.call(text, headers=raw | {"X-Exit": "3"}, port=proxy.port).status == 500
            assert server.call(b"", headers={"Accept": "image/png"}, port=proxy.port).status == 406
            assert server.connections() == 1


def chunked_call(port: int, text: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=RunningServer.patience_s) as sock:
        sock.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: image/x\r\nTransfer-Encoding: chunked\r\n"
            b"Connection: close\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(text), text)
        )
        return read_all(sock)


def test_an_idle_connection_is_kept_longer_than_queue_proxy_keeps_it() -> None:
    """If the server closes the connection when a POST arrives, queue-proxy does not send it again, but answers 502."""
    assert KEEP_ALIVE_S >= 2 * IDLE_AT_QUEUE_PROXY_S


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(IDLE_AT_QUEUE_PROXY_S + 60)
def test_an_idle_connection_is_still_served_after_that_time(start_server: StartServer) -> None:
    server = start_server("echo hi")
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    with server.connect() as sock:
        sock.sendall(request)
        assert read_answer(sock).endswith(b"\r\n\r\nhi\n")
        closed, _, _ = select.select([sock], [], [], IDLE_AT_QUEUE_PROXY_S + 5)
        assert not closed
        sock.sendall(request)
        assert read_answer(sock).endswith(b"\r\n\r\nhi\n")


def test_the_whole_request_is_read_before_the_answer(start_server: StartServer) -> None:
    """If the answer comes before the end of the request, queue-proxy aborts the upload (serving #12387)."""
    server = start_server("echo hi", max_inflight="2")
    with server.connect() as sock:
        sock.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n4\r\naGlo\r\n"
        )
        for _ in range(3):
            assert server.call(b"").body == b"hi\n"
        early, _, _ = select.select([sock], [], [], 0)
        assert not early
        sock.sendall(b"0\r\n\r\n")
        assert read_all(sock).endswith(b"\r\n\r\nhi\n")


def test_a_caller_that_waits_for_100_continue(start_server: StartServer, tmp_path: Path) -> None:
    """curl waits for 100 Continue if a body is larger than 1 MiB, and queue-proxy passes this header on."""
    (tmp_path / "input").write_bytes(bytes(3 << 20))
    server = start_server('wc -c < "$INPUT_FILE_PATH"', **ONE_AT_A_TIME)
    with QueueProxy(server.port) as proxy:
        command = ["curl", "--silent", "--show-error", "--verbose", "--expect100-timeout", "50", "--max-time", "50"]
        command += ["--data-binary", f"@{tmp_path / 'input'}", "--header", "Content-Type: image/x"]
        command += ["--header", "Expect: 100-continue", f"http://127.0.0.1:{proxy.port}"]
        done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout.strip() == b"3145728"
    assert b"< HTTP/1.1 100 Continue" in done.stderr


# ---- the end


def test_a_long_request_is_answered_after_sigterm(
    start_server: StartServer, handshake: Path, callers: ThreadPoolExecutor
) -> None:
    """SIGTERM comes when no call has arrived for a while. Earlier calls may still run."""
    server = start_server(f"{WAIT}echo done", HANDSHAKE=str(handshake), **ONE_AT_A_TIME)
    with QueueProxy(server.port) as proxy:
        running = callers.submit(server.call, b"", port=proxy.port)
        until(lambda: list(handshake.glob("up-*")), "the script to run")
        server.signal(signal.SIGTERM)
        server.event("draining")
        (handshake / "go").touch()
        assert (running.result().status, running.result().body) == (200, b"done\n")
    assert server.wait() == 0


def test_an_idle_server_ends_at_once(start_server: StartServer) -> None:
    """It was just probed, and queue-proxy has an open connection. The server ends nevertheless: no caller needs it."""
    settings = ONE_AT_A_TIME | {"write_timeout": "250s", "exec_timeout": "240s"}
    server = start_server("echo hi", **settings)
    with QueueProxy(server.port) as proxy:
        assert server.call(b"", port=proxy.port).body == b"hi\n"
        assert server.connections() == 1
        assert server.raw(PROBE).startswith(b"HTTP/1.1 200 ")
        # If the server waited for any of these times, this would time out.
        assert server.stop() == 0


# ---- the container


# Prints its user, process, root, capabilities and stdin, and the directories to which it can write.
ABOUT = """#!/bin/sh
echo "user $(id -u)"
echo "server $(awk '/^PPid:/ {print $2}' /proc/self/status) $(cut -d ' ' -f 4 /proc/$$/stat)"
echo "root $(awk '$5 == "/" {split($6, options, ","); print options[1]}' /proc/self/mountinfo)"
echo "capabilities $(awk '/^Cap(Prm|Eff|Bnd|Amb):/ {print $2}' /proc/self/status | sort -u)"
echo "stdin $(wc -c)"
for place in / /oscar/config /usr /var/tmp /home .; do
    if (: > "$place/written") 2> /dev/null; then echo "writable $place"; fi
done
cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/copy"
[ -n "${SHOW_OUTPUT:-}" ] || rm "$TMP_OUTPUT_DIR/copy"
"""


def start_in_pod(
    start_server: StartServer, directory: Path, script: str, *, tmp_bytes: int = 64 << 20, **environ: str
) -> RunningServer:
    settings = {"TMPDIR": "/tmp", "WATCHDOG_SCRIPT_PATH": "/oscar/config/script.sh"} | ONE_AT_A_TIME | environ
    return start_server(None, prefix=pod.prefix(directory, {"script.sh": script}, tmp_bytes=tmp_bytes), **settings)


def test_as_pid_1_of_a_container_that_may_nothing(start_server: StartServer, tmp_path: Path) -> None:
    server = start_in_pod(start_server, tmp_path / "pod", ABOUT)
    lines = server.call(b"aGk=").body.decode().splitlines()
    assert lines[0] == f"user {pod.USER}"
    assert lines[1].endswith(" 1")
    assert lines[2:] == ["root ro", "capabilities 0000000000000000", "stdin 0"]
    os.kill(pod.pid_1_of(server.process.pid), signal.SIGTERM)
    assert server.wait() == 0


def test_outputs_and_inputs_fit_into_tmp_or_are_refused(start_server: StartServer, tmp_path: Path) -> None:
    server = start_in_pod(start_server, tmp_path / "pod", ABOUT, tmp_bytes=8 << 20, SHOW_OUTPUT="1")
    raw = {"Content-Type": "image/x", "Accept": "application/octet-stream"}
    assert len(server.call(bytes(3 << 20), headers=raw).body) == 3 << 20
    assert server.call(bytes(9 << 20), headers=raw).status == 507
    assert len(server.call(bytes(3 << 20), headers=raw).body) == 3 << 20


def test_pid_1_answers_a_long_request_after_sigterm(
    start_server: StartServer, tmp_path: Path, callers: ThreadPoolExecutor
) -> None:
    script = "touch /tmp/up; while [ ! -e /tmp/go ]; do sleep 0.02; done; echo done"
    server = start_in_pod(start_server, tmp_path / "pod", script)
    pid = pod.pid_1_of(server.process.pid)
    seen_from_here = Path(f"/proc/{pid}/root/tmp")
    running = callers.submit(server.call, b"")
    until((seen_from_here / "up").exists, "the script to run")
    os.kill(pid, signal.SIGTERM)
    server.event("draining")
    (seen_from_here / "go").touch()
    assert running.result().body == b"done\n"
    assert server.wait() == 0


# ---- HTTP/2 without TLS is not offered


def test_h2c_with_prior_knowledge_gets_a_clear_answer(start_server: StartServer) -> None:
    server = start_server("echo never > $HANDSHAKE", **ONE_AT_A_TIME)
    settings_frame = b"\0\0\0\4\0\0\0\0\0"
    answer = server.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings_frame)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 505 ", b"HTTP/1.0 400 ", b"HTTP/1.0 505 "))
    assert b"application/problem+json" in answer
    server.stop()
    assert not [event for event in server.logs if event["event"] == "invocation ended"]


@pytest.mark.parametrize("body", [b"", b"aGk="], ids=["no body", "body"])
def test_an_upgrade_to_h2c_is_ignored(start_server: StartServer, body: bytes) -> None:
    """A server may ignore an Upgrade and answer in HTTP/1.1 (RFC 9110, section 7.8)."""
    server = start_server('wc -c < "$INPUT_FILE_PATH"', **ONE_AT_A_TIME)
    answer = server.raw(
        b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nupgrade:" not in answer.lower()
    assert answer.endswith(b"\r\n\r\n2\n" if body else b"\r\n\r\n0\n")


def test_live_call_passes_queue_proxy_event_by_event(start_server: StartServer, handshake: Path) -> None:
    server = start_server(f"echo here; {WAIT}echo end", HANDSHAKE=str(handshake), **ONE_AT_A_TIME)
    with QueueProxy(server.port) as proxy, LiveCall(proxy.port) as call:
        assert call.next("log").data["text"] == "here"
        (handshake / "go").touch()
        assert call.next("completed").data["outcome"] == "ok"


def test_caller_that_leaves_a_live_call_at_queue_proxy_ends_the_script(
    start_server: StartServer, handshake: Path
) -> None:
    server = start_server(f"echo here; {WAIT}echo end", HANDSHAKE=str(handshake), **ONE_AT_A_TIME)
    with QueueProxy(server.port) as proxy, LiveCall(proxy.port) as call:
        call.next("log")
        call.leave()
        assert server.event("invocation ended")["outcome"] == "caller_gone"
