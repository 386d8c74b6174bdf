"""Calls to a server whose service definition names storages: outputs are stored, and objects replace their events."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from guards import changed_program
from running_server import RunningServer, StartServer, free_port, problem, until

from storage.conftest import Define
from storage.events import TIME, delegated, event
from storage.fault_proxy import fault_proxy
from storage.files import MIB
from storage.servers import SECRET_KEY, S3Server

JPEG = {"Content-Type": "image/jpeg"}
COPY = 'cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/copy.bin"'
TWO = 'cd "$TMP_OUTPUT_DIR"; echo one > a.txt; mkdir -p deep; echo two > deep/b.png'
# Prints each value that a script gets on its own line.
TELL = (
    'printf "%s\\n" "$INPUT_FILE_PATH" "$STORAGE_OBJECT_KEY" "$EVENT_TIME" "$EVENT"; '
    '[ -z "$INPUT_FILE_PATH" ] || cat "$INPUT_FILE_PATH"'
)


def started(start_server: StartServer, script: str, definition: str, **options: Any) -> RunningServer:
    environ = {"WATCHDOG_SERVICE_DEFINITION": definition, "WATCHDOG_STORAGE_TIMEOUT": "10"}
    return start_server(script, **(environ | options))


# Outputs


def test_outputs_are_stored_and_the_answer_is_the_same(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    with_storage = started(start_server, TWO, define())
    without = start_server(TWO)
    for headers in ({}, {"Accept": "application/json"}, {"Accept": "application/zip"}):
        answers = [server.call(b"x", headers=JPEG | headers) for server in (with_storage, without)]
        assert [answer.status for answer in answers] == [200, 200]
        if "json" in headers.get("Accept", ""):
            with_storage_outputs, outputs = (answer.json["outputs"] for answer in answers)
            assert with_storage_outputs == outputs
        else:
            assert len(answers[0].body) == len(answers[1].body)
    assert bucket_server.objects(f"{place}/out") == {"a.txt": b"one\n", "deep/b.png": b"two\n"}
    stored = with_storage.event("outputs stored")
    assert (stored["files"], stored["size_bytes"]) == (2, 8)


def test_prefix_and_suffix_choose(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    output = [
        {"storage_provider": "minio.default", "path": f"{place}/png", "suffix": [".png"]},
        {"storage_provider": "minio.default", "path": f"/{place}/deep/", "prefix": ["deep/", "x"]},
        {"storage_provider": "minio", "path": f"{place}/all"},
    ]
    server = started(start_server, TWO, define(output=output))
    assert server.call(b"x").status == 400  # the script does not run for an object that is not an input
    assert bucket_server.objects(place) == {}
    assert server.call(b"eA==").status == 200
    assert bucket_server.objects(place) == {
        "png/deep/b.png": b"two\n",
        "deep/deep/b.png": b"two\n",
        "all/a.txt": b"one\n",
        "all/deep/b.png": b"two\n",
    }


def test_nothing_is_stored_of_a_script_that_failed(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    server = started(start_server, TWO + "; exit 3", define())
    assert problem(server.call(), 500)["exit_code"] == 3
    assert bucket_server.objects(place) == {}


def test_what_is_printed_is_answered_and_not_stored(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    server = started(start_server, "echo hello", define())
    assert server.call().body == b"hello\n"
    assert bucket_server.objects(place) == {}
    server.event("no output to store")


def test_many_outputs(start_server: StartServer, define: Define, bucket_server: S3Server, place: str) -> None:
    script = 'cd "$TMP_OUTPUT_DIR"; i=0; while [ $i -lt 200 ]; do echo $i > f$i; i=$((i+1)); done'
    server = started(start_server, script, define())
    assert server.call().status == 200
    assert bucket_server.objects(f"{place}/out") == {f"f{i}": f"{i}\n".encode() for i in range(200)}


def test_an_output_that_cannot_be_stored_is_502_that_names_both(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    """The other outputs are stored."""
    output = [
        {"storage_provider": "minio.default", "path": f"{place}/out"},
        {"storage_provider": "minio.default", "path": "no-such-bucket/out", "suffix": [".png"]},
    ]
    server = started(start_server, TWO, define(output=output))
    document: dict[str, Any] = problem(server.call(), 502)
    assert document["title"] == "Outputs not stored"
    assert sorted(document["stored"]) == [f"minio.default:{place}/out/{name}" for name in ("a.txt", "deep/b.png")]
    (where, reason), *others = document["not_stored"].items()
    assert others == []
    assert where == "minio.default:no-such-bucket/out/deep/b.png"
    assert "there is no such bucket" in reason
    assert "1 of 3 outputs could not be stored" in str(document["detail"])
    assert document["exit_code"] == 0
    assert bucket_server.objects(f"{place}/out").keys() == {"a.txt", "deep/b.png"}
    assert server.event("output not stored")["target"] == where
    assert server.event("invocation ended")["outcome"] == "store_failed"


def test_a_name_that_no_storage_takes(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    script = 'cd "$TMP_OUTPUT_DIR"; echo 1 > good; for i in 1 2 3 4 5 6 7 8 9; do : > "$(printf "b\\377$i")"; done'
    server = started(start_server, script, define())
    document: dict[str, Any] = problem(server.call(), 502)
    assert len(document["stored"]) == 1
    for number in range(1, 10):
        reason = document["not_stored"][f"minio.default:{place}/out/b\\xff{number}"]
        assert "its name is not UTF-8" in reason
    assert bucket_server.objects(f"{place}/out") == {"good": b"1\n"}


@pytest.mark.parametrize("kind", ["minio", "webdav"])
def test_a_storage_that_is_gone_is_given_up_in_bounded_time(
    start_server: StartServer, define: Define, kind: str
) -> None:
    """The time limit is not used for each of a thousand files again."""
    script = 'cd "$TMP_OUTPUT_DIR"; i=0; while [ $i -lt 1000 ]; do : > f$i; i=$((i+1)); done'
    definition = define(endpoint="http://127.0.0.1:9")
    if kind == "webdav":
        definition = define(
            storage_providers={"webdav": {"default": {"hostname": "http://127.0.0.1:9"}}},
            input=None,
            output=[{"storage_provider": "webdav", "path": "out"}],
        )
    server = started(start_server, script, definition, WATCHDOG_STORAGE_TIMEOUT="1")
    document: dict[str, Any] = problem(server.call(), 502)
    assert document["stored"] == []
    assert len(document["not_stored"]) == 1000
    reasons = list(document["not_stored"].values())
    assert sum("cannot be reached" in reason for reason in reasons) < 40
    assert sum("not tried, after 8 failures" in reason for reason in reasons) > 960


# Events


def test_an_event_stands_for_its_object(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    server = started(start_server, TELL, define())
    key = f"{place}/in/a b+é.jpg"
    bucket_server.put(key, b"the object")
    body = event(key)
    answer = server.call(body)
    assert answer.status == 200
    path, object_key, time, told, content = answer.body.split(b"\n", 4)
    assert os.path.basename(path.decode()) == "a b+é.jpg"
    assert object_key.decode() == key.partition("/")[2]
    assert time.decode() == TIME
    assert told == body, "byte for byte"
    assert content == b"the object"
    fetched = server.event("input fetched")
    assert fetched["source"] == f"minio.default:{key}"
    assert server.event("invocation ended")["input_bytes"] == len(b"the object")


@pytest.mark.parametrize("provider", ["minio.default", "default"])
@pytest.mark.parametrize("source", ["minio:s3", "aws:s3", "ceph:s3"])
def test_delegated_events_of_all_sources(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str, provider: str, source: str
) -> None:
    server = started(start_server, COPY, define())
    bucket_server.put(f"{place}/in/x y", b"object")
    assert server.call(delegated(event(f"{place}/in/x y", source=source), provider)).status == 200
    assert bucket_server.objects(f"{place}/out") == {"copy.bin": b"object"}


def test_a_cloud_event_of_s3(start_server: StartServer, define: Define, bucket_server: S3Server, place: str) -> None:
    server = started(start_server, 'cat "$INPUT_FILE_PATH"; echo " $CE_ID"', define())
    bucket_server.put(f"{place}/in/x", b"object")
    record = json.loads(event(f"{place}/in/x", source="aws:s3"))["Records"][0]
    attributes = {"specversion": "1.0", "id": "7", "source": "aws:s3", "type": "com.amazonaws.s3.ObjectCreated:Put"}
    headers = {f"Ce-{name}": value for name, value in attributes.items()} | {"Content-Type": "application/json"}
    assert server.call(json.dumps(record).encode(), headers=headers).body == b"object 7\n"
    structured = json.dumps(attributes | {"data": record}).encode()
    answer = server.call(structured, headers={"Content-Type": "application/cloudevents+json"})
    assert answer.body == b"object \n"


def test_all_records_are_processed(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    script = 'cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/"; printf "%s\\n" "$STORAGE_OBJECT_KEY" "$EVENT"'
    server = started(start_server, script, define())
    names = [f"{place}/in/{number}" for number in range(3)]
    for name in names:
        bucket_server.put(name, name.encode())
    answer = server.call(event(*names), headers={"Accept": "application/json"})
    assert [output["name"] for output in answer.json["outputs"]] == ["1/0", "2/1", "3/2"]
    assert bucket_server.objects(f"{place}/out") == {str(number): name.encode() for number, name in enumerate(names)}
    lines = answer.json["stdout"].splitlines()
    assert lines[0::2] == [name.partition("/")[2] for name in names]
    assert [len(json.loads(line)["Records"]) for line in lines[1::2]] == [1, 1, 1]
    assert json.loads(lines[3])["Records"][0]["s3"]["object"]["key"].endswith("1")
    until(lambda: not server.leftovers_of_calls(), "the workspaces to be removed")


def test_records_of_a_running_call_continue_in_a_drain_of_a_warm_function(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = f"""#!/bin/bash
echo "ready sh" >&4
while IFS= read -r call <&3; do eval "export $call"
  case $STORAGE_OBJECT_KEY in */0) touch {tmp_path}/up; read -r < {gate} ;; esac
  cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/"
  echo "done $?" >&4
