"""Events that do not run the script: nothing new is reported, or no input covers the object."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from running_server import Answer, RunningServer, StartServer, problem, until

from storage.conftest import Define
from storage.events import delegated, event, event_of, record
from storage.servers import S3Server

COPY = 'cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/"'
SHOW = 'cat "$INPUT_FILE_PATH"'
REMOVED = "s3:ObjectRemoved:Delete"
CLOUD_EVENT = {
    "Ce-Specversion": "1.0",
    "Ce-Id": "7",
    "Ce-Source": "aws:s3",
    "Ce-Type": "com.amazonaws.s3.ObjectRemoved:Delete",
    "Content-Type": "application/json",
}


def started(start_server: StartServer, script: str, definition: str, **options: Any) -> RunningServer:
    environ = {"WATCHDOG_SERVICE_DEFINITION": definition, "WATCHDOG_STORAGE_TIMEOUT": "10"}
    return start_server(script, **(environ | options))


def assert_skipped(server: RunningServer, answer: Answer, part: str) -> None:
    """Check that the answer is 200 with the reason, and that the script did not run."""
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["X-Call-Id"]
    assert "X-Exit-Code" not in answer.headers
    text = answer.body.decode()
    assert text.startswith("the script did not run: ")
    assert text.endswith("\n")
    assert part in text
    ended = server.event("invocation ended")
    assert (ended["outcome"], ended["level"]) == ("skipped", "info")
    assert ended["reason"] == text.rstrip("\n")
    assert "exit_code" not in ended
    assert "queue_wait_s" not in ended


def logged(server: RunningServer, name: str) -> list[dict[str, Any]]:
    """Return the events with this name that the test has read from the log so far."""
    return [line for line in server.logs if line["event"] == name]


# Nothing new


@pytest.mark.guard("only-creations")
@pytest.mark.parametrize("source", ["minio:s3", "aws:s3", "ceph:s3"])
def test_the_event_of_a_removal_does_not_run_the_script(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str, source: str
) -> None:
    server = started(start_server, COPY, define())
    bucket_server.put(f"{place}/in/x", b"object")  # the object was made again after its removal
    answer = server.call(event(f"{place}/in/x", source=source, name=REMOVED))
    assert_skipped(server, answer, f"{place}/in/x: {REMOVED} is not the creation of an object")
    (skipped,) = logged(server, "object of an event skipped")
    assert (skipped["event_name"], skipped["object"], skipped["level"]) == (REMOVED, f"{place}/in/x", "info")
    assert skipped["call_id"] == answer.headers["X-Call-Id"]
    assert bucket_server.objects(f"{place}/out") == {}


def test_among_several_records_only_creations_run_the_script(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    server = started(start_server, COPY, define())
    for name in ("a", "c"):
        bucket_server.put(f"{place}/in/{name}", name.encode())
    records = [record(f"{place}/in/a"), record(f"{place}/in/b", name=REMOVED), record(f"{place}/in/c")]
    answer = server.call(event_of(*records), headers={"Accept": "application/json"})
    assert [output["name"] for output in answer.json["outputs"]] == ["1/a", "2/c"]
    assert bucket_server.objects(f"{place}/out") == {"a": b"a", "c": b"c"}
    assert server.event("invocation ended")["outcome"] == "ok"
    assert [line["object"] for line in logged(server, "object of an event skipped")] == [f"{place}/in/b"]


def test_a_folder_marker_does_not_run_the_script(start_server: StartServer, define: Define, place: str) -> None:
    server = started(start_server, COPY, define())
    answer = server.call(event(f"{place}/in/folder/", size=0))
    assert_skipped(server, answer, f"{place}/in/folder/: it is an empty object that marks a folder")
    assert len(logged(server, "object of an event skipped")) == 1


def test_thousands_of_skipped_records_leave_a_bounded_log_and_answer(
    start_server: StartServer, define: Define, place: str
) -> None:
    server = started(start_server, COPY, define())
    answer = server.call(event(*(f"{place}/in/{number}" for number in range(2000)), name=REMOVED))
    assert_skipped(server, answer, "; and 1997 more")
    assert len(logged(server, "object of an event skipped")) == 100
    assert [line["count"] for line in logged(server, "more objects of an event skipped")] == [1900]


def test_long_names_leave_a_bounded_log_and_answer(start_server: StartServer, define: Define, place: str) -> None:
    server = started(start_server, COPY, define())
    answer = server.call(event(f"{place}/in/{'k' * 200_000}", "elsewhere/x", name="N" * 200_000))
    assert_skipped(server, answer, "is not the creation of an object")
    assert len(answer.body) < 2000
    assert len(json.dumps(server.logs)) < 10_000


# Not covered


@pytest.mark.guard("uncovered-is-not-data")
@pytest.mark.parametrize("where", ["other-bucket/in/x", "bucket/elsewhere/x", "PLACE/out/x"])
@pytest.mark.parametrize("is_delegated", [False, True])
def test_an_object_that_no_input_covers_does_not_run_the_script(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str, where: str, is_delegated: bool
) -> None:
    """With a notification for the whole bucket the service would process its own outputs for ever."""
    where = where.replace("PLACE", place)
    server = started(start_server, COPY, define())
    body = event(where)
    answer = server.call(delegated(body) if is_delegated else body)
    assert_skipped(server, answer, f"{where}: no input of the service definition covers it")
    (warning,) = [line for line in server.logs if line["level"] == "warning"]
    assert warning["event"].startswith("no input of the service definition covers the object of an event")
    assert (warning["object"], warning["count"]) == (where, 1)
    assert warning["call_id"] == answer.headers["X-Call-Id"]
    assert bucket_server.objects(f"{place}/out") == {}


@pytest.mark.parametrize("fields", [{"input": None}, {"input": None, "output": None}], ids=["output", "provider"])
def test_without_an_input_no_event_of_a_provider_runs_the_script(
    start_server: StartServer, define: Define, place: str, fields: dict[str, None]
) -> None:
    server = started(start_server, COPY, define(**fields))
    for body, part in (
        (event(f"{place}/in/x"), "no input of the service definition covers it"),
        (event(f"{place}/in/x", name=REMOVED), f"{REMOVED} is not the creation of an object"),
        (json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "b"}).encode(), "the test message"),
    ):
        assert_skipped(server, server.call(body), part)
    assert server.call(b'{"a": 1}').status == 200
    assert server.event("invocation ended")["outcome"] == "ok"
    assert server.call(event(f"{place}/in/x"), "/?input=raw&output=raw").body == event(f"{place}/in/x")


@pytest.mark.guard("whole-location")
def test_a_bucket_name_cannot_lead_into_another_bucket(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    """`BUCKET/in/../../other` is below the path of the input only as a text."""
    bucket_server.put(f"{place}/secret", b"secret")
    server = started(start_server, SHOW, define())
    bad = record("bucket/secret")
    bad["s3"]["bucket"]["name"] = f"{place}/in/.."
    assert_skipped(server, server.call(event_of(bad)), "its bucket has an impossible name")
    assert logged(server, "a record of an event cannot be processed")[0]["level"] == "warning"


def test_a_key_cannot_lead_out_of_the_folder_of_the_input(
    start_server: StartServer, define: Define, place: str
) -> None:
    server = started(start_server, SHOW, define())
    answer = server.call(event(f"{place}/in/../secret"))
    assert_skipped(server, answer, f"{place}/in/../secret: its key has a .. that leads out of its folder")


def test_a_record_with_a_fault_is_skipped_beside_others(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    bucket_server.put(f"{place}/in/x", b"object")
    server = started(start_server, SHOW, define())
    assert server.call(event_of(record(f"{place}/in/y", name=5), record(f"{place}/in/x"))).body == b"object"
    assert "eventName" in server.event("a record of an event cannot be processed")["reason"]


def test_the_objects_that_are_covered_are_processed_beside_others(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    server = started(start_server, COPY, define())
    bucket_server.put(f"{place}/in/x", b"object")
    assert server.call(event(f"{place}/out/y", f"{place}/in/x", f"{place}/out/z")).status == 200
    assert bucket_server.objects(f"{place}/out") == {"x": b"object"}
    assert server.event("invocation ended")["outcome"] == "ok"
    (warning,) = [line for line in server.logs if line["level"] == "warning"]
    assert (warning["object"], warning["count"]) == (f"{place}/out/y, {place}/out/z", 2)


def test_an_event_of_a_kind_of_storage_that_is_not_defined_is_data(
    start_server: StartServer, define: Define, place: str
) -> None:
    webdav = {"webdav": {"dcache": {"hostname": "http://127.0.0.1:9"}}}
    inputs = [{"storage_provider": "webdav.dcache", "path": "in"}]
    server = started(start_server, SHOW, define(storage_providers=webdav, input=inputs, output=None))
    for body in (event(f"{place}/in/x"), event(f"{place}/in/x", name=REMOVED)):
        assert server.call(body).body == body


def test_input_raw_makes_any_event_data(start_server: StartServer, define: Define, place: str) -> None:
    server = started(start_server, SHOW, define())
    for body in (event(f"{place}/in/x", name=REMOVED), event("elsewhere/x"), event(f"{place}/in/folder/", size=0)):
        assert server.call(body, "/?input=raw").body == body


def test_a_delegated_event_of_a_provider_that_is_not_defined_is_502(
    start_server: StartServer, define: Define, place: str
) -> None:
    """With 200, the cluster that delegates the event would believe that the event was processed."""
    server = started(start_server, COPY, define())
    document = problem(server.call(delegated(event(f"{place}/in/x"), "minio.other")), 502)
    assert "names the storage provider 'minio.other'" in str(document["detail"])


# The answer


@pytest.mark.parametrize(
    "accept", [None, "*/*", "text/plain", "application/zip", "image/png", "application/octet-stream", "text/html"]
)
def test_the_answer_is_text_whatever_form_is_wanted(
    start_server: StartServer, define: Define, place: str, accept: str | None
) -> None:
    """An error would make the sender send the event again."""
    server = started(start_server, COPY, define())
    headers = {"Accept": accept} if accept else {}
    assert_skipped(server, server.call(event(f"{place}/in/x", name=REMOVED), headers=headers), REMOVED)


@pytest.mark.parametrize("form", ["zip", "raw", "base64"])
def test_output_chooses_no_other_form(start_server: StartServer, define: Define, place: str, form: str) -> None:
    server = started(start_server, COPY, define())
    assert_skipped(server, server.call(event(f"{place}/in/x", name=REMOVED), f"/?output={form}"), REMOVED)


@pytest.mark.parametrize(
    ("path", "headers"), [("/?output=json", {}), ("/", {"Accept": "application/json"})], ids=["output", "accept"]
)
def test_a_caller_that_wants_json_gets_json(
    start_server: StartServer, define: Define, place: str, path: str, headers: dict[str, str]
) -> None:
    server = started(start_server, COPY, define())
    answer = server.call(event(f"{place}/in/x", name=REMOVED), path, headers=headers)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    skipped = answer.json.pop("skipped")
    assert skipped == server.event("invocation ended")["reason"]
    nothing: dict[str, object] = {"exit_code": None, "duration_s": 0, "outputs": [], "stdout": "", "stderr": ""}
    nothing["warnings"] = []
    assert {name: value for name, value in answer.json.items() if name != "skipped"} == nothing


@pytest.mark.parametrize("accept", [None, "application/json"])
def test_the_answer_to_a_cloud_event_has_no_body_and_is_not_an_event(
    start_server: StartServer, define: Define, place: str, accept: str | None
) -> None:
    """If an answer has a body that is not an event, Knative's brokers send the event again."""
    server = started(start_server, COPY, define())
    data = record(f"{place}/in/x", "aws:s3", "ObjectRemoved:Delete")
    attributes = {name.removeprefix("Ce-").lower(): value for name, value in CLOUD_EVENT.items() if "Ce-" in name}
    structured = json.dumps(attributes | {"data": data}).encode()
    for body, headers in (
        (json.dumps(data).encode(), CLOUD_EVENT),
        (structured, {"Content-Type": "application/cloudevents+json; charset=utf-8"}),
    ):
        answer = server.call(body, headers=headers | ({"Accept": accept} if accept else {}))
        assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "0")
        assert not [name for name in answer.headers if name.lower().startswith("ce-")]
        assert server.event("invocation ended")["outcome"] == "skipped"


