"""A stop loses no call that was accepted and resets no connection."""

from __future__ import annotations

import contextlib
import ctypes
import select
import signal
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest
from guards import changed_program
from running_server import PATIENT_STOP, RunningServer, StartServer, is_whole, problem, read_all, read_answer, until

from watchdog.http import listener as listener_module
from watchdog.settings.declarations import SETTINGS
from watchdog.system.handshakes import has_half_open

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27  # asm-generic/socket.h
REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
WAIT = "touch $HANDSHAKE/up-$CALL_ID; until [ -e $HANDSHAKE/go ]; do sleep 0.02; done; echo done\n"


# ---- under load


class Load:
    """Callers that call until the server is gone, half of them on kept connections, half on a new one each time.

    A call may get a whole answer. Its connection may be refused. A kept connection may be closed between two answers,
    as HTTP allows (RFC 9112, 9.6). Any other end of a call is counted under its name.
    """

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self.outcomes: Counter[str] = Counter()
        self._pool = ThreadPoolExecutor(12)
        kinds = [self._on_one_connection, self._on_new_connections] * 6
        self._callers = [self._pool.submit(kind) for kind in kinds]

    def ended(self) -> Counter[str]:
        for caller in self._callers:
            caller.result()
        self._pool.shutdown()
        return self.outcomes

    def _on_one_connection(self) -> None:
        with self._server.connect() as sock:
            while True:
                try:
                    sock.sendall(REQUEST)
                    answer = read_answer(sock)
                except ConnectionError as error:
                    # This is a fault: the server must close a kept connection without a reset.
                    self.outcomes[f"reset of a kept connection: {error}"] += 1
                    return
                if not answer:
                    return
                self._count(answer)
                if b"\r\nConnection: close\r\n" in answer:
                    return

    def _on_new_connections(self) -> None:
        while True:
            try:
                sock = self._server.connect()
            except (ConnectionRefusedError, TimeoutError):
                return
            with sock:
                try:
                    sock.sendall(REQUEST)
                    answer = read_answer(sock)
                except ConnectionError as error:
                    self.outcomes[f"reset of a new connection: {error}"] += 1
                    continue
                self._count(answer)

    def _count(self, answer: bytes) -> None:
        self.outcomes[answer[9:12].decode() if is_whole(answer) else f"cut: {answer!r}"] += 1


def assert_every_call_is_answered(start_server: StartServer) -> None:
    server = start_server("sleep 0.0$(($$ % 5)); echo done", WATCHDOG_MAX_INFLIGHT="4")
    load = Load(server)
    until(lambda: load.outcomes["200"] > 20, "calls to be answered")
    server.signal(signal.SIGTERM)
    outcomes = load.ended()
    assert server.wait() == 0
    assert set(outcomes) <= {"200", "503", "429"}, outcomes
    assert server.leftovers() == []


@pytest.mark.guard("drain")
def test_every_call_is_answered(start_server: StartServer) -> None:
    assert_every_call_is_answered(start_server)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("_round", range(50))
def test_every_call_is_answered_fifty_times(start_server: StartServer, _round: int) -> None:
    assert_every_call_is_answered(start_server)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("_round", range(50))
def test_a_second_signal_ends_it_fifty_times(start_server: StartServer, tmp_path: Path, _round: int) -> None:
    a_second_signal_ends_it(start_server, tmp_path, None)


@pytest.mark.guard("second-signal", never="the server did not end")
def test_a_second_signal_ends_it(start_server: StartServer, tmp_path: Path, removed_guard: str | None) -> None:
    a_second_signal_ends_it(start_server, tmp_path, removed_guard)


def a_second_signal_ends_it(start_server: StartServer, tmp_path: Path, removed_guard: str | None) -> None:
    program = changed_program(PATIENT_STOP, removed_guard)
    script = "trap '' TERM; " + WAIT
    server = start_server(script, program=program, HANDSHAKE=str(tmp_path), WATCHDOG_KILL_GRACE="60")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(server.call, b"", headers={"X-Call-Id": "c"})
        until((tmp_path / "up-c").exists, "the script")
        server.signal(signal.SIGTERM)
        server.event("draining")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        problem(call.result(), 503)
    assert server.leftovers() == []


