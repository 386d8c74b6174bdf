"""Events of S3 that come through SQS, SNS or EventBridge, and messages of S3 and SNS that report no object."""

from __future__ import annotations

import base64
import codecs
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running_server import RunningServer, StartServer

from storage.conftest import Define
from storage.events import (
    CONFIRMATION,
    TEST_EVENT,
    TIME,
    TOPIC,
    delegated,
    event,
    event_bridge,
    event_of,
    lambda_of_sns,
    lambda_of_sqs,
    posted_by_sns,
    record,
)
from storage.servers import S3Server
from watchdog.storage.event import MOST_BYTES, read, read_data
from watchdog.storage.job_event import job_text
from watchdog.storage.stored_object import StoredObject

MARK = codecs.BOM_UTF8
Wrap = Callable[[bytes], bytes]
ENVELOPES: dict[str, Wrap] = {
    "SQS": lambda_of_sqs,
    "SNS to HTTP": posted_by_sns,
    "SNS to Lambda": lambda_of_sns,
    "SNS to SQS": lambda inner: lambda_of_sqs(posted_by_sns(inner)),
    "SNS to SQS to a delegating cluster": lambda inner: delegated(lambda_of_sqs(posted_by_sns(inner))),
}
INNER = event("photos/in/a b+c%é.jpg", source="aws:s3", versionId="v1")
BRIDGED = event_bridge("photos/in/a b+c%20é.jpg", **{"version-id": "v2"})


def objects(text: bytes) -> tuple[StoredObject, ...]:
    found = read(text)
    assert found is not None
    assert found.data is None
    return found.objects


@pytest.mark.parametrize("wrap", ENVELOPES.values(), ids=ENVELOPES)
def test_a_wrapped_event_is_read_as_the_inner_one(wrap: Wrap) -> None:
    (stored,) = objects(wrap(INNER))
    assert (stored,) == objects(INNER)
    assert stored.text == INNER, "byte for byte, so that a script finds Records[0].s3"


def test_an_event_of_event_bridge() -> None:
    """Its keys are not encoded."""
    key = "in/a b+c%20é.jpg"
    assert objects(BRIDGED) == (StoredObject("s3", "photos", key, TIME, "Object Created", BRIDGED, 5, "v2"),)
    assert objects(BRIDGED)[0].why_not_new == ""


@pytest.mark.parametrize("wrap", ENVELOPES.values(), ids=ENVELOPES)
def test_a_wrapped_event_of_event_bridge(wrap: Wrap) -> None:
    assert objects(wrap(BRIDGED)) == objects(BRIDGED)


@pytest.mark.parametrize(
    "kind", ["Object Deleted", "Object Tags Added", "Object ACL Updated", "Object Restore Completed"]
)
def test_other_events_of_event_bridge_are_not_new(kind: str) -> None:
    (stored,) = objects(event_bridge("b/k", kind))
    assert stored.why_not_new == f"{kind} is not the creation of an object"


def test_several_messages_with_several_records_each_have_an_event_of_their_own() -> None:
    found = objects(lambda_of_sqs(event("b/1", "b/2", source="aws:s3"), BRIDGED, posted_by_sns(event("b/3"))))
    assert [stored.key for stored in found] == ["1", "2", "in/a b+c%20é.jpg", "3"]
    for stored in found:
        inner = json.loads(stored.text)
        assert "detail" in inner or len(inner["Records"]) == 1


def test_messages_without_an_object_stand_beside_those_with_one() -> None:
    found = read(lambda_of_sqs(TEST_EVENT, event("b/1"), posted_by_sns(TEST_EVENT)))
    assert found is not None
    assert [stored.key for stored in found.objects] == ["1"]
    assert [notice.text for notice in found.notices] == ["it is the test message of S3 for the bucket bucket"] * 2


