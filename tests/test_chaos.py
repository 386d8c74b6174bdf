"""A short run of the chaos finds no fault, and its checks notice faults."""

from __future__ import annotations

import base64
import json
import re
import sys
from http.client import HTTPMessage
from pathlib import Path

import pytest
from running_server import Answer

sys.path.insert(0, str(Path(__file__).parent / "faults"))

import chaos
from test_soak import run_of

ID = "chaos-ab-0-1-2-end"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", chaos.PLACE_NAMES)
def test_kills_at_random_lose_and_leave_nothing(place: str) -> None:
    run = run_of("chaos.py", "kills", "--calls", "160", "--terms", "1", "--kills", "1", "--place", place, "--seed", "3")
    assert run.returncode == 0, run.stdout
    assert run.stdout.splitlines()[-2:] == [f"calls: {calls_of(run.stdout)}", "faults: 0"]
    assert calls_of(run.stdout) >= 160
    # The run was not empty.
    for what in ("SIGTERM to a server", "SIGKILL to a server", "200", "none: the caller left"):
        assert re.search(rf"^  {what} +[1-9]", run.stdout, re.MULTILINE), run.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", chaos.PLACE_NAMES)
def test_processes_that_hide_reach_no_other_call(place: str) -> None:
    run = run_of("chaos.py", "daemons", "--calls", "80", "--place", place, "--seed", "3")
    assert run.returncode == 0, run.stdout
    for kind in chaos.DAEMON_KINDS:
        assert re.search(rf"^  {kind} +[1-9]", run.stdout, re.MULTILINE), run.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_chaos_notices_processes_that_outlive_their_calls() -> None:
    place = chaos.PLACE_NAMES[0]
    options = ["--calls", "40", "--place", place, "--patience", "3", "--without", "straggler-search"]
    run = run_of("chaos.py", "daemons", *options)
    assert run.returncode == 1, run.stdout
    assert "lives after the answer" in run.stdout


def calls_of(printed: str) -> int:
    found = re.search(r"^calls: (\d+)$", printed, re.MULTILINE)
    return int(found[1]) if found else 0


# ---------------------------------------------------------------------------- its checks can fail


def answer(status: int, body: bytes, call_id: str = ID) -> Answer:
    headers = HTTPMessage()
    headers["X-Call-Id"] = call_id
    return Answer(status, headers, body)


def document(data: bytes = b"mine", stdout: str = "", more: dict[str, bytes] | None = None) -> bytes:
    outputs = [{"name": "out", "data": base64.b64encode(data).decode()}]
    outputs += [{"name": name, "data": base64.b64encode(each).decode()} for name, each in (more or {}).items()]
    stdout, stderr = f"{ID} says it\n{stdout}", f"{ID} ends\n"
    return json.dumps({"outputs": outputs, "stdout": stdout, "stderr": stderr}).encode()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (answer(200, document()), None),
        (answer(200, document(stdout=f"{ID} was here\n")), None),
        (answer(200, document(more={"daemon.log": f"{ID} was here\n".encode()})), None),
        (answer(200, document(), "chaos-ab-0-1-1-end"), "it is the answer to chaos-ab-0-1-1-end"),
        (answer(200, document(b"min")), "out is not what was sent"),
        (answer(200, document(stdout="chaos-ab-0-1-1-end was here\n")), "it has bytes of"),
        (answer(200, document(more={"daemon.log": b"chaos-ab-0-1-1-end was here\n"})), "it has bytes of"),
        (answer(200, document(stdout="something\n")), "lines that the call did not write"),
        (answer(200, document(more={"plant": b""})), "of nobody"),
        (answer(200, document().replace(b"says", b"said")), "lines"),
        (answer(500, b'{"status":500,"call_id":"%b","signal":"SIGKILL"}' % ID.encode()), None),
        (answer(500, b'{"status":500,"call_id":"%b","exit_code":137}' % ID.encode()), None),
        (answer(500, b'{"status":500,"call_id":"%b","signal":"SIGSEGV"}' % ID.encode()), "status 500"),
        (answer(500, b'{"status":500,"call_id":"c","signal":"SIGKILL"}'), "of another call"),
        (answer(503, b'{"status":503,"call_id":"%b"}' % ID.encode()), "503 by a server that runs"),
    ],
)
def test_chaos_notices_a_wrong_answer(given: Answer, told: str | None) -> None:
    books = chaos.Books()
    books.killed[ID] = {9}
    fault = chaos.fault_of(given, ID, "json", b"mine", books, chaos.End.NOT_YET)
    assert (fault is None) if told is None else (fault is not None and told in fault), fault