def test_a_skipped_event_does_not_wait_for_a_place(
    start_server: StartServer, define: Define, place: str, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    script = f"mkfifo {fifo}; cat {fifo}"
    server = started(start_server, script, define(), WATCHDOG_MAX_INFLIGHT="1")
    running = threading.Thread(target=server.call, args=(b"eA==",))
    running.start()
    until(fifo.exists, "the script to run")
    assert_skipped(server, server.call(event(f"{place}/in/x", name=REMOVED)), REMOVED)
    fifo.write_bytes(b"")
    running.join(RunningServer.patience_s)
    assert server.event("invocation ended")["outcome"] == "ok"


def test_skipped_events_are_counted_as_such(
    start_server: StartServer, define: Define, place: str, free_port: int
) -> None:
    server = started(start_server, COPY, define(), WATCHDOG_METRICS_PORT=str(free_port))
    server.call(event(f"{place}/in/x", name=REMOVED))
    text = server.call(None, "/metrics", "GET", port=free_port).body.decode()
    assert 'watchdog_invocations_total{outcome="skipped"} 1.0' in text
    assert 'watchdog_invocations_total{outcome="ok"} 0.0' in text
    assert 'watchdog_invocation_duration_seconds_count{outcome="skipped"}' not in text
    assert "watchdog_queue_wait_seconds_count 0.0" in text
    until(lambda: not server.leftovers_of_calls(), "the workspace to be removed")