# ---- at each stage of a call


def test_callers_that_wait_to_be_accepted_are_answered(start_server: StartServer) -> None:
    server = start_server("echo hi", WATCHDOG_MAX_QUEUE="100")
    server.signal(signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(server.connect()) for _ in range(20)]
        for sock in socks:
            sock.sendall(REQUEST)
        server.signal(signal.SIGTERM)
        server.signal(signal.SIGCONT)
        for sock in socks:
            answer = read_answer(sock)
            assert is_whole(answer)
            assert answer[9:12] in (b"200", b"503")
    assert server.wait() == 0


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=8) as sock:
        yield sock


@pytest.mark.guard("deaf-listener")
def test_a_listener_that_ignores_handshakes_keeps_callers_and_accepts_no_new_ones(
    listener: socket.socket, removed_guard: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last check of the queue, no caller can connect before the socket is closed. It would be reset."""
    if removed_guard is not None:
        monkeypatch.setattr(listener_module, "ignore_new_connections", lambda sock: None)
    address = listener.getsockname()
    with socket.create_connection(address) as before, socket.socket() as after:
        listener_module.ignore_new_connections(listener)
        after.setblocking(False)
        after.connect_ex(address)
        poll = select.poll()
        poll.register(after, select.POLLOUT | select.POLLERR)
        assert not poll.poll(200)
        accepted, _ = listener.accept()
        with accepted:
            before.sendall(b"hello")
            assert accepted.recv(5) == b"hello"


# A server that has enough time to accept callers, even on a slow machine.
PATIENT_LISTENER = """
from watchdog.http import listener
replace(listener, "_LONGEST_ACCEPT_S", 60.0)
"""


@pytest.mark.guard("half-open")
def test_a_caller_whose_handshake_has_begun_is_answered(start_server: StartServer, removed_guard: str | None) -> None:
    """This happens over a long distance, or on a busy machine. The server sends a lost packet again after a second."""
    server = start_server("echo hi", program=changed_program(PATIENT_LISTENER, removed_guard))
    with socket.socket() as sock:
        drop = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # all packets (linux/bpf_common.h)
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(drop)))
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", server.port))
        until(lambda: has_half_open(server.port), "the handshake to begin")
        server.signal(signal.SIGTERM)
        server.event("draining")
        if removed_guard:
            until(lambda: not listens(server.port), "the server to close its socket")
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        sock.settimeout(server.patience_s)
        select.select([], [sock], [], server.patience_s)
        sock.sendall(REQUEST)
        answer = read_answer(sock)
    assert is_whole(answer)
    assert answer[9:12] in (b"200", b"503")
    assert server.wait() == 0


BROKEN_DRAIN = """
from watchdog.http.health import Health
def may_get_calls(self):
    raise ArithmeticError("no such step")
replace(Health, "may_get_calls", may_get_calls)
"""


def test_a_fault_in_a_drain_ends_the_running_calls_and_the_server(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(f"trap '' TERM; touch {tmp_path}/up; sleep 1000", program=changed_program(BROKEN_DRAIN, None))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.call, b"")
        until((tmp_path / "up").exists, "the script")
        server.signal(signal.SIGTERM)
        assert problem(answer.result(), 503)
    assert server.event("internal error")["reason"] == "ArithmeticError('no such step')"
    assert server.wait() == 0
    assert server.leftovers() == []


# A server whose listening socket cannot ignore new handshakes. A caller connects at the last check of the queue.
LATE_CALLER = """
import itertools, json, os, socket, threading
from watchdog.http import listener
looks, look = itertools.count(1), listener.is_readable

def look_and_connect(listening):
    found = look(listening)
    port = listening.getsockname()[1]
    if (port == int(os.environ["WATCHDOG_METRICS_PORT"])) is not {is_metrics}:
        return found
    if next(looks) == listener._TURNS_TO_CONNECTION:
        sock = socket.create_connection(listening.getsockname())
        sock.sendall({request!r})
        threading.Thread(target=read, args=(sock,)).start()
    return found

def read(sock):
    try:
        text = sock.recv(100).decode()
    except OSError as error:
        text = repr(error)
    os.write(2, json.dumps(dict(event="answered", text=text)).encode() + bytes([10]))

replace(listener, "ignore_new_connections", lambda sock: None)
replace(listener, "is_readable", look_and_connect)
# The caller must connect before this time is over, also on a slow machine.
replace(listener, "_LONGEST_ACCEPT_S", 60.0)
"""


@pytest.mark.guard("late-accept")
@pytest.mark.parametrize("port", ["calls", "metrics"])
def test_a_caller_that_connects_at_the_last_moment_is_answered(
    start_server: StartServer, removed_guard: str | None, free_port: int, port: str
) -> None:
    """On some systems, the server of an ordinary user cannot refuse new callers before it closes its socket."""
    is_metrics = port == "metrics"
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" if is_metrics else REQUEST
    program = changed_program(LATE_CALLER.format(request=request, is_metrics=is_metrics) + PATIENT_STOP, removed_guard)
    server = start_server("echo hi", program=program, WATCHDOG_METRICS_PORT=str(free_port))
    server.signal(signal.SIGTERM)
    assert server.event("answered")["text"].startswith(("HTTP/1.1 200 ", "HTTP/1.1 503 "))
    assert server.wait() == 0


def listens(port: int) -> bool:
    """Whether a socket listens on the port."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(fields[1].endswith(f":{port:04X}") and fields[3] == "0A" for fields in map(str.split, lines))


# A server that discards the bytes of a refused caller for long enough, even on a slow machine.
PATIENT_LINGER = """
from watchdog.http import body, connection, http_server, problems
for module in (body, connection, http_server, problems):
    replace(module, "SHORT_LINGER_S", 60.0)
replace(connection.Connection._close_own_side, "__defaults__", (60.0,))
"""


@pytest.mark.guard("last-words")
def test_a_caller_that_still_sends_can_read_why_it_is_rejected(
    start_server: StartServer, free_port: int, removed_guard: str | None
) -> None:
    """If the server closed the connection while bytes are unread, the kernel would reset it. The 503 would be lost."""
    program = changed_program(PATIENT_LINGER, removed_guard)
    server = start_server("echo never", program=program, WATCHDOG_METRICS_PORT=str(free_port))
    # Send more than the buffers can hold.
    most_received = int(Path("/proc/sys/net/ipv4/tcp_rmem").read_text().split()[2])
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        sock.settimeout(server.patience_s)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n" + b"QUJD" * 1000)
        server.await_bodies()
        server.signal(signal.SIGTERM)
        server.event("invocation ended", outcome="drained")
        sock.sendall(bytes(most_received + 1_000_000))
        answer = read_answer(sock)
    assert answer[9:12] == b"503"
    assert is_whole(answer)
    assert server.wait() == 0


def test_waiting_calls_are_rejected_and_running_calls_are_answered(
    start_server: StartServer, tmp_path: Path, free_port: int
) -> None:
    server = start_server(
        WAIT, HANDSHAKE=str(tmp_path), WATCHDOG_MAX_INFLIGHT="1", WATCHDOG_METRICS_PORT=str(free_port)
    )
    kept = server.connect()
    with ThreadPoolExecutor(2) as pool, kept:
        running = pool.submit(server.call, b"", headers={"X-Call-Id": "runs"})
        until((tmp_path / "up-runs").exists, "the script")
        queued = pool.submit(server.call, b"", headers={"X-Call-Id": "waits"})
        server.await_waiting()
        server.signal(signal.SIGTERM)
        refused = queued.result()
        problem(refused, 503)
        assert refused.headers["Connection"] == "close"
        assert refused.headers["Retry-After"]
        assert not (server.tmp / ".lock").exists()
        (tmp_path / "go").touch()
        answer = running.result()
        assert (answer.status, answer.body) == (200, b"done\n")
    assert server.wait() == 0
    assert not (tmp_path / "up-waits").exists()
    assert server.leftovers() == []


@pytest.mark.guard("answers-sent")
def test_a_slow_reader_gets_the_whole_answer(start_server: StartServer, removed_guard: str | None) -> None:
    server = start_server("head -c 30000000 /dev/zero")
    with server.connect() as sock:
        sock.sendall(REQUEST)
        start = sock.recv(1000)
        server.signal(signal.SIGTERM)
        server.event("draining")
        until(lambda: not is_reachable(server), "the listener to be closed")
        # Without the guard, the server does not wait until its answers are read, and ends now.
        if removed_guard is not None:
            server.process.wait(server.patience_s)
        answer = bytearray(start)
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(1 << 20):
                answer += piece
    assert len(answer.partition(b"\r\n\r\n")[2]) == 30_000_000
    assert server.wait() == 0


def is_reachable(server: RunningServer) -> bool:
    try:
        server.connect().close()
    except (ConnectionRefusedError, TimeoutError):
        return False
    return True


@pytest.mark.guard("half-close")
def test_a_kept_connection_is_closed_and_not_reset(start_server: StartServer, tmp_path: Path) -> None:
    """A request that arrives during the close does not start. Its caller reads end-of-file, and may send it again."""
    server = start_server("touch $HANDSHAKE; echo hi", HANDSHAKE="/dev/null", WATCHDOG_WRITE_TIMEOUT="300s")
    with server.connect() as sock, server.connect() as busy:
        sock.sendall(REQUEST)
        assert is_whole(read_answer(sock))
        go = tmp_path / "go"
        server.script.write_text(f"until [ -e {go} ]; do sleep 0.02; done; echo hi")
        busy.sendall(REQUEST)
        until(server.leftovers_of_calls, "the workspace")
        server.signal(signal.SIGTERM)
        assert sock.recv(1) == b""
        sock.sendall(REQUEST)
        sock.sendall(REQUEST)
        assert sock.recv(1) == b""
        go.touch()
        assert is_whole(read_answer(busy))
    assert server.wait() == 0
    assert [event["outcome"] for event in server.logs if event["event"] == "invocation ended"] == ["ok", "ok"]


# ---- idle


def test_idle_connections_do_not_delay_a_stop(start_server: StartServer) -> None:
    server = start_server("echo hi", WATCHDOG_WRITE_TIMEOUT="60", WATCHDOG_READ_TIMEOUT="60")
    with server.connect() as kept, server.connect(), server.connect() as half:
        kept.sendall(REQUEST)
        assert is_whole(read_answer(kept))
        half.sendall(b"POST / HT")
        assert server.stop() == 0
        assert kept.recv(1) == b""
        assert b" 408 " in (rest := read_all(half)) or not rest
    assert server.leftovers() == []


def test_a_probed_server_stays_reachable_but_is_not_ready(start_server: StartServer) -> None:
    server = start_server("echo hi", WATCHDOG_HEALTHCHECK_INTERVAL="10m")
    assert server.call(None, "/_/health", "GET").status == 200
    server.signal(signal.SIGTERM)
    server.event("draining")
    assert server.call(None, "/_/health", "GET").status == 503
    assert server.call(b"").body == b"hi\n"
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


@pytest.mark.guard("routed-wait")
def test_a_drain_stays_reachable_without_any_probe_if_that_time_is_set(start_server: StartServer) -> None:
    """The server does not notice probes with commands or over TCP, and it forgets a probe after some time."""
    server = start_server("echo hi", WATCHDOG_HEALTHCHECK_INTERVAL="10m")
    server.signal(signal.SIGTERM)
    server.event("draining")
    assert server.call(b"").body == b"hi\n"
    assert server.call(None, "/_/ready", "GET").status == 503
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


@pytest.mark.guard("routed-wait")
def test_on_kubernetes_a_drain_stays_reachable_by_default(start_server: StartServer) -> None:
    longest_s = {}
    for name, environ in (("kubernetes", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}), ("alone", {})):
        server = start_server("echo hi", **environ)
        server.signal(signal.SIGTERM)
        longest_s[name] = server.event("draining")["longest_s"]
        assert server.wait() == 0
    assert longest_s["kubernetes"] == longest_s["alone"] + 5


