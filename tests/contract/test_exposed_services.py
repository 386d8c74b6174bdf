"""Services that Kubernetes probes at the path of their calls, as OSCAR's exposed services are.

OSCAR gives the kubelet one path, `/system/services/NAME/exposed`, for the liveness probe and for the readiness probe
(``pkg/backends/resources/expose.go``). Its ingress sends calls with that path or without it.
"""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from running_server import RunningServer, StartServer, until

BASE = "/system/services/plants/exposed"
KUBELET = {"User-Agent": "kube-probe/1.34", "Accept": "*/*", "Connection": "close"}
COUNTED = 'echo run >> "$RUNS"; echo answer'
SHOW_PATH = 'printf "%s %s" "$Http_Path" "$Http_Query"'


def probe(server: RunningServer, path: str, method: str = "GET") -> tuple[int, bytes]:
    answer = server.call(None, path, method, headers=KUBELET)
    return answer.status, answer.body


@pytest.mark.guard("kubernetes-probe")
@pytest.mark.parametrize("path", ["/", BASE, BASE + "/", "/any/path?and=query"])
def test_a_probe_at_the_path_of_calls_runs_no_script(start_server: StartServer, tmp_path: Path, path: str) -> None:
    runs = tmp_path / "runs"
    server = start_server(COUNTED, RUNS=str(runs), OSCAR_SERVICE_BASE_PATH=BASE)
    assert probe(server, path) == (200, b"OK")
    assert probe(server, path, "HEAD") == (200, b"")
    assert not runs.exists()
    # A GET of another caller at the same path runs the script, and so does a POST of any caller.
    assert server.call(None, path, "GET", headers={"User-Agent": "curl/8.5.0"}).body == b"answer\n"
    assert server.call(b"", path, headers=KUBELET).body == b"answer\n"
    assert runs.read_text() == "run\nrun\n"


def test_a_probe_of_a_classic_function_starts_no_process(start_server: StartServer) -> None:
    server = start_server(fprocess="echo answer")
    assert probe(server, "/") == (200, b"OK")
    assert server.call(b"").body == b"answer\n"


def test_a_probe_needs_no_token(start_server: StartServer) -> None:
    server = start_server(COUNTED, WATCHDOG_AUTH_TOKEN="secret", RUNS="/dev/null")
    assert probe(server, "/") == (200, b"OK")
    assert server.call(None, "/", "GET").status == 401


def test_a_busy_server_is_alive_and_in_service_for_the_kubelet(start_server: StartServer, tmp_path: Path) -> None:
    """The liveness probe uses the same path. With any status except 200, the kubelet would restart a busy container."""
    server = start_server('touch "$DIR/up"; while [ ! -e "$DIR/go" ]; do sleep 0.02; done', DIR=str(tmp_path))
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(server.call, b"")
        until((tmp_path / "up").exists, "the script")
        assert probe(server, "/") == (200, b"OK")
        (tmp_path / "go").touch()
        assert call.result().status == 200


def test_a_probe_of_a_draining_server_is_503_and_the_server_waits_for_the_platform(start_server: StartServer) -> None:
    server = start_server("true", WATCHDOG_HEALTHCHECK_INTERVAL="60s")
    assert probe(server, "/") == (200, b"OK")
    server.signal(signal.SIGTERM)
    server.event("draining")
    assert probe(server, "/") == (503, b"draining")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


def test_a_probe_of_the_servers_own_paths_is_answered_as_usual(start_server: StartServer) -> None:
    server = start_server(None)
    assert probe(server, "/_/health") == (200, b"OK")
    status, reason = probe(server, "/_/ready")
    assert status == 503
    assert b"there is no script" in reason


@pytest.mark.guard("base-path")
def test_the_base_path_is_removed_from_paths(start_server: StartServer) -> None:
    server = start_server(SHOW_PATH, OSCAR_SERVICE_BASE_PATH=BASE)
    assert server.call(b"", BASE + "/a/b%20c?x=1").body == b"/a/b%20c x=1"
    assert server.call(b"", BASE + "/").body == b"/ "
    assert server.call(b"", BASE + "?x=1").body == b"/ x=1"
    # By default, the ingress sends paths without the base path.
    assert server.call(b"", "/a").body == b"/a "
    # The path of another service may begin with the same characters.
    assert server.call(b"", BASE + "-2/a").body == f"{BASE}-2/a ".encode()
    assert server.call(None, BASE + "/_/health", "GET").body == b"OK"
    assert server.call(None, BASE + "/_/ready", "GET").body == b"OK"
    assert server.call(None, BASE + "/_/openapi.json", "GET").json["openapi"] == "3.1.1"


@pytest.mark.parametrize(
    ("value", "path"), [("", "/a"), ("/", "/a"), (BASE + "/", BASE + "/a"), (BASE[1:], BASE + "/a")]
)
def test_a_base_path_with_or_without_slashes_at_its_ends(start_server: StartServer, value: str, path: str) -> None:
    server = start_server(SHOW_PATH, OSCAR_SERVICE_BASE_PATH=value)
    assert server.call(b"", path).body == b"/a "


def test_without_a_base_path_nothing_is_removed(start_server: StartServer) -> None:
    server = start_server(SHOW_PATH)
    assert server.call(b"", BASE + "/a").body == f"{BASE}/a ".encode()
