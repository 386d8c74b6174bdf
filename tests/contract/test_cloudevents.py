"""CloudEvents over HTTP in binary mode, as Knative's brokers and sources send them.

"HTTP Protocol Binding for CloudEvents", version 1.0.2, section 3.1 (github.com/cloudevents/spec).
"""

from __future__ import annotations

import base64
import json
from urllib.parse import unquote

import pytest
from running_server import RunningServer, StartServer, problem

SHOW = "env | grep -a '^CE_' | sort || true"
EVENT = {
    "ce-specversion": "1.0",
    "ce-id": "A234-1234-1234",
    "ce-source": "/mycontext/4",
    "ce-type": "com.example.someevent",
    "Content-Type": "image/x",
}


@pytest.fixture
def server(shared_server: StartServer) -> RunningServer:
    return shared_server(SHOW, K_SERVICE="thumbnails")


def variables(server: RunningServer, headers: dict[str, str]) -> dict[str, str]:
    answer = server.call(b"data", headers=headers)
    assert answer.status == 200, answer.body
    return dict(line.split("=", 1) for line in answer.body.decode().splitlines())


def test_the_attributes_are_variables(server: RunningServer) -> None:
    extra = {
        "ce-time": "2026-04-05T17:31:00Z",
        "ce-subject": "123",
        "ce-dataschema": "https://example.com/schema",
        # Extensions, which a broker adds.
        "ce-knativearrivaltime": "2026-04-05T17:31:00.1Z",
        "Ce-Sequence7": "0005",
    }
    assert variables(server, EVENT | extra) == {
        "CE_SPECVERSION": "1.0",
        "CE_ID": "A234-1234-1234",
        "CE_SOURCE": "/mycontext/4",
        "CE_TYPE": "com.example.someevent",
        "CE_TIME": "2026-04-05T17:31:00Z",
        "CE_SUBJECT": "123",
        "CE_DATASCHEMA": "https://example.com/schema",
        "CE_KNATIVEARRIVALTIME": "2026-04-05T17:31:00.1Z",
        "CE_SEQUENCE7": "0005",
    }


def test_extensions_replace_no_variable_of_the_image(shared_server: StartServer) -> None:
    """Any caller may invent an attribute. IBM Code Engine, for example, sets the variables CE_APP and CE_REGION."""
    server = shared_server(SHOW, CE_APP="the image's", CE_TYPE="stale")
    found = variables(server, EVENT | {"ce-app": "the caller's", "ce-region": "mars"})
    assert (found["CE_APP"], found["CE_REGION"], found["CE_TYPE"]) == ("the image's", "mars", EVENT["ce-type"])


def test_the_data_is_the_input_as_it_is(shared_server: StartServer) -> None:
    server = shared_server('cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/copy"')
    data = bytes(range(256))
    assert server.call(data, headers=EVENT | {"Accept": "application/octet-stream"}).body == data
    answer = server.call(b'{"a": 1}', headers=EVENT | {"Content-Type": "application/json"})
    assert base64.b64decode(answer.body) == b'{"a": 1}'


@pytest.mark.parametrize(
    ("sent", "value"),
    [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ("100%25", "100%"),
        ("a+b", "a+b"),
        ("%22quoted%22", '"quoted"'),
        ('"in quotes"', "in quotes"),
        ("plain", "plain"),
    ],
)
def test_values_are_percent_decoded(server: RunningServer, sent: str, value: str) -> None:
    assert variables(server, EVENT | {"ce-subject": sent})["CE_SUBJECT"] == value


@pytest.mark.parametrize("sent", ["%ff", "a%00b", "line%0Aend"])
def test_values_that_cannot_be_are_refused(server: RunningServer, sent: str) -> None:
    assert "Ce-Subject" in str(problem(server.call(b"", headers=EVENT | {"ce-subject": sent}), 400)["detail"])


@pytest.mark.parametrize("missing", ["ce-specversion", "ce-id", "ce-source", "ce-type"])
def test_without_a_required_attribute_they_are_just_headers(server: RunningServer, missing: str) -> None:
    headers = {name: value for name, value in EVENT.items() if name != missing} | {"ce-subject": "%ff"}
    answer = server.call(b"", headers=headers)
    assert (answer.status, answer.body) == (200, b"")
    assert not [name for name in answer.headers if name.lower().startswith("ce-")]
    assert "ce_id" not in server.event("invocation ended", call_id=answer.headers["X-Call-Id"])


def test_the_headers_are_there_as_well(shared_server: StartServer) -> None:
    server = shared_server('echo "$Http_Ce_Id"')
    assert server.call(b"", headers=EVENT).body == b"A234-1234-1234\n"


def test_the_log_names_the_event(server: RunningServer) -> None:
    answer = server.call(b"", headers=EVENT)
    ended = server.event("invocation ended", call_id=answer.headers["X-Call-Id"])
    assert (ended["ce_id"], ended["ce_source"]) == ("A234-1234-1234", "/mycontext/4")
    assert ended["ce_type"] == "com.example.someevent"


def test_the_answer_is_an_event_that_carries_the_id_on(server: RunningServer) -> None:
    """A broker accepts no other answer that has a body."""
    answer = server.call(b"", headers=EVENT | {"ce-id": "%E2%82%AC 1"})
    assert answer.headers["Ce-Specversion"] == "1.0"
    assert unquote(answer.headers["Ce-Id"]) == "€ 1"
    assert answer.headers["Ce-Source"] == "/thumbnails"
    assert answer.headers["Ce-Type"] == "com.example.someevent.answer"


def test_a_failure_is_not_an_event(shared_server: StartServer) -> None:
    """From the status, the broker decides whether to try again or to send the event to its dead letter sink."""
    server = shared_server("exit 3")
    answer = server.call(b"", headers=EVENT)
    assert problem(answer, 500)["exit_code"] == 3
    assert not [name for name in answer.headers if name.lower().startswith("ce-")]
    assert server.event("invocation ended", call_id=answer.headers["X-Call-Id"])["ce_id"] == "A234-1234-1234"


def test_structured_mode_is_data_like_any_other(shared_server: StartServer) -> None:
    server = shared_server(f'{SHOW}; cat "$INPUT_FILE_PATH"')
    attributes = {name.removeprefix("ce-"): value for name, value in EVENT.items() if name.startswith("ce-")}
    event = json.dumps(attributes | {"data": {"a": 1}}).encode()
    answer = server.call(event, headers={"Content-Type": "application/cloudevents+json; charset=UTF-8"})
    assert answer.body == event
    assert "Ce-Id" not in answer.headers


def test_events_do_not_mix(server: RunningServer) -> None:
    """The next call on the same connection does not get attributes of an earlier event."""
    assert variables(server, EVENT | {"ce-extension": "x"})["CE_EXTENSION"] == "x"
    assert "CE_EXTENSION" not in variables(server, EVENT)
    assert server.call(b"").body == b""


@pytest.mark.parametrize("name", ["a\r\nX-Split: 1", "caf\xe9", "not utf-8 \udcff"])
def test_any_name_of_a_service_makes_a_source(shared_server: StartServer, name: str) -> None:
    server = shared_server(SHOW, K_SERVICE=name)
    answer = server.call(b"", headers=EVENT)
    assert answer.status == 200
    assert "X-Split" not in answer.headers
    assert answer.headers["Ce-Source"].startswith("/")
    assert server.call(None, "/_/openapi.json", "GET").status == 200