def test_a_wrapped_event_in_a_cloud_event() -> None:
    for body in (posted_by_sns(INNER), lambda_of_sqs(BRIDGED), BRIDGED, TEST_EVENT):
        found = read_data("com.amazonaws.sns.Notification", body)
        assert found is not None
        assert found == read(body)
        attributes = {"specversion": "1.0", "id": "1", "source": "x", "type": "com.amazonaws.sns.Notification"}
        structured = read(json.dumps(attributes | {"data": json.loads(body)}).encode())
        assert structured is not None
        assert [stored.key for stored in structured.objects] == [stored.key for stored in found.objects]
        assert structured.notices == found.notices


def without(text: bytes, *names: str) -> bytes:
    """Return an event in which a field of its first record, or of the event itself, is missing."""
    document = json.loads(text)
    for place in (document, *document.get("Records", [])):
        for name in names:
            place.pop(name, None)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "text",
    [
        lambda_of_sqs(b"a text"),
        lambda_of_sqs(b"{}"),
        lambda_of_sqs(b'"text"'),
        lambda_of_sqs(INNER, b"a text"),
        lambda_of_sqs(delegated(b"a text")),
        lambda_of_sns(b"a text"),
        posted_by_sns(b"a text"),
        posted_by_sns(INNER, "Other"),
        without(lambda_of_sqs(INNER), "body"),
        without(lambda_of_sqs(INNER), "eventSource"),
        without(lambda_of_sns(INNER), "Sns"),
        without(posted_by_sns(INNER), "TopicArn"),
        without(posted_by_sns(INNER), "Message"),
        without(BRIDGED, "source"),
        without(BRIDGED, "detail-type"),
        without(BRIDGED, "detail"),
        BRIDGED.replace(b"aws.s3", b"aws.ec2"),
        event_bridge("b/"),
        event_of(json.loads(lambda_of_sqs(INNER))["Records"][0], record("b/k")),
        without(TEST_EVENT, "Service"),
        without(TEST_EVENT, "Bucket"),
        TEST_EVENT.replace(b"s3:TestEvent", b"other"),
        without(CONFIRMATION, "Token"),
        CONFIRMATION.replace(b"arn:aws:sns", b"$(reboot)"),
        CONFIRMATION.replace(b"2336412f", b"2336412f; reboot"),
    ],
)
def test_what_is_not_complete_or_wraps_other_data_is_data(text: bytes) -> None:
    assert read(text) is None


def test_nested_envelopes_are_limited() -> None:
    text = INNER
    for _ in range(3):
        text = lambda_of_sqs(text)
        assert objects(text) == objects(INNER)
    assert read(lambda_of_sqs(text)) is None


def test_many_records_in_many_messages_beside_much_else_are_data() -> None:
    """The event of each object repeats the rest of the body. A body of 1 MiB could become hundreds of megabytes."""
    small = json.dumps({"eventSource": "aws:s3", "s3": {"bucket": {"name": "b"}, "object": {"key": "k"}}})
    inner = f'{{"x": "{"x" * 25_000}", "Records": [{", ".join([small] * 200)}]}}'.encode()
    assert len(objects(lambda_of_sqs(inner))) == 200
    text = lambda_of_sqs(*[inner] * 15)
    assert len(text) < MOST_BYTES
    assert read(text) is None


@pytest.mark.parametrize(
    "wrap", [lambda inner: inner.removeprefix(MARK), *ENVELOPES.values()], ids=["bare", *ENVELOPES]
)
def test_a_byte_order_mark_before_an_event_is_skipped(wrap: Wrap) -> None:
    assert objects(MARK + wrap(MARK + INNER)) == objects(INNER)
    found = read_data("com.amazonaws.s3.ObjectCreated:Put", MARK + INNER)
    assert found is not None
    assert found.objects == objects(INNER)


def test_a_byte_order_mark_before_a_jobs_event_is_skipped() -> None:
    for text in (
        MARK + INNER,
        base64.b64encode(MARK + INNER),
        MARK + base64.b64encode(INNER),
        MARK + base64.b64encode(MARK + INNER),
    ):
        assert objects(job_text(text, None)) == objects(INNER)
        assert objects(job_text(b"", text.decode())) == objects(INNER)
        assert objects(job_text(text + b"\n", text.decode())) == objects(INNER)
    expanded = MARK + b'{"a": "one\ntwo"}'
    assert job_text(expanded, None) == MARK + b'{"a": "one\\u000atwo"}', "other JSON keeps it"


