"""The server forgets texts of callers and scripts after the call. It does not keep one text for each call."""

from __future__ import annotations

import http.client
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_server import Answer, RunningServer, StartServer, problem, until

FAULTS = Path(__file__).parent
MARK = "text-to-forget-"
CALLS = 200  # more than the 128 entries of the caches in libraries
SCRIPT = """
echo "printed $CALL_ID"
echo "logged $CALL_ID" >&2
echo "X-Chosen: $CALL_ID" > "$HTTP_RESPONSE_FILE"
echo output > "$TMP_OUTPUT_DIR/$CALL_ID"
"""
REFUSED = {
    "Content-Disposition without a kind": {"Content-Disposition": '"@{}"'},
    "Content-Disposition with an empty parameter and one without a value": {"Content-Disposition": "form-data;;{}"},
    "Content-Disposition with a name in no charset": {"Content-Disposition": "a; filename*={}'en'x"},
    "Content-Type without an end": {"Content-Type": 'multipart/form-data; boundary="{}'},
    "Content-Encoding": {"Content-Encoding": "{}"},
    "Accept": {"Accept": "@{}"},
    "input encoding": {"X-Input-Encoding": "{}"},
    "file name": {"X-Filename": "%00{}"},
    "time": {"X-Timeout": "{}"},
    "CloudEvent": {"Ce-Specversion": "1.0", "Ce-Id": "%00{}", "Ce-Source": "x", "Ce-Type": "x"},
}


def texts(first: int) -> Iterator[str]:
    return (f"{MARK}{number}" for number in range(first, first + CALLS))


def look(server: RunningServer) -> dict[str, Any]:
    """Return the objects that the server keeps when it is idle."""
    until(lambda: not server.connections() and not server.leftovers_of_calls(), "the calls to be over")
    server.signal(signal.SIGUSR2)
    return server.event("inspected")


def call(server: RunningServer, text: str) -> None:
    """Send one text at each place of a good call where a text is possible."""
    headers = {
        "X-Call-Id": text,
        "X-Filename": text,
        f"X-{text}": text,
        f"x_{text}": text,
        "Content-Type": f"image/{text}",
        "Accept": f"*/*, image/{text}",
        "User-Agent": text,
        "Cookie": f"{text}=1",
        "Traceparent": "00-11111111111111111111111111111111-1111111111111111-01",
        "Tracestate": f"a={text}",
        "Ce-Specversion": "1.0",
        "Ce-Id": text,
        "Ce-Source": text,
        "Ce-Type": text,
        "Ce-More": text,
        "Content-Disposition": f'attachment; filename="{text}"',
    }
    answer = server.call(b"x", f"/{text}?{text}={text}", headers=headers)
    assert answer.status == 200
    assert answer.headers["X-Chosen"] == text


def test_texts_of_good_calls_are_forgotten(start_server: StartServer) -> None:
    server = start_server(SCRIPT, program=(str(FAULTS / "inspected_server.py"),))
    for text in texts(0):
        call(server, text)
    before = look(server)
    for text in texts(CALLS):
        call(server, text)
    after = look(server)
    assert after["texts"] < before["texts"] + CALLS / 2
    assert after["warnings"] == before["warnings"]


@pytest.mark.slow
@pytest.mark.guard("kept-warnings")
def test_texts_of_refused_calls_are_forgotten(start_server: StartServer, removed_guard: str | None) -> None:
    program = {} if removed_guard else {"program": (str(FAULTS / "inspected_server.py"),)}
    server = start_server("true", **program)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=server.patience_s)
    for name, headers in REFUSED.items():
        counts = []
        for first in (0, CALLS):
            for text in texts(first):
                filled = {header: value.format(text) for header, value in headers.items()}
                connection.request("POST", "/", b"x", filled)
                response = connection.getresponse()
                problem(Answer(response.status, response.headers, response.read()), 400)
            connection.close()
            counts.append(look(server))
        before, after = counts
        print(name, before["texts"], after["texts"])
        assert after["texts"] < before["texts"] + CALLS / 2, name
        assert after["warnings"] == before["warnings"], name


def test_a_long_text_is_shortened_in_answer_and_log(start_server: StartServer) -> None:
    server = start_server("true")
    for name, headers in REFUSED.items():
        filled = {header: value.format("x" * 60_000) for header, value in headers.items()}
        detail = problem(server.call(b"x", headers=filled), 400)["detail"]
        assert isinstance(detail, str)
        assert len(detail) < 1000, name
    server.stop()
    reasons = [event["reason"] for event in server.logs if event.get("reason")]
    assert len(reasons) == len(REFUSED)
    assert max(map(len, reasons)) < 1000