def test_a_drain_with_default_settings_fits_into_the_grace_period_of_kubernetes(start_server: StartServer) -> None:
    kill_grace = SETTINGS["kill_grace"].default_text
    server = start_server("echo hi", KUBERNETES_SERVICE_HOST="10.0.0.1", WATCHDOG_KILL_GRACE=kill_grace)
    server.signal(signal.SIGTERM)
    draining = server.event("draining")
    assert draining["longest_s"] <= 28, "Kubernetes kills after 30 s, from a moment before SIGTERM"
    came, over = (datetime.fromisoformat(draining[name]) for name in ("timestamp", "over_by"))
    assert abs((over - came).total_seconds() - draining["longest_s"]) < 1
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


# A drain that is over much sooner than the test without its bound stops waiting for its end.
HASTY_DRAIN = """
from watchdog.http import drain
replace(drain, "_CLOSING_S", 0.5)
replace(drain, "_LAST_ANSWERS_S", 0.5)
"""


@pytest.mark.guard("drain-bound", never="the drain to end", never_s=8)
@pytest.mark.parametrize(
    "script",
    [
        "head -c 60000000 /dev/zero",
        # With so many outputs, the call keeps its place until it is answered.
        'for i in $(seq 20); do head -c 3000000 /dev/zero > "$TMP_OUTPUT_DIR/$i"; done',
    ],
    ids=["one stream", "many outputs"],
)
def test_a_drain_ends_although_a_caller_still_takes_its_answer(
    start_server: StartServer, removed_guard: str | None, script: str
) -> None:
    server = start_server(
        script,
        program=changed_program(HASTY_DRAIN, removed_guard),
        WATCHDOG_WRITE_TIMEOUT="1s",
        WATCHDOG_KILL_GRACE="0",
        WATCHDOG_MAX_INFLIGHT="1",
    )
    with server.connect() as sock:
        sock.sendall(REQUEST)
        sock.recv(1000)
        server.signal(signal.SIGTERM)
        server.event("draining", longest_s=2.0)

        def is_over() -> bool:
            """Read a few bytes, so that the caller is slow but not silent. Return whether the server has ended."""
            with contextlib.suppress(ConnectionError):
                sock.recv(20_000)
            return server.process.poll() is not None

        until(is_over, "the drain to end")
    assert server.wait() == 0
    # No script runs any more, so the drain waits only for the caller.
    assert "running invocations are ended" not in [event["event"] for event in server.logs]


