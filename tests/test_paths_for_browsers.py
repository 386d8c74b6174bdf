"""``/favicon.ico`` and ``/robots.txt``, which browsers and crawlers request without being asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from running_server import StartServer

BASE = "/system/services/plants/exposed"
COUNTED = 'echo run >> "$RUNS"; echo answer'


@pytest.mark.guard("paths-for-browsers")
@pytest.mark.parametrize("path", ["/favicon.ico", "/robots.txt", BASE + "/favicon.ico", "/robots.txt?x=1"])
@pytest.mark.parametrize("function", ["script", "classic"])
def test_get_and_head_do_not_run_the_function(
    start_server: StartServer, tmp_path: Path, path: str, function: str
) -> None:
    runs = tmp_path / "runs"
    options: dict[str, Any] = {"OSCAR_SERVICE_BASE_PATH": BASE, "RUNS": str(runs), "WATCHDOG_AUTH_TOKEN": "secret"}
    if function == "classic":
        server = start_server(None, fprocess=f"sh -c '{COUNTED}'", **options)
    else:
        server = start_server(COUNTED, **options)
    got = server.call(None, path, "GET")
    head = server.call(None, path, "HEAD")
    assert not runs.exists()
    assert got.status == head.status == (204 if "icon" in path else 200)
    assert got.body == (b"" if "icon" in path else b"User-agent: *\nDisallow: /\n")
    for name in ("Content-Type", "Content-Length", "Cache-Control"):
        assert head.headers[name] == got.headers[name]
    assert head.body == b""


@pytest.mark.parametrize("path", ["/favicon.ico", "/robots.txt"])
def test_other_methods_and_other_paths_are_calls(shared_server: StartServer, path: str) -> None:
    server = shared_server("echo answer")
    assert server.call(b"", path).body == b"answer\n"
    assert server.call(b"", path, "PUT").body == b"answer\n"
    assert server.call(None, f"/below{path}", "GET").body == b"answer\n"
