"""HEAD is answered wherever GET is, with the same headers and no body; what is not answered says what would be."""

from __future__ import annotations

import base64

import pytest
from running_server import Answer, RunningServer, StartServer, free_port, read_all

from watchdog.server import _METHODS

LARGE_BYTES = 3_000_000
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


@pytest.mark.parametrize(
    "script",
    [
        'printf "{}" > "$TMP_OUTPUT_DIR/a.json"',
        "echo printed",
        f'head -c {LARGE_BYTES} /dev/zero > "$TMP_OUTPUT_DIR/large"',
        f"head -c {LARGE_BYTES} /dev/zero",
        'echo a > "$TMP_OUTPUT_DIR/a"; echo b > "$TMP_OUTPUT_DIR/b"',
        "exit 3",
        'echo "Status: 204" > "$HTTP_RESPONSE_FILE"; echo unseen',
    ],
    ids=["file", "printed", "large file", "large print", "zip", "failed", "no content"],
)
def test_head_of_a_call_runs_it_and_sends_headers_only(start_server: StartServer, script: str) -> None:
    server = start_server(script)
    get = server.call(None, "/x", "GET", headers={"X-Call-Id": "a"})
    head = server.call(None, "/x", "HEAD", headers={"X-Call-Id": "a"})
    # Times differ, and with them the lengths of documents that hold them; these have none.
    assert (head.status, head.body) == (get.status, b"")
    assert [head.headers[name] for name in OWN_HEADERS] == [get.headers[name] for name in OWN_HEADERS]
    server.stop()
    ended = [event for event in server.logs if event["event"] == "invocation ended"]
    assert [event["outcome"] for event in ended] == ["failed" if get.status == 500 else "ok"] * 2
    assert ended[1]["output_bytes"] == 0


def test_head_of_a_classic_function(start_server: StartServer) -> None:
    server = start_server(fprocess="echo printed")
    assert_alike(server.call(None, "/", "HEAD"), server.call(None, "/", "GET"))


def test_the_script_sees_the_method_that_was_sent(start_server: StartServer) -> None:
    server = start_server('printf "X-Method: $Http_Method\\n" > "$HTTP_RESPONSE_FILE"')
    assert server.call(None, "/", "HEAD").headers["X-Method"] == "HEAD"


def test_a_connection_goes_on_after_head(start_server: StartServer) -> None:
    server = start_server(
        f'head -c {LARGE_BYTES} /dev/zero > "$TMP_OUTPUT_DIR/large"; [ "$Http_Path" = /large ] || '
        'echo small > "$TMP_OUTPUT_DIR/large"'
    )
    with server.connect() as sock:
        for path in ("/large", "/small"):
            sock.sendall(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        sock.sendall(b"GET /small HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answers = read_all(sock)
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert answers.endswith(b"\r\n\r\n" + base64.b64encode(b"small\n") + b"\n")
    assert answers.count(base64.b64encode(b"small\n")) == 1


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
    assert_not_allowed(server, "OPTIONS", "/a/call", ", ".join(_METHODS))
    for path in ("/_/health", "/_/ready", "/_/openapi.json"):
        for method in ("POST", "OPTIONS", "DELETE"):
            assert_not_allowed(server, method, path, "GET, HEAD")
    assert_not_allowed(server, "POST", "/metrics", "GET, HEAD", port)