done
"""
    server = start_server(
        script,
        WATCHDOG_SERVICE_DEFINITION=define(),
        WATCHDOG_WARM="1",
        WATCHDOG_WARM_MAX_MEMORY="1G",
        WATCHDOG_HEALTHCHECK_INTERVAL="0",
    )
    names = [f"{place}/in/{number}" for number in range(3)]
    for name in names:
        bucket_server.put(name, name.encode())
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.call, event(*names))
        until((tmp_path / "up").exists, "the first record")
        server.signal(signal.SIGTERM)
        until(server.refuses_connections, "the server to take no more connections")
        gate.write_text("go\n")
        assert answer.result().status == 200, answer.result().body
    assert bucket_server.objects(f"{place}/out") == {str(number): name.encode() for number, name in enumerate(names)}
    assert server.wait() == 0


def test_each_record_may_wait_for_the_whole_queue_timeout_of_a_warm_function(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    """Each record waits for a load of two seconds, so all of them together wait for longer than the limit."""
    script = """#!/bin/bash
sleep 2
echo "ready sh" >&4
while IFS= read -r call <&3; do eval "export $call"; echo "done 0" >&4; done
"""
    server = start_server(
        script,
        WATCHDOG_SERVICE_DEFINITION=define(output=None),
        WATCHDOG_WARM="1",
        WATCHDOG_WARM_MAX_CALLS="1",
        WATCHDOG_QUEUE_TIMEOUT="10",
    )
    names = [f"{place}/in/{number}" for number in range(7)]
    for name in names:
        bucket_server.put(name, b"x")
    assert server.call(event(*names)).status == 200
    assert float(str(server.event("invocation ended")["queue_wait_s"])) > 10


def test_a_warning_of_several_runs_is_in_the_answer_once(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    names = [f"{place}/in/{number}" for number in range(3)]
    for name in names:
        bucket_server.put(name, b"data")
    answer = started(start_server, "true", define()).call(event(*names), headers={"Accept": "application/json"})
    assert [warning["name"] for warning in answer.json["warnings"]] == ["no-output"]


# A server whose limit for the outputs of one call is lower than its limit for the outputs of one run.
FEW_OUTPUTS = """
from watchdog.invocation import outputs
replace(outputs, "MOST_OUTPUTS", 5)
"""


@pytest.mark.guard("outputs-of-all-runs")
def test_all_runs_of_a_call_together_may_have_so_many_outputs(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str, removed_guard: str | None
) -> None:
    program = changed_program(FEW_OUTPUTS, removed_guard)
    server = start_server(
        'touch "$TMP_OUTPUT_DIR/a" "$TMP_OUTPUT_DIR/b"',
        program=program,
        WATCHDOG_SERVICE_DEFINITION=define(output=None),
    )
    names = [f"{place}/in/{number}" for number in range(3)]
    for name in names:
        bucket_server.put(name, b"x")
    assert server.call(event(*names[:2])).status == 200
    document = problem(server.call(event(*names)), 500)
    assert "object 3 of 3" in str(document["detail"])
    assert "all runs of this call left 6 outputs, over 5" in str(document["detail"])


@pytest.mark.parametrize(
    ("script", "is_answered"),
    [
        ('head -c 600 /dev/zero >"$TMP_OUTPUT_DIR/x"', False),
        ("head -c 600 /dev/zero", False),
        # The output of one run is the answer, so the stdout of both runs is not.
        ('head -c 600 /dev/zero; case $STORAGE_OBJECT_KEY in */0) echo x >"$TMP_OUTPUT_DIR/x" ;; esac', True),
        ('head -c 600 /dev/zero; case $STORAGE_OBJECT_KEY in */1) echo x >"$TMP_OUTPUT_DIR/x" ;; esac', True),
    ],
)
def test_max_output_size_is_for_all_runs_of_a_call_together(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str, script: str, is_answered: bool
) -> None:
    server = started(start_server, script, define(output=None), WATCHDOG_MAX_OUTPUT_SIZE="1000")
    names = [f"{place}/in/{number}" for number in range(2)]
    for name in names:
        bucket_server.put(name, b"x")
    assert server.call(event(names[0])).status == 200
    answer = server.call(event(*names))
    if is_answered:
        assert answer.status == 200
    else:
        assert "over 1000 bytes (max_output_size)" in str(problem(answer, 500)["detail"])


def test_a_run_that_printed_too_much_and_failed_does_not_fail_the_next_one(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    script = "case $STORAGE_OBJECT_KEY in */0) head -c 2000 /dev/zero; exit 3 ;; esac"
    server = started(start_server, script, define(output=None), WATCHDOG_MAX_OUTPUT_SIZE="1000")
    names = [f"{place}/in/{number}" for number in range(2)]
    for name in names:
        bucket_server.put(name, b"x")
    document = problem(server.call(event(*names)), 500)
    assert document["exit_code"] == 3
    assert "of 2 objects failed" not in str(document["detail"])


def test_runs_of_a_call_share_a_descriptor_and_leave_nothing_when_they_fail(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str, tmp_path: Path
) -> None:
    up, gate = tmp_path / "up", tmp_path / "gate"
    os.mkfifo(gate)
    script = f"""
