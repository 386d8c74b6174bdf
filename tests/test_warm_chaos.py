"""A short run of the chaos with warm workers finds no fault, and its checks notice faults."""

from __future__ import annotations

import re
import sys
from http.client import HTTPMessage
from pathlib import Path

import pytest
from running_server import Answer

sys.path.insert(0, str(Path(__file__).parent / "faults"))

import warm_chaos
from test_soak import run_of

ID = "warm-ab-1-2-copy-end"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("flags", [(), ("--fork",)], ids=["loop", "fork"])
def test_calls_at_warm_workers_lose_and_leave_nothing(flags: tuple[str, ...]) -> None:
    run = run_of("warm_chaos.py", "--calls", "400", "--seed", "3", *flags)
    assert run.returncode == 0, run.stdout
    assert run.stdout.splitlines()[-1] == "faults: 0"
    # The run was not empty.
    for what in ("SIGKILL to a worker", "edits", "200", "500", "504", "none: the caller left"):
        assert re.search(rf"^  {what} +[1-9]", run.stdout, re.MULTILINE), run.stdout


def answer(status: int, body: bytes, call_id: str = ID) -> Answer:
    headers = HTTPMessage()
    headers["X-Call-Id"] = call_id
    return Answer(status, headers, body)


def failed(more: bytes) -> Answer:
    return answer(500, b'{"call_id":"%b",%b}' % (ID.encode(), more))


@pytest.mark.parametrize(
    ("given", "kills", "told"),
    [
        (answer(200, b"mine"), 0, None),
        (answer(200, b"mine", "warm-ab-1-3-copy-end"), 0, "it is the answer to warm-ab-1-3-copy-end"),
        (answer(200, b"warm-ab-1-3-copy-end"), 0, "it has bytes of"),
        (answer(200, b"min"), 0, "not the call's own data"),
        (answer(200, b""), 0, "not the call's own data"),
        (failed(b'"signal":"SIGKILL"'), 1, None),
        (failed(b'"signal":"SIGKILL"'), 0, "no kill explains it"),
        (failed(b'"exit_code":3'), 1, "no kill explains it"),
        (answer(500, b'{"call_id":"c","signal":"SIGKILL"}'), 1, "of another call"),
    ],
)
def test_chaos_notices_a_wrong_answer(given: Answer, kills: int, told: str | None) -> None:
    books = warm_chaos.Books()
    books.kills = kills
    fault = warm_chaos.fault_of(given, ID, "copy", b"mine", books.take_kill)
    assert (fault is None) if told is None else (fault is not None and told in fault), fault
