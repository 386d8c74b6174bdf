"""HEAD of the server's own paths, HEAD of a call (which is a probe), and 405 with the methods that are answered."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from running_server import Answer, RunningServer, StartServer, free_port, read_all

from watchdog.http.request import METHODS

OWN_HEADERS = ("Content-Type", "Content-Length", "X-Exit-Code", "X-Output-Name", "X-Output-Content-Type")


def assert_alike(head: Answer, get: Answer) -> None:
    assert (head.status, head.body) == (get.status, b"")
    assert int(head.headers["Content-Length"]) == len(get.body)
    assert [head.headers[name] for name in OWN_HEADERS] == [get.headers[name] for name in OWN_HEADERS]


@pytest.mark.parametrize("path", ["/_/health", "/_/ready", "/_/openapi.json"])
def test_head_of_a_path_of_the_server(start_server: StartServer, path: str) -> None:
    server = start_server("true")
    assert_alike(server.call(None, path, "HEAD"), server.call(None, path, "GET"))


def test_head_of_the_metrics(start_server: StartServer) -> None:
    port = free_port()
    server = start_server("true", WATCHDOG_METRICS_PORT=str(port))
    head = server.call(None, "/metrics", "HEAD", port=port)
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["Content-Length"]) > 0
    assert server.call(None, "/", "HEAD", port=port).status == 404


@pytest.mark.guard("head-is-a-probe")
@pytest.mark.parametrize("path", ["/", "/any/path?and=query", "/_x/other"])
def test_head_of_a_call_runs_no_script(start_server: StartServer, tmp_path: Path, path: str) -> None:
    """MinIO sends HEAD before each event, and link checkers send it, too."""
    runs = tmp_path / "runs"
    server = start_server('echo run >> "$RUNS"', RUNS=str(runs), WATCHDOG_AUTH_TOKEN="secret")
    assert_alike(server.call(None, path, "HEAD"), server.call(None, "/_/health", "GET"))
    assert not runs.exists()
    assert server.call(None, path, "GET").status == 401


def test_head_of_a_classic_function_starts_no_process(start_server: StartServer) -> None:
    server = start_server(fprocess="echo printed")
    assert_alike(server.call(None, "/", "HEAD"), server.call(None, "/_/health", "GET"))
    assert server.call(None, "/", "GET").body == b"printed\n"


def test_head_of_a_draining_server_is_503(start_server: StartServer) -> None:
    server = start_server("true", WATCHDOG_HEALTHCHECK_INTERVAL="60s")
    assert server.call(None, "/", "HEAD").status == 200
    server.signal(signal.SIGTERM)
    server.event("draining")
    head = server.call(None, "/", "HEAD")
    assert (head.status, head.body) == (503, b"")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


@pytest.mark.parametrize("body", ["", "Content-Length: 6\r\n\r\nunread"])
def test_a_connection_can_be_used_after_head(start_server: StartServer, body: str) -> None:
    server = start_server("echo printed")
    with server.connect() as sock:
        sock.sendall(f"HEAD /x HTTP/1.1\r\nHost: x\r\n{body or chr(13) + chr(10)}".encode())
        sock.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answers = read_all(sock)
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert answers.endswith(b"\r\n\r\nprinted\n")


def assert_not_allowed(server: RunningServer, method: str, path: str, allow: str, port: int | None = None) -> None:
    answer = server.call(None, path, method, port=port)
    assert answer.status == 405
    assert answer.headers["Allow"] == allow
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json["status"] == 405
    assert answer.json["title"] == "Method not allowed"
    assert method in answer.json["detail"]
    assert allow in answer.json["detail"]


def test_a_method_that_is_not_answered_is_405_with_a_problem_document(start_server: StartServer) -> None:
    port = free_port()
    server = start_server("true", WATCHDOG_METRICS_PORT=str(port))
    assert_not_allowed(server, "OPTIONS", "/a/call", ", ".join(METHODS))
    for path in ("/_/health", "/_/ready", "/_/openapi.json"):
        for method in ("POST", "OPTIONS", "DELETE"):
            assert_not_allowed(server, method, path, "GET, HEAD")
    assert_not_allowed(server, "POST", "/metrics", "GET, HEAD", port)