head -c 70000 /dev/zero
case $STORAGE_OBJECT_KEY in
*/0) exit 1 ;;
*/2) touch {up}; read -r line < {gate} ;;
esac
"""
    server = started(start_server, script, define(output=None))
    names = [f"{place}/in/{number}" for number in range(3)]
    for name in names:
        bucket_server.put(name, b"x")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.call, event(*names))
        until(up.exists, "the last run")
        files = nameless_files(server)
        directories = server.leftovers_of_calls()
        gate.write_text("go on\n")
        assert "object 1 of 3" in str(problem(answer.result(), 500)["detail"])
    assert len(files) == 1  # the stdout of all runs
    assert len(directories) == 1  # that of the last run


def nameless_files(server: RunningServer) -> list[str]:
    found = []
    for fd in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(fd))
    return [name for name in found if name.startswith(str(server.tmp)) and name.endswith("(deleted)")]


def test_a_record_that_fails_does_not_keep_the_others_from_running(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    server = started(
        start_server, 'case $INPUT_FILE_PATH in */1) exit 7;; esac; cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/"', define()
    )
    names = [f"{place}/in/{number}" for number in range(3)]
    for name in names:
        bucket_server.put(name, b"x")
    document = problem(server.call(event(*names)), 500)
    assert document["exit_code"] == 7
    assert f"object 2 of 3, minio.default:{place}/in/1: the script ended with exit code 7" in str(document["detail"])
    assert bucket_server.objects(f"{place}/out").keys() == {"0", "2"}


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_an_object_that_is_gone_does_not_keep_the_others_from_running(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str, gone: int
) -> None:
    """The sender of an event that is answered 422 does not send it again. The other objects would be lost."""
    server = started(start_server, 'cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/"', define())
    names = [f"{place}/in/{number}" for number in range(3)]
    for number, name in enumerate(names):
        if number != gone:
            bucket_server.put(name, b"x")
    document = problem(server.call(event(*names)), 422)
    assert f"object {gone + 1} of 3, minio.default:{names[gone]}: " in str(document["detail"])
    assert bucket_server.objects(f"{place}/out").keys() == {"0", "1", "2"} - {str(gone)}
    until(lambda: not server.leftovers_of_calls(), "the workspaces to be removed")


def test_without_a_storage_provider_an_event_is_data(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    bucket_server.put(f"{place}/in/x", b"object")
    fields = {"storage_providers": None, "input": None, "output": None}
    server = started(start_server, 'cat "$INPUT_FILE_PATH"', define(**fields))
    body = event(f"{place}/in/x")
    assert server.call(body).body == body


def test_input_raw_makes_an_event_data(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    bucket_server.put(f"{place}/in/x", b"object")
    server = started(start_server, 'cat "$INPUT_FILE_PATH"', define())
    body = event(f"{place}/in/x")
    assert server.call(body).body == b"object"
    assert server.call(body, "/?input=raw").body == body


def test_envelopes_of_jobs_are_data(start_server: StartServer, define: Define) -> None:
    server = started(start_server, 'cat "$INPUT_FILE_PATH"', define())
    gateway = json.dumps({"httpMethod": "POST", "body": "eA==", "headers": {}, "requestContext": {}}).encode()
    for body in (gateway, delegated(b'{"a": 1}')):
        assert server.call(body).body == body


def test_file_stage_in_fetches_nothing_and_keeps_the_body(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    server = started(start_server, TELL, define(file_stage_in=True))
    answer = server.call(event(f"{place}/in/not-there"))
    path, key, *_ = answer.body.split(b"\n")
    assert path == b""
    assert key.endswith(b"/in/not-there")
    assert server.call(base64.b64encode(b"a body")).body.endswith(b"\na body")


def test_a_missing_object_is_422(start_server: StartServer, define: Define, place: str) -> None:
    server = started(start_server, COPY, define())
    document = problem(server.call(event(f"{place}/in/gone")), 422)
    assert f"GET of {place}/in/gone with 404, NoSuchKey: there is no such object" in str(document["detail"])
    assert server.event("invocation ended")["outcome"] == "no_object"


def test_a_storage_that_cannot_be_reached_is_502(start_server: StartServer, define: Define, place: str) -> None:
    server = started(start_server, COPY, define(endpoint="http://127.0.0.1:9"), WATCHDOG_STORAGE_TIMEOUT="1")
    document = problem(server.call(event(f"{place}/in/x")), 502)
    assert document["title"] == "Input not fetched"
    assert "cannot be reached" in str(document["detail"])
    until(lambda: not server.leftovers_of_calls(), "the workspace to be removed")


def test_an_object_over_the_limit_is_413(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    bucket_server.put(f"{place}/in/large", bytes(2000))
    server = started(start_server, COPY, define(), WATCHDOG_MAX_INPUT_SIZE="1999")
    problem(server.call(event(f"{place}/in/large")), 413)


# Secrets


def test_no_secret_is_shown(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str, tmp_path: Path
) -> None:
    """No secret is in the log, an answer, the script's environment or `check`, also not in errors."""
    bucket_server.put(f"{place}/in/x", b"object")
    definition = Path(define())
    encoded = base64.b64encode(definition.read_bytes()).decode()
    told = []
    for provider in ({}, {"secret_key": SECRET_KEY + "x"}):
        definition = Path(define(provider=provider))
        server = start_server(
            "env",
            WATCHDOG_LOG_LEVEL="DEBUG",
            WATCHDOG_SERVICE_DEFINITION=str(definition),
            FUNCTION_CONFIG=encoded,
        )
        told += [server.call(event(f"{place}/in/x")).body, server.call(b"eA==").body]
        assert server.stop() == 0
        told.append(json.dumps(server.logs).encode())
    assert all(text for text in told)
    for secret in (SECRET_KEY, bucket_server.access_key, encoded[:40]):
        assert not [text for text in told if secret.encode() in text]