@given(st.binary(), st.sampled_from(list(ENVELOPES.values())))
def test_no_wrapped_bytes_raise_anything(data: bytes, wrap: Wrap) -> None:
    text = data.decode("utf-8", "replace").encode()
    found = read(wrap(text))
    assert found is None or found.objects or found.notices or found.data is not None
    read_data("com.amazonaws.s3.x", wrap(text))


# Calls


SHOW = 'cat "$INPUT_FILE_PATH"; printf " %s" "$EVENT"'


def started(start_server: StartServer, definition: str) -> RunningServer:
    return start_server(SHOW, WATCHDOG_SERVICE_DEFINITION=definition, WATCHDOG_STORAGE_TIMEOUT="10")


@pytest.mark.parametrize("wrap", [lambda_of_sqs, posted_by_sns, lambda_of_sns], ids=["SQS", "SNS", "SNS to Lambda"])
def test_a_wrapped_event_stands_for_its_object(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str, wrap: Wrap
) -> None:
    server = started(start_server, define())
    bucket_server.put(f"{place}/in/x y", b"object")
    for inner in (event(f"{place}/in/x y", source="aws:s3"), event_bridge(f"{place}/in/x y")):
        # SNS sends JSON as text/plain.
        answer = server.call(MARK + wrap(inner), headers={"Content-Type": "text/plain; charset=UTF-8"})
        assert (answer.status, answer.body) == (200, b"object " + inner)


def test_a_wrapped_event_of_a_removal_is_skipped(start_server: StartServer, define: Define, place: str) -> None:
    server = started(start_server, define())
    for inner in (
        event(f"{place}/in/x", source="aws:s3", name="ObjectRemoved:Delete"),
        event_bridge(f"{place}/in/x", "Object Deleted"),
        event_bridge(f"{place}/out/x"),
    ):
        answer = server.call(lambda_of_sqs(inner))
        assert answer.status == 200
        assert b"the script did not run" in answer.body
        assert server.event("invocation ended")["outcome"] == "skipped"


@pytest.mark.parametrize("wrap", [lambda inner: inner, *ENVELOPES.values()], ids=["bare", *ENVELOPES])
def test_the_test_message_of_s3_is_acknowledged(start_server: StartServer, define: Define, wrap: Wrap) -> None:
    server = started(start_server, define())
    answer = server.call(wrap(TEST_EVENT))
    text = b"the script did not run: it is the test message of S3 for the bucket bucket\n"
    assert (answer.status, answer.body) == (200, text)
    assert server.event("invocation ended")["outcome"] == "skipped"
    (line,) = [line for line in server.logs if line["event"] == "event without an object"]
    assert (line["level"], line["call_id"]) == ("info", answer.headers["X-Call-Id"])


def test_a_subscription_is_left_to_the_operator(start_server: StartServer, define: Define) -> None:
    """The server never opens an address that a caller has sent."""
    server = started(start_server, define())
    answer = server.call(CONFIRMATION, headers={"Content-Type": "text/plain; charset=UTF-8"})
    assert answer.status == 200
    assert f"SNS asks to confirm the subscription of this service to {TOPIC}" in answer.body.decode()
    assert b"--token" not in answer.body
    assert server.event("invocation ended")["outcome"] == "skipped"
    (line,) = [line for line in server.logs if line["level"] == "warning"]
    assert f"aws sns confirm-subscription --topic-arn {TOPIC} --token 2336412f" in line["advice"]


def test_without_a_storage_provider_they_are_data(start_server: StartServer, define: Define, place: str) -> None:
    definition = define(storage_providers=None, input=None, output=None)
    server = start_server('cat "$INPUT_FILE_PATH"', WATCHDOG_SERVICE_DEFINITION=definition)
    for body in (TEST_EVENT, CONFIRMATION, lambda_of_sqs(event(f"{place}/in/x")), event_bridge(f"{place}/in/x")):
        assert server.call(body).body == body
