"""Connections without a request: they do not take the descriptors that calls and probes need."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest
from guards import changed_program
from running_server import RunningServer, StartServer, free_port, is_whole, read_all, read_answer, until

PROBE = b"GET /_/health HTTP/1.1\r\nHost: x\r\n\r\n"
PART_OF_HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nX-Part"
# Errors in the headers are answered before the body has arrived. The server then waits for the rest of the body.
REFUSED = b"POST /?output=nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
FEW_DESCRIPTORS = ("prlimit", "--nofile=256")
AS_ROOT = () if os.geteuid() == 0 else ("--user", "--map-root-user")
WITHOUT_PROC = ("unshare", *AS_ROOT, "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$0" "$@"')
# With this, a caller is judged slow much sooner than a test without the guard stops waiting for it.
HASTY = """
from watchdog.http import response
from watchdog.invocation import pace
replace(response, '_JUDGED_AFTER_S', 0.5)
replace(pace, '_FAST_BYTES_PER_S', 1 << 30)
"""
# This number of descriptors, in addition to its other ones, is over the limit of the server.
CONNECTIONS = 300


def open_connections(
    server: RunningServer, stack: contextlib.ExitStack, first: bytes, port: int = 0
) -> list[socket.socket]:
    """Make connections, and send bytes on each. If the bytes are a whole request, read the whole answer."""
    connections = []
    for _ in range(CONNECTIONS):
        sock = socket.create_connection(("127.0.0.1", port or server.port), timeout=server.patience_s)
        connections.append(stack.enter_context(sock))
        sock.sendall(first)
        if first.endswith(b"\r\n\r\n"):
            assert is_whole(read_answer(sock))
    return connections


@pytest.mark.guard("idle-connections", never="no (whole )?answer came|the oldest connections to be closed")
@pytest.mark.parametrize("first", [PROBE, PART_OF_HEAD, b"", REFUSED], ids=["kept", "half-a-head", "silent", "refused"])
def test_idle_connections_leave_descriptors_for_calls_and_probes(start_server: StartServer, first: bytes) -> None:
    server = start_server('cat "$INPUT_FILE_PATH"', prefix=FEW_DESCRIPTORS, WATCHDOG_READ_TIMEOUT="300s")
    with contextlib.ExitStack() as stack:
        connections = open_connections(server, stack, first)
        until(lambda: server.descriptors() < 192, "the oldest connections to be closed")
        for _ in range(3):
            assert server.call(b"aGk=").body == b"hi"
            assert server.call(None, "/_/health", "GET").status == 200
        # The oldest are closed first, the newest are kept.
        end = read_all(connections[0])
        assert (b" 408 " in end.partition(b"\r\n")[0]) == (first == PART_OF_HEAD)
        newest = connections[-1]
        newest.setblocking(False)
        with pytest.raises(BlockingIOError):
            newest.recv(1)


@pytest.mark.guard("idle-connections", never="no answer came|the oldest connections to be closed")
def test_idle_connections_to_the_metrics_count_as_well(start_server: StartServer) -> None:
    metrics_port = free_port()
    environ = {"WATCHDOG_READ_TIMEOUT": "300s", "WATCHDOG_METRICS_PORT": str(metrics_port)}
    server = start_server("echo hi", prefix=FEW_DESCRIPTORS, **environ)
    with contextlib.ExitStack() as stack:
        open_connections(server, stack, b"", metrics_port)
        until(lambda: server.descriptors() < 192, "the oldest connections to be closed")
        assert server.call(b"").body == b"hi\n"
        # The kernel has made all connections, but the server has perhaps not accepted all of them yet.
        closed = "watchdog_idle_connections_closed_total"
        until(lambda: server.metric(closed) >= CONNECTIONS - 160, "the oldest connections to be closed")


def test_idle_connections_are_closed_without_proc_as_well(start_server: StartServer) -> None:
    server = start_server("echo hi", prefix=(*FEW_DESCRIPTORS, *WITHOUT_PROC), WATCHDOG_READ_TIMEOUT="300s")
    with contextlib.ExitStack() as stack:
        open_connections(server, stack, b"")
        assert server.call(b"").body == b"hi\n"
    assert server.stop() == 0
    assert not [event for event in server.logs if "callback" in event["event"]]


@pytest.mark.timeout(600)
@pytest.mark.guard("room-of-slow-callers", never="no answer came", never_s=15)
def test_callers_that_do_not_read_answers_of_the_server_itself_are_disconnected(
    start_server: StartServer, removed_guard: str | None
) -> None:
    program = changed_program(HASTY, removed_guard)
    server = start_server("echo hi", prefix=("prlimit", "--nofile=48"), program=program, WATCHDOG_WRITE_TIMEOUT="300s")
    request = b"GET /_/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    with contextlib.ExitStack() as stack:
        # More than the server has descriptors, and more answers than the buffers of both systems hold.
        for _ in range(50):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", server.port))
            sock.sendall(request * 300)
        # Until the server has waited for them for a moment, it is not known that they are slow.
        until(lambda: server.call(b"").body == b"hi\n", "a call to get a descriptor", patience_s=300)


@pytest.mark.timeout(600)
@pytest.mark.guard("count-of-connections", never="a call to get its descriptors", never_s=15)
def test_callers_that_do_not_read_leave_a_call_the_descriptors_of_its_script(start_server: StartServer) -> None:
    """A new connection gets the number of one that has ended. So a low number does not show that many are free."""
    limit = 48
    server = start_server("echo hi", prefix=("prlimit", f"--nofile={limit}"), WATCHDOG_WRITE_TIMEOUT="300s")
    request = b"GET /_/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    with contextlib.ExitStack() as stack:
        # One descriptor stays free. That is enough for a connection, but not for a script.
        slow = [socket.socket() for _ in range(limit - server.descriptors_at_rest() - 1)]
        for sock in slow:
            stack.enter_context(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", server.port))
            sock.sendall(request * 300)
        until(lambda: server.descriptors() >= limit - 1, "the server to accept the connections")
        # The first of them has one of the lowest numbers.
        slow[0].close()

        def is_served() -> bool:
            until(lambda: server.descriptors() < limit - 1, "the server to notice the end of a connection")
            return server.call(b"").status == 200

        until(is_served, "a call to get its descriptors")
