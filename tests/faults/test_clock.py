"""The wall clock changes while the server runs, as on a machine that sets its time after the start."""

from __future__ import annotations

import contextlib
import http.client
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from running_server import RunningServer, StartServer, problem

JUMPING_CLOCK = str(Path(__file__).parent / "jumping_clock.py")


@pytest.fixture
def server(start_server: StartServer, removed_guard: str | None, tmp_path: Path) -> RunningServer:
    """A server with one place, whose clock jumps by a day each time that it is read."""
    return start_server(
        f'[ "$Http_Path" = /wait ] && until [ -e {tmp_path}/go ]; do sleep 0.02; done; echo "$Http_Path"',
        program=(JUMPING_CLOCK, *(("--without", removed_guard) if removed_guard else ())),
        max_inflight="1",
    )


@pytest.mark.guard("monotonic-clock")
def test_calls_are_not_timed_out_by_a_clock_that_jumps(server: RunningServer, tmp_path: Path) -> None:
    """The running call, the call that waits for its place and a kept connection all continue."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=server.patience_s)
    with contextlib.closing(connection), ThreadPoolExecutor(2) as pool, contextlib.ExitStack() as stack:
        stack.callback((tmp_path / "go").touch)  # let the calls end, even if an assertion fails
        calls = [pool.submit(server.call, b"", "/wait") for _ in range(2)]
        for _ in range(20):
            connection.request("GET", "/_/health")
            assert connection.getresponse().read() == b"OK"
        (tmp_path / "go").touch()
        assert [call.result().body for call in calls] == [b"/wait\n", b"/wait\n"]
        for number in range(20):
            connection.request("POST", f"/{number}", b"")
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, f"/{number}\n".encode())
            assert 0 <= float(answer.headers["X-Duration-Seconds"]) < 3600
    assert server.stop() == 0
    assert not server.leftovers()


def test_timeout_ends_a_script_although_the_clock_jumps(server: RunningServer) -> None:
    problem(server.call(b"", "/wait", headers={"X-Timeout": "200ms"}), 504)
    assert server.call(b"", "/next").body == b"/next\n"


def test_changed_script_is_run_although_the_clock_jumps(server: RunningServer) -> None:
    for number in range(20):
        server.script.write_text(f"echo {'x' * number}")
        assert server.call(b"").body == b"x" * number + b"\n"