def test_a_drain_without_write_timeout_has_no_bound(start_server: StartServer) -> None:
    server = start_server("echo hi", WATCHDOG_WRITE_TIMEOUT="0")
    assert server.call(b"").body == b"hi\n"
    server.signal(signal.SIGTERM)
    assert "longest_s" not in server.event("draining")
    assert server.wait() == 0


def test_a_stalled_reader_of_metrics_does_not_delay_a_stop(start_server: StartServer, free_port: int) -> None:
    server = start_server("echo hi", WATCHDOG_METRICS_PORT=str(free_port))
    with socket.create_connection(("127.0.0.1", free_port)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(100_000):
                sock.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert server.stop() == 0


@pytest.mark.guard("drain-bound", never="the server did not end")
def test_a_script_that_outlives_the_drain_is_ended_and_its_call_answered(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(WAIT, HANDSHAKE=str(tmp_path), WATCHDOG_WRITE_TIMEOUT="300ms")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(server.call, b"", headers={"X-Call-Id": "c"})
        until((tmp_path / "up-c").exists, "the script")
        assert server.stop() == 0
        problem(call.result(), 503)
    server_events = [event for event in server.logs if event["event"] == "invocation ended"]
    assert [event["outcome"] for event in server_events] == ["drained"]


@pytest.mark.guard("refuse-senders", never="no whole answer came")
def test_a_drain_does_not_wait_for_a_caller_that_sends_drop_by_drop(start_server: StartServer, free_port: int) -> None:
    server = start_server("echo never", WATCHDOG_READ_TIMEOUT="60", WATCHDOG_METRICS_PORT=str(free_port))
    with server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nQUJD")
        server.await_bodies()
        server.signal(signal.SIGTERM)
        assert read_answer(sock).startswith(b"HTTP/1.1 503 ")
    assert server.wait() == 0
