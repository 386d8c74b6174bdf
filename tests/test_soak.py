"""Thousands of good, bad and vanishing calls leave the server as it was. Slow."""

from __future__ import annotations

import os
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from running_server import RunningServer, StartServer, until

SCRIPT = """
case $Http_Path in
    /background) sleep 60 & ;;
    /daemon) setsid sleep 60 & ;;
    /orphan) (true &) ;;
    /fail) exit 3 ;;
esac
cat "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/out"
"""
PATHS = ["/", "/", "/background", "/daemon", "/orphan", "/fail", "/gone"]


def descriptors(server: RunningServer) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def children(server: RunningServer) -> list[str]:
    pid = server.process.pid
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def call(server: RunningServer, path: str) -> str:
    if path == "/gone":
        with server.connect() as sock:
            sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nQUJD")
        return path
    answer = server.call(b"QUJD", path)
    if path == "/fail":
        assert answer.status == 500
    else:
        assert (answer.status, answer.body) == (200, b"QUJD\n")
    return path


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_three_thousand_calls_leave_nothing(start_server: StartServer) -> None:
    server = start_server(SCRIPT, WATCHDOG_MAX_INFLIGHT="8", WATCHDOG_MAX_QUEUE="100")
    dice = random.Random(11)
    counts: Counter[str] = Counter()

    def batch(pool: ThreadPoolExecutor) -> None:
        counts.update(pool.map(lambda path: call(server, path), dice.choices(PATHS, k=1000)))
        until(lambda: not list(server.tmp.glob("watchdog-*/[0-9]*")), "the workspaces to be removed")
        until(lambda: not children(server), "the children to be reaped")

    with ThreadPoolExecutor(20) as pool:
        batch(pool)
        until(lambda: descriptors(server) < 15, "the connections to be closed")
        rss_before, descriptors_before = server.memory_mib("VmRSS"), descriptors(server)
        batch(pool)
        batch(pool)
    until(lambda: descriptors(server) <= descriptors_before, "the descriptors to be closed")
    assert server.memory_mib("VmRSS") < rss_before + 5
    assert server.stop() == 0
    ended = Counter(event["outcome"] for event in server.logs if event["event"] == "invocation ended")
    # Who sent all and hung up may have been answered before that was seen, or not even been heard.
    assert ended["failed"] == counts["/fail"]
    assert ended["ok"] + ended["caller_gone"] <= counts.total() - counts["/fail"]
    assert ended["ok"] >= counts.total() - counts["/fail"] - counts["/gone"]
    assert set(ended) <= {"ok", "failed", "caller_gone"}
    assert not [event for event in server.logs if event["event"] == "internal error"]
