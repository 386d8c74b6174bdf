"""Which texts are events, which objects they report, and the text that a job gets from a shell."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.events import TIME, delegated, event, event_of, record
from watchdog.errors import BadInput
from watchdog.storage.event import MOST_BYTES, Event, read, read_data
from watchdog.storage.job_event import job_text
from watchdog.storage.stored_object import StoredObject


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def only(text: bytes) -> StoredObject:
    found = read(text)
    assert found is not None
    (stored,) = found.objects
    return stored


# Events of buckets

# An event that radosgw 16.2 sent.
CEPH = (Path(__file__).parent / "ceph_put.json").read_bytes()


@pytest.mark.parametrize(("source", "kind"), [("minio:s3", "minio"), ("aws:s3", "s3"), ("ceph:s3", "ceph")])
def test_events_of_buckets(source: str, kind: str) -> None:
    text = event("photos/in/a b+c%é.jpg", source=source)
    assert only(text) == StoredObject(
        kind, "photos", "in/a b+c%é.jpg", TIME, "s3:ObjectCreated:Put", text, size_bytes=1
    )


def test_keys_of_ceph_are_not_encoded() -> None:
    stored = only(CEPH)
    assert (stored.kind, stored.container, stored.key) == ("ceph", "bucket", "a b+c%20é/x.jpg")


def test_all_records_each_with_an_event_of_its_own() -> None:
    text = event("b/1", "b/2", "b/3")
    found = read(text)
    assert found is not None
    assert [stored.key for stored in found.objects] == ["1", "2", "3"]
    for number, stored in enumerate(found.objects):
        told = json.loads(stored.text)
        assert told == json.loads(text) | {"Records": [json.loads(text)["Records"][number]]}


def test_the_text_is_kept_byte_for_byte() -> None:
    text = b' {"Records":[' + encoded(record("b/k"))[:-1] + b', "x": 1e400, "x": "\\u00e9",  "y": 0.10}]}\n'
    assert only(text).text == text


CREATIONS = [
    "s3:ObjectCreated:Put",
    "s3:ObjectCreated:CompleteMultipartUpload",
    "ObjectCreated:Put",
    "ObjectCreated:Copy",
    "s3:ObjectCreated:*",
    "",
    None,
]
NO_CREATIONS = [
    "s3:ObjectRemoved:Delete",
    "ObjectRemoved:DeleteMarkerCreated",
    "s3:ObjectAccessed:Get",
    "s3:ObjectAccessed:Head",
    "ObjectTagging:Put",
    "ObjectAcl:Put",
    "ObjectRestore:Completed",
    "ReducedRedundancyLostObject",
    "LifecycleExpiration:Delete",
    "s3:Replication:OperationCompletedReplication",
    "ObjectSynced:Create",
    "s3:ObjectCreatedElsewhere:Put",
    "s3:ObjectCreated:PutTagging",
    "s3:ObjectCreated:DeleteTagging",
    "s3:ObjectCreated:PutRetention",
    "s3:ObjectCreated:PutLegalHold",
]


@pytest.mark.parametrize("source", ["minio:s3", "aws:s3", "ceph:s3"])
@pytest.mark.parametrize("name", CREATIONS)
def test_creations_are_new(source: str, name: str | None) -> None:
    assert only(event("b/k", source=source, name=name)).why_not_new == ""


def test_an_event_whose_name_is_null_is_a_creation() -> None:
    assert only(event_of(record("b/k") | {"eventName": None, "eventTime": None})).why_not_new == ""


@pytest.mark.parametrize("name", NO_CREATIONS)
def test_other_events_are_not_new(name: str) -> None:
    assert only(event("b/k", name=name)).why_not_new == f"{name} is not the creation of an object"


@pytest.mark.parametrize("about", [{"size": 0}, {"size": None}])
def test_an_empty_object_whose_key_ends_in_a_slash_marks_a_folder(about: dict[str, Any]) -> None:
    """MinIO leaves a size of 0 out."""
    assert only(event("b/in/folder/", **about)).why_not_new == "it is an empty object that marks a folder"


def test_other_empty_objects_and_other_keys_that_end_in_a_slash_are_new() -> None:
    assert only(event("b/in/empty", size=0)).why_not_new == ""
    assert only(event("b/in/folder/", size=7)).why_not_new == ""


@pytest.mark.parametrize("about", [{"size": "7", "versionId": 7}, {"size": [], "versionId": None}])
def test_an_event_with_odd_details_is_still_one(about: dict[str, Any]) -> None:
    stored = only(event("b/k", **about))
    assert (stored.size_bytes, stored.version) == (None, "")


@pytest.mark.parametrize("version", ["3/L4kqtJlcpXroDTDmJ+rmSpXd3dIbrHY", "null", ""])
def test_the_version_is_that_of_the_event(version: str) -> None:
    assert only(event("b/k", versionId=version)).version == version


# Others


def test_onedata() -> None:
    """As faas-supervisor documents it."""
    told = {
        "Key": "/my-onedata-space/files/file.txt",
        "Records": [
            {
                "objectKey": "file.txt",
                "objectId": "0000034500046EE9C6775",
                "eventTime": "2019-02-07T09:51:04.347823",
                "eventSource": "OneTrigger",
            }
        ],
    }
    stored = only(encoded(told))
    assert (stored.kind, stored.container, stored.key) == ("onedata", "my-onedata-space", "files/file.txt")
    assert stored.time == "2019-02-07T09:51:04.347823"


def test_dcache() -> None:
    """As faas-supervisor documents it."""
    told = {
        "event": {"name": "image2.jpg", "mask": ["IN_CREATE"]},
        "subscription": "https://prometheus.example.org:3880/api/v1/events/channels/oy/subscriptions/inotify/AACvM",
    }
    stored = only(encoded(told))
    assert (stored.kind, stored.container, stored.key, stored.name) == ("webdav", "", "image2.jpg", "IN_CREATE")


@pytest.mark.parametrize(
    ("mask", "is_new"),
    [
        ([], True),
        (["IN_CREATE"], True),
        (["IN_CLOSE_WRITE"], True),
        (["IN_MOVED_TO"], True),
        (["IN_MODIFY", "IN_CLOSE_WRITE"], True),
        (["IN_CREATE", "IN_ISDIR"], False),
        (["IN_DELETE"], False),
        (["IN_ATTRIB"], False),
        (["IN_MOVED_FROM"], False),
        (["IN_OPEN"], False),
    ],
)
def test_what_dcache_reports_as_new(mask: list[str], is_new: bool) -> None:
    stored = only(encoded({"event": {"name": "x", "mask": mask}, "subscription": "https://dcache/x"}))
    assert (stored.why_not_new == "") is is_new


@pytest.mark.parametrize("form", ["text", "object", "base64"])
def test_delegated_events(form: str) -> None:
    inner = event("b/k")
    inner_of = {"text": inner.decode(), "object": json.loads(inner), "base64": base64.b64encode(inner).decode()}
    found = read(encoded({"storage_provider": "minio.default", "event": inner_of[form]}))
    assert found is not None
    assert (found.provider, found.objects[0].key, found.objects[0].text) == ("minio.default", "k", inner)


@pytest.mark.parametrize(
    ("inner", "data"),
    [
        ("text", b"text"),
        (base64.b64encode(b"bytes").decode(), base64.b64encode(b"bytes")),
        ({"a": 1}, b'{"a": 1}'),
        ('{"a": 1}', b'{"a": 1}'),
    ],
)
def test_delegated_data(inner: object, data: bytes) -> None:
    assert read(encoded({"storage_provider": "x", "event": inner})) == Event(provider="x", data=data)


GATEWAY: dict[str, Any] = {
    "resource": "/{proxy+}",
    "path": "/launch",
    "httpMethod": "POST",
    "headers": {"Content-Type": "application/octet-stream"},
    "queryStringParameters": {"size": "3", "mode": "x"},
    "requestContext": {"stage": "scar"},
    "body": "aGk=",
    "isBase64Encoded": False,
}


@pytest.mark.parametrize(
    ("fields", "data", "data_is"),
    [
        ({}, b"aGk=", "text"),  # later read as base64, like a body
        ({"isBase64Encoded": True}, b"hi", "bytes"),
        ({"body": None}, b"", "text"),
        ({"body": {"a": 1}}, b'{"a": 1}', "text"),
    ],
)
def test_api_gateways(fields: dict[str, Any], data: bytes, data_is: Literal["bytes", "text"]) -> None:
    variables = {"CONT_VAR_size": "3", "CONT_VAR_mode": "x"}
    assert read(encoded(GATEWAY | fields)) == Event(variables=variables, data=data, data_is=data_is)


def test_an_event_in_an_api_gateway() -> None:
    found = read(encoded(GATEWAY | {"body": event("b/k").decode(), "queryStringParameters": None}))
    assert found is not None
    assert (found.objects[0].key, found.variables) == ("k", {})


ATTRIBUTES = {"specversion": "1.0", "id": "1", "source": "aws:s3.us-east-1.b", "subject": "k"}


@pytest.mark.parametrize("event_type", ["com.amazonaws.s3.ObjectCreated:Put", "com.amazon.s3.objectcreated"])
@pytest.mark.parametrize("data", [record("b/k", "aws:s3"), json.loads(event("b/k", source="aws:s3"))])
def test_cloud_events_of_s3(event_type: str, data: object) -> None:
    attributes = ATTRIBUTES | {"type": event_type}
    assert only(encoded(attributes | {"data": data})).key == "k"
    assert only(encoded(attributes | {"data_base64": base64.b64encode(encoded(data)).decode()})).key == "k"
    found = read_data(event_type, encoded(data))
    assert found is not None
    assert found.objects[0].key == "k"


@pytest.mark.parametrize(
    ("event_type", "name"),
    [
        ("com.amazon.s3.objectcreated", "objectcreated"),
        ("com.amazonaws.s3.objectcreated.put", "objectcreated.put"),
        ("com.amazonaws.s3.s3:ObjectCreated:Put", "s3:ObjectCreated:Put"),
        ("aws.s3", ""),
        ("com.amazonaws.s3.ObjectRemoved:Delete", None),
        ("com.amazon.s3.objectremoved", None),
        ("com.amazonaws.s3.objectcreated.puttagging", None),
    ],
)
def test_the_type_of_a_cloud_event_counts_if_the_record_has_no_name(event_type: str, name: str | None) -> None:
    for data in (record("b/k", "aws:s3", None), json.loads(event("b/k", source="aws:s3", name=None))):
        found = read_data(event_type, encoded(data))
        assert found is not None
        (stored,) = found.objects
        assert (stored.why_not_new == "") is (name is not None)
        assert name in (None, stored.name)
    found = read_data(event_type, encoded(record("b/k", "aws:s3", "ObjectCreated:Put")))
    assert found is not None
    assert found.objects[0].name == "ObjectCreated:Put"


def test_other_cloud_events_are_data() -> None:
    assert read(encoded(ATTRIBUTES | {"type": "org.example.thing", "data": record("b/k", "aws:s3")})) is None
    assert read(encoded(ATTRIBUTES | {"type": "com.amazonaws.s3.x", "data": {"a": 1}})) is None
    assert read_data("org.example.thing", encoded(record("b/k"))) is None


# Texts that are not events


def without(path: str) -> bytes:
    """A record of MinIO without one of its parts."""
    told = record("b/k")
    *parents, name = path.split(".")
    place = told
    for parent in parents:
        place = place[parent]
    del place[name]
    return encoded({"Records": [told]})


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"text",
        b"[1]",
        b'"a"',
        b"{",
        b"{}",
        b"\xff{}",
        b'{"event": {"name": "x"}}',
        b'{"event": 1, "storage_provider": 2}',
        b'{"event": 1, "storage_provider": "minio"}',
        b'{"event": {"mask": []}, "subscription": "x"}',
        b'{"event_type": "x", "payload": {"scope": "s", "name": "n"}}',
        b'{"httpMethod": "GET"}',
        b'{"httpMethod": "POST", "body": "x"}',
        b'{"Records": []}',
        b'{"Records": 1}',
        b'{"Records": [{"eventSource": "minio:s3"}]}',
        b'{"Records": [{"eventSource": "OneTrigger", "objectKey": "x"}]}',
        encoded({"Records": [record("b/k"), {"eventSource": "aws:sns"}]}),
        encoded({"Records": [record("b/k", "aws:sqs")]}),
        encoded({"Records": [record("b/")]}),
        encoded({"Records": [record("/k")]}),
        encoded({"Key": "/space", "Records": [{"eventSource": "OneTrigger", "objectKey": "x"}]}),
        without("s3.bucket.name"),
        without("s3.object.key"),
        without("s3"),
        without("eventSource"),
        event("b/k").replace(b"{", b'{"x": "' + b"x" * MOST_BYTES + b'", ', 1),
        b'{"a":' * 100_000,
        event("b/k").replace(b"Config", b"\xff"),
    ],
)
def test_texts_that_are_not_events(text: bytes) -> None:
    assert read(text) is None


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (b'"eventName": "s3:ObjectCreated:Put"', b'"eventName": 5', "its eventName is not a text"),
        (b'"key": "bad"', b'"key": "%ff"', "its key is not UTF-8"),
        (b'"key": "bad"', b'"key": "a%00b"', "it has a NUL in its name or time"),
        (b'"key": "bad"', b'"key": "a\\u0000b"', "it has a NUL in its name or time"),
    ],
)
def test_a_record_with_a_fault_does_not_make_the_event_data(old: bytes, new: bytes, fault: str) -> None:
    bad = encoded(record("b/bad"))
    assert old in bad
    found = read(b'{"Records": [' + encoded(record("b/good")) + b", " + bad.replace(old, new) + b"]}")
    assert found is not None
    assert [stored.fault for stored in found.objects] == ["", fault]
    assert not found.objects[1].why_not_new


def test_a_time_that_is_not_a_text_is_left_out() -> None:
    found = read(encoded({"Records": [record("b/k") | {"eventTime": 5}]}))
    assert found is not None
    assert (found.objects[0].time, found.objects[0].fault) == ("", "")


@pytest.mark.parametrize(("name", "is_new"), [("s3:ObjectCreated:Put", True), ("s3:ObjectRemoved:Delete", False)])
def test_a_record_without_a_name_has_that_of_minios_event(name: str, is_new: bool) -> None:
    found = read(encoded({"EventName": name, "Key": "b/k", "Records": [record("b/k", name=None)]}))
    assert found is not None
    assert (found.objects[0].name, not found.objects[0].why_not_new) == (name, is_new)


def test_a_record_with_a_name_keeps_it() -> None:
    found = read(encoded({"EventName": "s3:ObjectRemoved:Delete", "Records": [record("b/k")]}))
    assert found is not None
    assert found.objects[0].name == "s3:ObjectCreated:Put"


def test_nested_envelopes_are_limited() -> None:
    text = event("b/k")
    for _ in range(3):
        text = delegated(text)
        assert only(text).key == "k"
    found = read(delegated(text))
    assert found is not None
    assert found.objects == ()
    assert found.data is not None


@given(st.binary())
def test_no_bytes_raise_anything(data: bytes) -> None:
    read(data)
    read(b'{"Records": [' + data + b"]}")
    read_data("com.amazonaws.s3.x", data)


NAMES = st.sampled_from(["Records", "event", "Key", "storage_provider", "httpMethod", "body", "headers", "s3", "data"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner),
)


@given(JSON)
def test_no_json_raises_anything(value: object) -> None:
    found = read(encoded(value))
    if found is not None:
        assert found.objects or found.data is not None


# The text that a job gets

SHELLS = [shell for shell in (["dash"], ["bash"], ["busybox", "sh"]) if shutil.which(shell[0])]
PLAIN = event("b/in/photo.jpg").decode()
NASTY = {
    "plain": PLAIN,
    "indented": json.dumps(json.loads(PLAIN), indent=2),
    "spaces and tabs": '{"k":  "two  spaces",\t\n "tab": 1}',
    "patterns": '{"k": "a * and ?.txt and [ab].txt"}',
    "line feed": '{"k": "one\\ntwo"}',
    "escapes": '{"k": "\\\\ \\" \\t \\u00e9 \\/ \\b"}',
    "backslashes in front of letters": '{"path": "C:\\\\new\\\\table"}',
    "backslashes that are no escapes": '{"k": "\\\\1 \\\\101 \\\\c"}',
    "octal, in a text": "text \\1 \\101 \\0101 \\01012 \\8 \\e \\x41",
    "an end for dash, in a text": "one \\c two",
    "no ASCII": '{"k": "é 日本 \U0001f600"}',
    "options": "-n {}",
}


def echoed(shell: list[str], variable: str, directory: Path) -> bytes:
    command = [*shell, "-c", "echo $EVENT"]
    environ = {"EVENT": variable, "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    return subprocess.run(command, env=environ, cwd=directory, capture_output=True, check=True).stdout


@pytest.mark.parametrize("shell", SHELLS, ids=lambda words: words[0])
@pytest.mark.parametrize("variable", [value for name, value in NASTY.items() if name != "options"])
@pytest.mark.parametrize("has_files", [False, True])
def test_what_a_shell_makes_of_event_is_event(
    shell: list[str], variable: str, has_files: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job and the shell before it have the same working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt", "c d") if has_files else ():
        (tmp_path / name).touch()
    assert job_text(echoed(shell, variable, tmp_path), variable) == variable.encode()


@pytest.mark.parametrize("shell", SHELLS, ids=lambda words: words[0])
def test_base64_in_event(shell: list[str], tmp_path: Path) -> None:
    variable = base64.b64encode(PLAIN.encode()).decode()
    assert job_text(echoed(shell, variable, tmp_path), variable) == PLAIN.encode()
    assert job_text(PLAIN.encode(), variable) == PLAIN.encode()
    assert job_text(PLAIN.encode() + b"\n", variable) == PLAIN.encode()


def test_another_event_with_the_same_beginning_counts() -> None:
    """A shell reads compact JSON as one word, and as a pattern because of its brackets. But no file has such a name."""
    assert job_text(event("b/mine"), event("b/other").decode()) == event("b/mine")
    compact = b'{"Records":[1]}'
    assert job_text(compact, '{"Records":[2]}') == compact


def test_broken_text_is_read_only_once() -> None:
    """Several passes over a text of quotes and backslashes took seconds for each 32 KiB."""
    text = b'{"' + b'\\"' * 200_000
    with pytest.raises(BadInput):
        job_text(text, None)


def test_many_records_beside_much_else_are_data() -> None:
    """The text of each object repeats the rest of the event. For a body below 1 MiB, this could be gigabytes."""
    beside = {"x": "x" * 500_000}
    assert read(encoded(beside | json.loads(event("b/1", "b/2", "b/3")))) is not None
    assert read(encoded(beside | {"Records": [{"eventSource": "aws:s3", "s3": record("b/k")["s3"]}] * 1000})) is None
    many = read(event(*(f"b/{number}" for number in range(2000))))
    assert many is not None
    assert len(many.objects) == 2000


@pytest.mark.parametrize("variable", ['{"other": 1}', '{"other": ["a", "b"]}', '{"other": "*"}', "text * "])
def test_another_event_on_stdin_counts(variable: str) -> None:
    assert job_text(b'{"mine": [1]}', variable) == b'{"mine": [1]}'


@pytest.mark.parametrize("stdin", [b"", b" \n"])
def test_event_counts_where_stdin_is_empty(stdin: bytes) -> None:
    assert job_text(stdin, '{"a":  1}') == b'{"a":  1}'


@pytest.mark.parametrize("variable", [None, "", " "])
def test_an_empty_text_is_not_an_event(variable: str | None) -> None:
    with pytest.raises(BadInput, match="give it on stdin"):
        job_text(b"", variable)


def test_an_event_that_dash_expanded_is_repaired_without_event(tmp_path: Path) -> None:
    printed = b'{"k": "one\ntwo", "t": "a\tb", "x": ["\x07"]}\n'
    assert json.loads(job_text(printed, None)) == {"k": "one\ntwo", "t": "a\tb", "x": ["\a"]}


@pytest.mark.parametrize("text", [b"{", b'{"a": }', b'{"path": "C:\\new\\qable"}', b"{}{}"])
def test_an_event_that_cannot_be_repaired_is_reported(text: bytes) -> None:
    with pytest.raises(BadInput, match=r"the event is not valid JSON \(.+\)\. A shell changes the event if \$EVENT"):
        job_text(text, None)


@pytest.mark.parametrize(
    "text", [b"text", b"[1]", base64.b64encode(b"bytes"), base64.b64encode(b"[1]"), b"\xff\xfe", b"123"]
)
def test_a_text_that_is_not_an_object_is_passed_on(text: bytes) -> None:
    assert job_text(text, None) == text


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes])
def test_base64_of_an_object_is_decoded(encode: Any) -> None:
    text = '{"k": "ÿ?>~"}'.encode()
    assert job_text(encode(text), None) == text
    assert job_text(encode(text).replace(b"=", b""), None) == text


WORDS = st.lists(st.text(alphabet='ab*?[]\\nt0"é', min_size=1), min_size=1)


@given(WORDS)
def test_what_bash_prints_of_any_words_is_event(words: list[str]) -> None:
    """If no file matches a pattern, bash's echo only joins white space."""
    variable = "  ".join(words)
    with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
        assert job_text(" ".join(words).encode() + b"\n", variable) == variable.encode()


@given(st.binary(), st.text(alphabet=st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")) | st.none())
def test_job_text_raises_nothing_else(stdin: bytes, variable: str | None) -> None:
    with contextlib.suppress(BadInput):
        job_text(stdin, variable)