# Metrics


def test_transfers_are_counted(start_server: StartServer, define: Define, bucket_server: S3Server, place: str) -> None:
    bucket_server.put(f"{place}/in/x", b"12345")
    metrics_port = free_port()
    server = started(start_server, COPY, define(), WATCHDOG_METRICS_PORT=str(metrics_port))
    assert server.call(event(f"{place}/in/x")).status == 200
    assert server.call(event(f"{place}/in/y")).status == 422
    text = server.call(None, "/metrics", "GET", port=metrics_port).body.decode()
    for line in (
        'watchdog_transfers_total{direction="fetch",outcome="ok",provider="minio.default"} 1.0',
        'watchdog_transfers_total{direction="fetch",outcome="failed",provider="minio.default"} 1.0',
        'watchdog_transfers_total{direction="fetch",outcome="cancelled",provider="minio.default"} 0.0',
        'watchdog_transfers_total{direction="store",outcome="ok",provider="minio.default"} 1.0',
        'watchdog_transfer_bytes_total{direction="store",provider="minio.default"} 5.0',
    ):
        assert line in text


# Callers and stops


async def test_a_caller_that_leaves_ends_the_fetch(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    bucket_server.put(f"{place}/in/large", bytes(8 * MIB))
    async with fault_proxy(bucket_server.endpoint, stall_response_at=MIB) as proxy:
        server = started(start_server, COPY, define(endpoint=proxy.endpoint), WATCHDOG_STORAGE_TIMEOUT="60")
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=server.patience_s)
        await asyncio.to_thread(connection.request, "POST", "/", event(f"{place}/in/large"))
        await asyncio.wait_for(proxy.standing_still.wait(), RunningServer.patience_s)
        connection.close()
        ended = await asyncio.to_thread(server.event, "invocation ended")
        assert ended["outcome"] == "caller_gone"
        await asyncio.to_thread(until, lambda: not server.leftovers_of_calls(), "the workspace to be removed")


