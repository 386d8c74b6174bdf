"""The limit for the log of one call. Lines over it are dropped and counted. The answer is complete."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from running_server import StartServer

from watchdog.logs import script_log, sink
from watchdog.logs.log_rate import LogRate


class Call:
    """Both streams of one call, and their events. The clock stands still until it is set."""

    def __init__(self, path: Path, bytes_per_s: int, level: int = 20) -> None:
        self.now_s = 100.0
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        self._sink = sink.LogWriter(self._fd, level=level)
        rate = LogRate(bytes_per_s, lambda: self.now_s)
        self.stdout = script_log.ScriptLog(self._sink, stream="stdout", call_id="c", rate=rate)
        self.stderr = script_log.ScriptLog(self._sink, stream="stderr", call_id="c", rate=rate)

    def end(self) -> list[dict[str, Any]]:
        self.stdout.close()
        self.stderr.close()
        assert self._sink.close(10)
        os.close(self._fd)
        return [json.loads(line) for line in self._path.read_bytes().splitlines()]


def test_lines_over_the_bound_are_dropped_and_counted(tmp_path: Path) -> None:
    call = Call(tmp_path / "log", 1000)
    for number in range(20):
        call.stdout.feed(b"line %02d\n" % number)
    *lines, dropped = call.end()
    assert [line["event"] for line in lines] == [f"line {number:02}" for number in range(len(lines))]
    assert 1 < len(lines) < 19
    assert dropped["event"] == "script's log lines dropped"
    assert dropped["level"] == "warning"
    assert dropped["call_id"] == "c"
    assert dropped["count"] == 20 - len(lines)
    assert dropped["bytes"] == (20 - len(lines)) * len("line 00\n")
    assert "max_log_rate" in dropped["reason"]


def test_both_streams_of_a_call_share_the_bound(tmp_path: Path) -> None:
    call = Call(tmp_path / "log", 100)
    call.stdout.feed(b"first\n")
    call.stderr.feed(b"second\n")
    assert [event["event"] for event in call.end()] == ["first", "script's log lines dropped"]


def test_in_the_next_second_lines_are_logged_again_after_the_count(tmp_path: Path) -> None:
    call = Call(tmp_path / "log", 100)
    call.stdout.feed(b"first\n")
    call.stdout.feed(b"dropped\ndropped, too\n")
    call.now_s += 1.0
    call.stdout.feed(b"later\n")
    events = call.end()
    assert [event["event"] for event in events] == ["first", "script's log lines dropped", "later"]
    assert events[1]["count"] == 2


def test_the_lines_of_one_feed_are_bounded(tmp_path: Path) -> None:
    call = Call(tmp_path / "log", 100_000)
    call.stdout.feed(b"x\n" * 32_768)
    *lines, dropped = call.end()
    assert len(lines) + dropped["count"] == 32_768
    # The limit may be exceeded by the lines that are encoded at once.
    assert os.stat(tmp_path / "log").st_size < 200_000


@pytest.mark.parametrize("feed", [b"y" * 100_000 + b"\n", b"Traceback (most recent call last):\n" + b"  y\n" * 50_000])
def test_long_lines_and_tracebacks_are_bounded(tmp_path: Path, feed: bytes) -> None:
    call = Call(tmp_path / "log", 100_000)
    for _ in range(10):
        call.stderr.feed(feed)
        call.stderr.feed(b"end\n")
    assert sum(event.get("count", 0) for event in call.end()) > 0
    assert os.stat(tmp_path / "log").st_size < 300_000


def test_without_a_bound_nothing_is_dropped(tmp_path: Path) -> None:
    call = Call(tmp_path / "log", 0)
    call.stdout.feed(b"x\n" * 10_000)
    assert len(call.end()) == 10_000


def test_a_log_that_wants_errors_only_has_no_warning_of_dropped_lines(tmp_path: Path) -> None:
    call = Call(tmp_path / "log", 100, level=40)
    for _ in range(20):
        call.stdout.feed(b"ERROR: broken\n")
    assert {event["event"] for event in call.end()} == {"ERROR: broken"}


@pytest.mark.guard("log-rate", never="script's log lines dropped")
def test_a_flood_is_cut_in_the_log_and_whole_in_the_answer(start_server: StartServer) -> None:
    server = start_server("yes 'a line of the flood' | head -n 200000", "--max-log-rate", "100Ki")
    answer = server.call(b"")
    assert answer.body == b"a line of the flood\n" * 200_000
    dropped = server.event("script's log lines dropped", call_id=answer.headers["X-Call-Id"])
    assert dropped["count"] > 1000
