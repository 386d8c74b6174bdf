"""Paths below ``/_/``, which belong to the server: a mistyped one never calls the function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from running_server import RunningServer, StartServer

BASE = "/system/services/plants/exposed"
COUNTED = 'echo run >> "$RUNS"; echo answer'
ALL = "the server has /_/health, /_/ready, /_/openapi.json, /_/try"


def refusal(server: RunningServer, path: str, method: str = "GET", **headers: str) -> str:
    """Return the detail of the answer 404."""
    answer = server.call(b"body" if method in ("POST", "PUT") else None, path, method, headers)
    assert (answer.status, answer.headers["Content-Type"]) == (404, "application/problem+json"), answer
    assert answer.json["title"] == "No such path"
    return str(answer.json["detail"])


@pytest.mark.guard("own-paths")
@pytest.mark.parametrize("function", ["script", "classic"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "TRACE"])
def test_an_unknown_path_does_not_run_the_function(
    start_server: StartServer, tmp_path: Path, method: str, function: str
) -> None:
    runs = tmp_path / "runs"
    options: dict[str, Any] = {"RUNS": str(runs), "WATCHDOG_AUTH_TOKEN": "secret"}
    if function == "classic":
        server = start_server(None, fprocess=f"sh -c '{COUNTED}'", **options)
    else:
        server = start_server(COUNTED, **options)
    detail = refusal(server, "/_/helth?output=json", method, Authorization="Bearer secret")
    assert detail.startswith("there is no path '/_/helth'; the nearest path is /_/health;")
    assert not runs.exists()
    assert server.call(None, "/_/helth", "HEAD").status == 404


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/_/Health", "nearest path is /_/health;"),
        ("/_/readyz", "nearest path is /_/ready;"),
        ("/_/openapi", "nearest path is /_/openapi.json;"),
        ("/_/try/", "nearest path is /_/try;"),
        ("/_//health", "nearest path is /_/health;"),
        ("/%5F/helth", "nearest path is /_/health;"),
        ("/_/", ALL),
        ("/_/metrics", ALL),
        ("/_/../x", ALL),
        ("/_/%00%1b%ff", ALL),
        ("/_/" + 30_000 * "h", ALL),
    ],
)
def test_the_answer_names_the_nearest_path_or_all(shared_server: StartServer, path: str, text: str) -> None:
    detail = refusal(shared_server(COUNTED, RUNS="/dev/null"), path)
    assert text in detail
    assert len(detail) < 400


def test_the_page_is_not_named_if_it_is_turned_off(start_server: StartServer) -> None:
    server = start_server(COUNTED, RUNS="/dev/null", WATCHDOG_PAGE="false")
    assert "/_/try," not in refusal(server, "/_/try").partition(";")[2]


def test_the_nearest_path_has_the_base_path_of_the_request(start_server: StartServer) -> None:
    server = start_server(COUNTED, RUNS="/dev/null", OSCAR_SERVICE_BASE_PATH=BASE)
    assert f"the nearest path is {BASE}/_/health;" in refusal(server, BASE + "/_/helth")
    assert "the nearest path is /_/health;" in refusal(server, "/_/helth")


@pytest.mark.parametrize("path", ["/_", "/_x/health", "/a/_/health", "//_/health", "/__/health"])
def test_other_paths_with_an_underscore_are_calls(shared_server: StartServer, path: str) -> None:
    assert shared_server(COUNTED, RUNS="/dev/null").call(b"", path).body == b"answer\n"


def test_a_probe_of_kubernetes_is_answered_at_any_path(shared_server: StartServer) -> None:
    answer = shared_server(COUNTED, RUNS="/dev/null").call(None, "/_/helth", "GET", {"User-Agent": "kube-probe/1.34"})
    assert (answer.status, answer.body) == (200, b"OK")


def test_the_connection_stays_open(shared_server: StartServer) -> None:
    with shared_server(COUNTED, RUNS="/dev/null").connect() as sock:
        sock.sendall(b"POST /_/helth HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody")
        sock.sendall(b"GET /_/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answers = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answers.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert answers.endswith(b"\r\n\r\nOK")