async def test_a_drain_rejects_calls_that_still_fetch_their_input(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    bucket_server.put(f"{place}/in/large", bytes(8 * MIB))
    async with fault_proxy(bucket_server.endpoint, stall_response_at=MIB) as proxy:
        server = started(start_server, COPY, define(endpoint=proxy.endpoint), WATCHDOG_STORAGE_TIMEOUT="60")
        calling = asyncio.create_task(asyncio.to_thread(server.call, event(f"{place}/in/large")))
        await asyncio.wait_for(proxy.standing_still.wait(), RunningServer.patience_s)
        server.signal(signal.SIGTERM)
        answer = await calling
        problem(answer, 503)
        assert await asyncio.to_thread(server.wait) == 0
        assert server.leftovers() == []


async def test_a_drain_lets_outputs_be_stored(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    async with fault_proxy(bucket_server.endpoint, bytes_per_s=2 * MIB) as proxy:
        server = started(start_server, COPY, define(endpoint=proxy.endpoint), WATCHDOG_STORAGE_TIMEOUT="60")
        calling = asyncio.create_task(asyncio.to_thread(server.call, bytes(4 * MIB), headers=JPEG))
        await asyncio.to_thread(until, lambda: proxy.count("PUT"), "the upload to begin")
        server.signal(signal.SIGTERM)
        assert (await calling).status == 200
        assert await asyncio.to_thread(server.wait) == 0
        assert len(bucket_server.objects(f"{place}/out")["copy.bin"]) == 4 * MIB


async def test_a_drain_ends_an_upload_that_stands_still(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    """The upload ends after `write_timeout`, and nothing of it is left. There is time for that without `kill_grace`."""
    cleanup_s = 60.0  # much longer than in the program, because the machine may be busy
    program = changed_program(f"from watchdog.storage import base; base.CLEANUP_S = {cleanup_s}", None)
    async with fault_proxy(
        bucket_server.endpoint, applies=lambda seen: "partNumber=2" in seen.path, stall_request_at=MIB
    ) as proxy:
        server = started(
            start_server,
            COPY,
            define(endpoint=proxy.endpoint),
            program=program,
            WATCHDOG_STORAGE_TIMEOUT="60",
            WATCHDOG_WRITE_TIMEOUT="1",
            WATCHDOG_KILL_GRACE="0",
        )
        calling = asyncio.create_task(asyncio.to_thread(server.call, bytes(12 * MIB), headers=JPEG))
        await asyncio.wait_for(proxy.standing_still.wait(), RunningServer.patience_s)
        server.signal(signal.SIGTERM)
        await asyncio.to_thread(server.event, "draining", longest_s=cleanup_s + 4)
        problem(await calling, 503)
        assert await asyncio.to_thread(server.wait) == 0
        assert any("uploadId" in seen.path for seen in proxy.requests if seen.method == "DELETE")
    assert bucket_server.objects(place) == {}
    assert server.leftovers() == []


async def test_a_slow_storage_does_not_let_calls_pile_up(
    start_server: StartServer, define: Define, bucket_server: S3Server, place: str
) -> None:
    """A call that stores outputs has given its place back, but still counts. Otherwise files would fill the disk."""
    async with fault_proxy(bucket_server.endpoint, applies=lambda seen: seen.method == "PUT", is_silent=True) as proxy:
        server = started(
            start_server,
            COPY,
            define(endpoint=proxy.endpoint),
            WATCHDOG_STORAGE_TIMEOUT="30",
            WATCHDOG_MAX_INFLIGHT="1",
            WATCHDOG_MAX_QUEUE="1",
        )
        threads = []

        def call() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):  # the server is killed at the end
                server.call(b"eA==")

        for _ in range(2):
            already = proxy.count("PUT")
            threads.append(threading.Thread(target=call, daemon=True))
            threads[-1].start()
            await asyncio.to_thread(until, lambda: proxy.count("PUT") > already, "the upload to begin")  # noqa: B023
        problem(await asyncio.to_thread(server.call, b"eA=="), 429)
        server.kill()
        for thread in threads:
            await asyncio.to_thread(thread.join)
