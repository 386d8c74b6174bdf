"""`watchdog job`, also called `supervisor`, runs the script for one event, without a caller."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from counted_checks import CountedChecks
from guards import changed_program
from running_server import RunningServer, read_terminal
from template import Template, can_fork, read_at_start

from storage.certificates import make_certificates
from storage.conftest import Define
from storage.events import (
    CONFIRMATION,
    TEST_EVENT,
    TIME,
    delegated,
    event,
    event_bridge,
    event_of,
    lambda_of_sqs,
    record,
)
from storage.fault_proxy import fault_proxy
from storage.files import MIB
from storage.servers import SECRET_KEY, S3Server, rclone_s3
from storage.webdav_servers import rclone_webdav

SUPERVISOR = Path(sys.executable).parent / "supervisor"
COPY = 'cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/"; echo "$STORAGE_OBJECT_KEY"'
SHELLS = [shell for shell in (("dash",), ("bash",), ("busybox", "sh")) if shutil.which(shell[0])]


@dataclass(frozen=True)
class Done:
    """A job that has ended; ``logs``: its events."""

    code: int
    out: bytes
    err: str

    @property
    def logs(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.err.splitlines() if line.startswith("{")]


Job = Callable[..., Done]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tmp").mkdir()
    # A job cannot be forked if what the interpreter reads is not what the template has.
    return read_at_start(os.environ) | {
        "PATH": f"{SUPERVISOR.parent}:/usr/bin:/bin",
        "TMPDIR": str(tmp_path / "tmp"),
        "WATCHDOG_SCRIPT_PATH": str(tmp_path / "script.sh"),
        "WATCHDOG_STORAGE_TIMEOUT": "10",
    }


@pytest.fixture
def job(tmp_path: Path, environ: dict[str, str], template_process: Template) -> Iterator[Job]:
    """Run a job to its end. ``shell``: the command of a shell that starts the job and gives it the event."""

    def run(
        script: str, definition: str | None, stdin: bytes = b"", shell: list[str] | None = None, **more: str
    ) -> Done:
        (tmp_path / "script.sh").write_text(script)
        known = {"WATCHDOG_SERVICE_DEFINITION": definition} if definition else {}
        variables = environ | known | more
        if shell is None and can_fork(variables):
            done = template_process.run([str(SUPERVISOR)], variables, tmp_path, stdin, timeout_s=50)
        else:
            done = subprocess.run(
                shell or [str(SUPERVISOR)], input=stdin, env=variables, cwd=tmp_path, capture_output=True, timeout=50
            )
        return Done(done.returncode, done.stdout, done.stderr.decode())

    yield run
    assert list((tmp_path / "tmp").iterdir()) == [], "something was left behind"


def test_an_object_goes_in_and_outputs_come_out(job: Job, define: Define, bucket_server: S3Server, place: str) -> None:
    bucket_server.put(f"{place}/in/a b.jpg", b"a photo")
    done = job(COPY, define(), event(f"{place}/in/a b.jpg"))
    assert done.code == 0
    assert done.out.decode() == f"{place.partition('/')[2]}/in/a b.jpg\n", "what the script printed"
    assert bucket_server.objects(f"{place}/out") == {"a b.jpg": b"a photo"}
    assert [line["event"] for line in done.logs if line["logger"] != "script"] == [
        "input fetched",
        "outputs stored",
        "invocation ended",
    ]


@pytest.mark.guard("linger")
def test_an_output_that_is_still_written_at_the_exit_is_stored_whole(
    job: Job,
    define: Define,
    bucket_server: S3Server,
    place: str,
    removed_guard: str | None,
    tmp_path: Path,
    checks: CountedChecks,
) -> None:
    (tmp_path / "worker.py").write_text(checks.awaiting + "await_checks()\nprint('whole', end='')\n")
    bucket_server.put(f"{place}/in/x", b"object")
    script = f'{sys.executable} -S {tmp_path}/worker.py > "$TMP_OUTPUT_DIR/out" &'
    counting = [sys.executable, *checks.program(removed_guard), "job"]
    done = job(script, define(), event(f"{place}/in/x"), counting, WATCHDOG_LINGER_TIMEOUT="300")
    assert done.code == 0
    assert bucket_server.objects(f"{place}/out") == {"out": b"whole"}


@pytest.mark.parametrize(
    "encode", [lambda text: text, base64.b64encode, base64.urlsafe_b64encode], ids=["plain", "base64", "url-safe"]
)
@pytest.mark.parametrize("by", ["stdin", "variable"])
def test_the_event_comes_by_stdin_or_variable(
    job: Job, define: Define, bucket_server: S3Server, place: str, by: str, encode: Callable[[bytes], bytes]
) -> None:
    bucket_server.put(f"{place}/in/x", b"object")
    text = encode(event(f"{place}/in/x"))
    done = job(COPY, define(), text) if by == "stdin" else job(COPY, define(), EVENT=text.decode())
    assert done.code == 0
    assert bucket_server.objects(f"{place}/out") == {"x": b"object"}


@pytest.mark.parametrize("shell", SHELLS, ids=lambda words: words[0])
def test_oscars_echo_without_quotes(
    job: Job, define: Define, bucket_server: S3Server, place: str, shell: tuple[str, ...], tmp_path: Path
) -> None:
    """The shell changes white space, patterns and backslashes, but the script gets the original event."""
    key = f"{place}/in/two  spaces * and \\n and ?.txt"
    bucket_server.put(key, b"object")
    body = json.dumps(json.loads(event(key)) | {"note": 'two  spaces, a * , "quotes", \\n'}, indent=1)
    (tmp_path / "a.txt").touch()
    done = job(
        'printf "%s" "$EVENT" > "$TMP_OUTPUT_DIR/event"', define(), EVENT=body,
        shell=[*shell, "-c", "echo $EVENT | supervisor"],
    )  # fmt: skip
    assert done.code == 0, done.err
    assert bucket_server.objects(f"{place}/out") == {"event": body.encode()}


def test_interlink_decodes_in_the_pipe(job: Job, define: Define, bucket_server: S3Server, place: str) -> None:
    bucket_server.put(f"{place}/in/x", b"object")
    encoded = base64.b64encode(event(f"{place}/in/x")).decode()
    done = job(COPY, define(), EVENT=encoded, shell=["sh", "-c", "echo $EVENT | base64 -d | supervisor"])
    assert done.code == 0
    assert bucket_server.objects(f"{place}/out") == {"x": b"object"}


def test_all_records(job: Job, define: Define, bucket_server: S3Server, place: str) -> None:
    names = [f"{place}/in/{number}" for number in range(3)]
    for name in names:
        bucket_server.put(name, name.encode())
    done = job(COPY, define(), event(*names))
    assert done.code == 0
    assert done.out.decode().split() == [name.partition("/")[2] for name in names]
    assert bucket_server.objects(f"{place}/out") == {str(number): name.encode() for number, name in enumerate(names)}


def test_all_records_go_through_one_load_of_a_warm_worker(
    job: Job, define: Define, bucket_server: S3Server, place: str
) -> None:
    names = [f"{place}/in/{number}" for number in range(3)]
    for name in names:
        bucket_server.put(name, name.encode())
    script = f"""#!/bin/bash
echo "it loads" >&2
echo "ready sh" >&4
while IFS= read -r call <&3; do eval "export $call"
  {COPY}
  echo "done $?" >&4
done
"""
    done = job(script, define(), event(*names), WATCHDOG_WARM="2")
    assert done.code == 0
    assert done.out.decode().split() == [name.partition("/")[2] for name in names]
    assert bucket_server.objects(f"{place}/out") == {str(number): name.encode() for number, name in enumerate(names)}
    assert [line["event"] for line in done.logs].count("it loads") == 1


@pytest.mark.parametrize("provider", ["minio.default", "default", "minio"])
def test_delegated(job: Job, define: Define, bucket_server: S3Server, place: str, provider: str) -> None:
    bucket_server.put(f"{place}/in/x", b"object")
    assert job(COPY, define(), delegated(event(f"{place}/in/x"), provider)).code == 0
    assert bucket_server.objects(f"{place}/out") == {"x": b"object"}


def test_delegated_data_is_the_input(job: Job, define: Define, bucket_server: S3Server, place: str) -> None:
    done = job('cat "$INPUT_FILE_PATH"', define(), delegated(base64.b64encode(b"some bytes")))
    assert (done.code, done.out) == (0, b"some bytes")


def test_an_api_gateway(job: Job, define: Define) -> None:
    body = {"httpMethod": "POST", "headers": {}, "body": base64.b64encode(b"data").decode()}
    gateway = body | {"isBase64Encoded": False, "queryStringParameters": {"size": "3", "Na me": "x"}}
    done = job('echo "$CONT_VAR_size"; cat "$INPUT_FILE_PATH"', define(), json.dumps(gateway).encode())
    assert (done.code, done.out) == (0, b"3\ndata")


@pytest.mark.parametrize(
    ("body", "is_base64", "the_input"),
    [
        ("aGVsbA==", True, b"hell"),
        (base64.b64encode(b"aGVsbG8=").decode(), True, b"aGVsbG8="),
        ("aGVsbG8=", False, b"hello"),
        ("a plain text", False, b"a plain text"),
        ("a=1&b=+", False, b"a=1&b=+"),
        ('{"a": 1}', False, b'{"a": 1}'),
    ],
)
def test_the_body_of_an_api_gateway_is_decoded_once(
    job: Job, define: Define, body: str, is_base64: bool, the_input: bytes
) -> None:
    gateway = {"httpMethod": "POST", "headers": {}, "body": body, "isBase64Encoded": is_base64}
    done = job('cat "$INPUT_FILE_PATH"', define(), json.dumps(gateway).encode())
    assert (done.code, done.out) == (0, the_input)


def test_dcache(job: Job, define: Define, tmp_path: Path) -> None:
    with rclone_webdav(tmp_path / "dcache") as server:
        (server.root / "in").mkdir()
        (server.root / "in" / "image 2.jpg").write_bytes(b"image")
        definition = define(**server.definition("/in", "/out/deep"))
        told = {"event": {"name": "image 2.jpg", "mask": ["IN_CREATE"]}, "subscription": "https://dcache/x"}
        assert job(COPY, definition, json.dumps(told).encode()).code == 0
        assert (server.root / "out/deep/image 2.jpg").read_bytes() == b"image"
        told["event"] = {"name": "../secret", "mask": []}
        done = job(COPY, definition, json.dumps(told).encode())
        assert done.code == 66
        assert "leads out of its folder" in done.err


def test_unknown_json_is_the_input_itself(job: Job, define: Define, bucket_server: S3Server, place: str) -> None:
    text = b'{"event": 1,  "a": 1, "a": 1e400, "httpMethod": "x"}\n'
    done = job('cat "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/copy"', define(), text)
    assert done.code == 0
    assert base64.b64decode(done.out) == text, "the answer that a caller would get"
    assert bucket_server.objects(f"{place}/out") == {"copy": text}


def test_base64_is_its_bytes(job: Job) -> None:
    data = os.urandom(3 * MIB)
    done = job('cat "$INPUT_FILE_PATH"', None, base64.b64encode(data))
    assert (done.code, done.out) == (0, data)


def test_file_stage_in(job: Job, define: Define, place: str) -> None:
    script = 'echo "${INPUT_FILE_PATH-unset} $STORAGE_OBJECT_KEY $EVENT_TIME"'
    done = job(script, define(file_stage_in=True), event(f"{place}/in/not-there"))
    assert done.code == 0
    assert done.out.decode().split() == ["unset", f"{place.partition('/')[2]}/in/not-there", TIME]


def test_an_event_that_no_variable_can_carry(job: Job, define: Define, bucket_server: S3Server, place: str) -> None:
    bucket_server.put(f"{place}/in/x", b"object")
    long = json.dumps(json.loads(event(f"{place}/in/x")) | {"note": "x" * 200_000}).encode()
    done = job('echo "<$EVENT>"', define(), long)
    assert (done.code, done.out) == (0, b"<>\n")
    assert "too long for a variable" in done.err


# Events that do not run the script


@pytest.mark.parametrize(
    ("where", "about", "part"),
    [
        ("in/x", {"name": "s3:ObjectRemoved:Delete"}, "s3:ObjectRemoved:Delete is not the creation of an object"),
        ("in/folder/", {"size": 0}, "it is an empty object that marks a folder"),
        ("out/x", {}, "no input of the service definition covers it"),
    ],
)
def test_a_job_that_has_nothing_to_do_ends_with_0(
    job: Job, define: Define, bucket_server: S3Server, place: str, where: str, about: dict[str, Any], part: str
) -> None:
    done = job("echo ran; exit 3", define(), event(f"{place}/{where}", **about))
    assert (done.code, done.out) == (0, b"")
    assert done.logs[-1]["outcome"] == "skipped"
    assert part in done.logs[-1]["reason"]
    assert done.logs[0]["level"] == ("warning" if where == "out/x" else "info")
    assert done.logs[0]["call_id"] == "job"


@pytest.mark.parametrize("message", [TEST_EVENT, lambda_of_sqs(TEST_EVENT), CONFIRMATION])
def test_a_job_with_a_message_that_reports_no_object_ends_with_0(job: Job, define: Define, message: bytes) -> None:
    for definition in (define(), None):
        done = job("echo ran; exit 3", definition, message)
        assert (done.code, done.out, done.logs[-1]["outcome"]) == (0, b"", "skipped")


def test_a_job_of_several_wrapped_events(job: Job, define: Define, bucket_server: S3Server, place: str) -> None:
    for name in ("1", "2"):
        bucket_server.put(f"{place}/in/{name}", name.encode())
    body = lambda_of_sqs(event(f"{place}/in/1", source="aws:s3"), TEST_EVENT, event_bridge(f"{place}/in/2"))
    assert job(COPY, define(), b"\xef\xbb\xbf" + body).code == 0
    assert bucket_server.objects(f"{place}/out") == {"1": b"1", "2": b"2"}


def test_a_removal_in_a_storage_that_is_not_defined_ends_with_0(job: Job) -> None:
    assert job("exit 3", None, event("b/x", name="s3:ObjectRemoved:Delete")).code == 0


def test_a_job_skips_removals_among_several_records(
    job: Job, define: Define, bucket_server: S3Server, place: str
) -> None:
    bucket_server.put(f"{place}/in/x", b"object")
    records = [record(f"{place}/in/gone", name="s3:ObjectRemoved:Delete"), record(f"{place}/in/x")]
    assert job(COPY, define(), event_of(*records)).code == 0
    assert bucket_server.objects(f"{place}/out") == {"x": b"object"}


def test_a_job_skips_a_record_that_cannot_be_processed_among_several(
    job: Job, define: Define, bucket_server: S3Server, place: str
) -> None:
    bucket_server.put(f"{place}/in/x", b"object")
    bad = record("bucket/x")
    bad["s3"]["bucket"]["name"] = ".."
    done = job(COPY, define(), event_of(bad, record(f"{place}/in/x")))
    assert done.code == 0
    assert bucket_server.objects(f"{place}/out") == {"x": b"object"}
    assert (done.logs[0]["level"], done.logs[0]["object"]) == ("warning", "../x")
    done = job("echo ran", define(), event_of(bad))
    assert (done.code, done.out) == (66, b"")
    assert "its bucket has an impossible name" in done.logs[-1]["reason"]


def test_a_skipped_job_gets_no_advice_for_callers(job: Job, define: Define, place: str) -> None:
    assert "?input=raw" not in job("echo ran", define(), event(f"{place}/out/x")).logs[-1]["reason"]


# Exit codes


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 3", 3), ("no-such-program", 127), ("kill -9 $$", 137), ("#!/no/such/interpreter\n", 127)],
)
def test_the_scripts_end_is_the_jobs(job: Job, define: Define, script: str, code: int) -> None:
    done = job(script, define(), b"{}")
    assert done.code == code
    assert done.logs[-1]["outcome"] in ("failed", "killed", "no_script")


@pytest.mark.parametrize("code", [3, 143, 255])
def test_error_status_false_brings_0_back(job: Job, define: Define, code: int) -> None:
    assert job(f"exit {code}", define(), b"{}", WATCHDOG_ERROR_STATUS="false").code == 0


def test_a_missing_object_is_66(job: Job, define: Define, bucket_server: S3Server, place: str) -> None:
    done = job(COPY, define(), event(f"{place}/in/gone"))
    assert done.code == 66
    assert "NoSuchKey: there is no such object" in done.logs[-1]["reason"]


def test_an_output_that_is_not_stored_is_74(job: Job, define: Define, bucket_server: S3Server, place: str) -> None:
    bucket_server.put(f"{place}/in/x", b"object")
    done = job(COPY, define(output=[{"storage_provider": "minio", "path": "no-such-bucket"}]), event(f"{place}/in/x"))
    assert done.code == 74
    assert "1 of 1 outputs could not be stored: minio.default:no-such-bucket/x: " in done.logs[-1]["reason"]


def test_no_event_is_65(job: Job, define: Define) -> None:
    done = job(COPY, define())
    assert done.code == 65
    assert "there is no event: give it on stdin" in done.logs[-1]["reason"]


def test_a_broken_event_is_65(job: Job, define: Define) -> None:
    done = job(COPY, define(), b'{"Records": [')
    assert done.code == 65
    assert "the event is not valid JSON" in done.logs[-1]["reason"]


def test_an_event_of_a_storage_that_is_not_defined_is_66(job: Job, define: Define) -> None:
    """The script does not run, because the JSON of the event is not a photo."""
    for body, part in (
        (event("b/x"), "but does not name the storage provider, and no provider of its kind is defined"),
        (
            delegated(event("b/x"), "minio.other"),
            "names the storage provider 'minio.other', which is not in storage_providers",
        ),
    ):
        done = job(COPY, define(storage_providers=None, input=None, output=None), body)
        assert done.code == 66
        assert part in done.logs[-1]["reason"]


@pytest.mark.parametrize(
    ("provider", "part"),
    [
        ({"secret_key": ""}, "secret_key is missing"),
        ({"access_key": "hidden", "secret_key": "hidden"}, "the platform withholds the keys of minio.default"),
    ],
)
def test_missing_credentials_are_2(job: Job, define: Define, provider: dict[str, str], part: str) -> None:
    done = job(COPY, define(provider=provider), b"{}")
    assert done.code == 2
    assert part in done.err
    assert "Traceback" not in done.err


def test_mounted_keys(job: Job, define: Define, bucket_server: S3Server, place: str, tmp_path: Path) -> None:
    keys = tmp_path / "secrets" / "minio.default"
    keys.mkdir(parents=True)
    (keys / "accessKey").write_text(bucket_server.access_key)
    (keys / "secretKey").write_text(bucket_server.secret_key + "\n")
    bucket_server.put(f"{place}/in/x", b"object")
    hidden = define(provider={"access_key": "hidden", "secret_key": "hidden"})
    done = job(COPY, hidden, event(f"{place}/in/x"), WATCHDOG_SECRETS_DIR=str(tmp_path / "secrets"))
    assert done.code == 0
    assert bucket_server.objects(f"{place}/out") == {"x": b"object"}


def test_wrong_keys(job: Job, define: Define, place: str) -> None:
    done = job("env", define(provider={"secret_key": "wrong-" + SECRET_KEY}), event(f"{place}/in/x"))
    assert done.code == 66
    assert "SignatureDoesNotMatch" in done.logs[-1]["reason"]
    assert SECRET_KEY not in done.err


# The environment


HOSTILE = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
    "AWS_ACCESS_KEY_ID": "HOSTILE",
    "AWS_SECRET_ACCESS_KEY": "hostile",
    "AWS_SESSION_TOKEN": "hostile",
    "AWS_REGION": "mars-1",
    "AWS_DEFAULT_REGION": "mars-1",
    "AWS_PROFILE": "hostile",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SKIP_SIGNATURE": "true",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
    "AWS_SERVER_SIDE_ENCRYPTION": "aws:kms",
    "AWS_CHECKSUM_ALGORITHM": "sha256",
    "AWS_CA_BUNDLE": "/nonexistent",
    "HTTP_PROXY": "http://127.0.0.1:1",
    "http_proxy": "http://127.0.0.1:1",
    "HTTPS_PROXY": "http://127.0.0.1:1",
    "ALL_PROXY": "http://127.0.0.1:1",
    "all_proxy": "socks5://127.0.0.1:1",
    "NETRC": "/nonexistent",
    "REQUESTS_CA_BUNDLE": "/nonexistent",
    "SSLKEYLOGFILE": "/nonexistent/keys",
}


@pytest.mark.parametrize("has_tls", [False, True])
def test_a_hostile_environment_changes_nothing(job: Job, define: Define, tmp_path: Path, has_tls: bool) -> None:
    """The environment is for the script, which gets it unchanged."""
    with rclone_s3(tmp_path / "s3", make_certificates(tmp_path) if has_tls else None) as server:
        server.put("bucket/in/x", b"object")
        definition = define(
            storage_providers={"minio": {"default": server.definition()}},
            input=[{"storage_provider": "minio", "path": "bucket/in"}],
            output=[{"storage_provider": "minio", "path": "bucket/out"}],
        )
        done = job('env > "$TMP_OUTPUT_DIR/env"', definition, event("bucket/in/x"), **HOSTILE)
        assert done.code == 0, done.err
        lines = server.objects("bucket/out")["env"].decode().splitlines()
        assert not [name for name, value in HOSTILE.items() if f"{name}={value}" not in lines]
        assert server.secret_key not in "\n".join(lines)


def test_a_private_authority_may_come_by_ssl_cert_file(job: Job, define: Define, tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    with rclone_s3(tmp_path / "s3", certificates) as server:
        server.put("bucket/in/x", b"object")
        definition = define(
            storage_providers={"minio": {"default": server.definition(ca_file=None)}},
            input=[{"storage_provider": "minio", "path": "bucket/in"}],
            output=None,
        )
        script = 'cat "$INPUT_FILE_PATH"'
        untrusted = job(script, definition, event("bucket/in/x"))
        assert untrusted.code == 66
        assert "has a certificate that is not trusted" in untrusted.logs[-1]["reason"]
        done = job(script, definition, event("bucket/in/x"), SSL_CERT_FILE=str(certificates.authority))
        assert (done.code, done.out) == (0, b"object")
        os.mkfifo(fifo := str(tmp_path / "fifo"))
        for path in ("/no/such/file", "/etc/passwd", fifo):
            done = job(script, definition, event("bucket/in/x"), SSL_CERT_FILE=path)
            assert done.code == 66
            assert f"the certificates in {path} cannot be read" in done.logs[-1]["reason"]


# An end from outside


@contextlib.contextmanager
def begun(
    environ: dict[str, str], stdin: bytes, stderr: int, command: list[str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a job. It ends with the test, even if the test fails."""
    process = subprocess.Popen(
        command or [str(SUPERVISOR)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr, env=environ
    )
    try:
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_job_that_is_ended_leaves_no_upload(
    define: Define, bucket_server: S3Server, place: str, environ: dict[str, str], tmp_path: Path, number: int
) -> None:
    """No part of a file, multipart upload or workspace is left."""
    (tmp_path / "script.sh").write_text(f'head -c {20 * MIB} /dev/zero > "$TMP_OUTPUT_DIR/large"')
    async with fault_proxy(
        bucket_server.endpoint, applies=lambda seen: "partNumber=2" in seen.path, stall_request_at=MIB
    ) as proxy:
        environ |= {"WATCHDOG_SERVICE_DEFINITION": define(endpoint=proxy.endpoint), "WATCHDOG_STORAGE_TIMEOUT": "60"}
        # This job removes what is left of the upload, also on a slow machine.
        patient = f"from watchdog.storage import base; replace(base, 'CLEANUP_S', {RunningServer.patience_s})"
        job = [sys.executable, *changed_program(patient, None), "job"]
        with begun(environ, b"{}", subprocess.DEVNULL, job) as process:
            await asyncio.wait_for(proxy.standing_still.wait(), RunningServer.patience_s)
            process.send_signal(number)
            assert await asyncio.to_thread(process.wait, RunningServer.patience_s) == 128 + number
        assert any("uploadId" in seen.path for seen in proxy.requests if seen.method == "DELETE")
    assert bucket_server.objects(place) == {}
    assert list((tmp_path / "tmp").iterdir()) == []


def _read_until(process: subprocess.Popen[bytes], event: str) -> dict[str, Any]:
    """Return the first log event with this name."""
    assert process.stderr is not None
    while line := process.stderr.readline():
        found: dict[str, Any] = json.loads(line)
        if found["event"] == event:
            return found
    raise AssertionError(f"the job ended before the event {event!r}")


TIDIES_UP = "trap 'echo tidied up >&2; exit 7' TERM; echo up >&2; while :; do sleep 0.05; done"
DEAF = "trap '' TERM; echo up >&2; while :; do sleep 0.05; done"


def _guarded(removed_guard: str | None) -> list[str]:
    guards = str(Path(__file__).parent.parent / "guards.py")
    return [sys.executable, guards, removed_guard, "job"] if removed_guard else [str(SUPERVISOR)]


@pytest.mark.guard("polite-end")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_script_can_tidy_up_when_its_job_is_ended(
    environ: dict[str, str], tmp_path: Path, number: int, removed_guard: str | None
) -> None:
    (tmp_path / "script.sh").write_text(TIDIES_UP)
    environ |= {"WATCHDOG_KILL_GRACE": "300"}
    with begun(environ, b"{}", subprocess.PIPE, _guarded(removed_guard)) as process:
        _read_until(process, "up")
        process.send_signal(number)
        assert _read_until(process, "tidied up")["logger"] == "script"
        ended = _read_until(process, "invocation ended")
        assert process.wait(RunningServer.patience_s) == 128 + number
    assert (ended["outcome"], ended["exit_code"]) == ("drained", 7)
    assert signal.Signals(number).name in ended["reason"]
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(("script", "how"), [("echo up >&2; exec sleep 300", "SIGTERM"), (DEAF, "SIGKILL")])
def test_the_log_of_an_ended_job_has_the_signal_that_ended_its_script(
    environ: dict[str, str], tmp_path: Path, script: str, how: str
) -> None:
    (tmp_path / "script.sh").write_text(script)
    # The exit code shows also with error_status=false that the job was stopped.
    environ |= {"WATCHDOG_KILL_GRACE": "0.2" if how == "SIGKILL" else "300", "WATCHDOG_ERROR_STATUS": "false"}
    with begun(environ, b"{}", subprocess.PIPE) as process:
        _read_until(process, "up")
        process.send_signal(signal.SIGTERM)
        ended = _read_until(process, "invocation ended")
        assert process.wait(RunningServer.patience_s) == 128 + signal.SIGTERM
    assert (ended["outcome"], ended["signal"]) == ("drained", how)
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("numbers", [(signal.SIGINT,), (signal.SIGTERM, signal.SIGTERM)])
def test_sigint_or_a_second_signal_ends_a_job_without_grace(
    environ: dict[str, str], tmp_path: Path, numbers: tuple[int, ...]
) -> None:
    (tmp_path / "script.sh").write_text("trap 'echo asked >&2' TERM; echo up >&2; while :; do sleep 0.05; done")
    environ |= {"WATCHDOG_KILL_GRACE": "300"}
    with begun(environ, b"{}", subprocess.PIPE) as process:
        _read_until(process, "up")
        for number in numbers[:-1]:
            process.send_signal(number)
            _read_until(process, "asked")
        process.send_signal(numbers[-1])
        ended = _read_until(process, "invocation ended")
        assert process.wait(RunningServer.patience_s) == 128 + numbers[0]
    assert (ended["outcome"], ended["signal"]) == ("drained", "SIGKILL")


def test_an_ended_job_does_not_run_its_script_for_the_next_object(
    environ: dict[str, str], define: Define, bucket_server: S3Server, place: str, tmp_path: Path
) -> None:
    for name in ("1", "2"):
        bucket_server.put(f"{place}/in/{name}", b"object")
    # The first run succeeds although it was asked to end.
    (tmp_path / "script.sh").write_text("trap 'exit 0' TERM; echo up >&2; while :; do sleep 0.05; done")
    environ |= {"WATCHDOG_SERVICE_DEFINITION": define(), "WATCHDOG_KILL_GRACE": "300"}
    text = event(f"{place}/in/1", f"{place}/in/2")
    with begun(environ, text, subprocess.PIPE) as process:
        _read_until(process, "up")
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        rest = [json.loads(line) for line in process.stderr]
        assert process.wait(RunningServer.patience_s) == 128 + signal.SIGTERM
    assert "up" not in [event["event"] for event in rest]
    assert rest[-1]["outcome"] == "drained"


def test_a_job_that_is_ended_while_it_waits_for_its_event_says_so(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "script.sh").write_text("true")
    with subprocess.Popen([SUPERVISOR], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environ) as process:
        try:
            _read_until(process, "waiting for the event: reading stdin to its end")
            process.send_signal(signal.SIGTERM)
            ended = _read_until(process, "invocation ended")
            assert process.wait(RunningServer.patience_s) == 128 + signal.SIGTERM
        finally:
            process.kill()
    assert (ended["outcome"], ended.get("signal")) == ("drained", None)
    assert "SIGTERM" in ended["reason"]


def test_stdin_that_never_ends_is_reported(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "script.sh").write_text("true")
    process = subprocess.Popen([SUPERVISOR], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environ)
    try:
        assert process.stderr is not None
        told = json.loads(process.stderr.readline())
        assert told["event"] == "waiting for the event: reading stdin to its end"
        process.send_signal(signal.SIGTERM)
        assert process.wait(RunningServer.patience_s) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.communicate()


# Local runs


def test_run_stores_unless_it_is_told_not_to(
    define: Define, bucket_server: S3Server, place: str, environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "script.sh").write_text(COPY)
    (tmp_path / "event.json").write_bytes(event(f"{place}/in/x"))
    environ |= {"WATCHDOG_SERVICE_DEFINITION": define()}
    for words, stored in ((["--no-store"], {}), ([], {"event.json": event(f"{place}/in/x")})):
        command = [str(SUPERVISOR.parent / "watchdog"), "run", str(tmp_path / "event.json"), *words]
        done = subprocess.run(command, env=environ, capture_output=True, timeout=50)
        assert done.returncode == 0
        assert done.stdout == event(f"{place}/in/x"), "a file is the input, whatever is in it"
        assert bucket_server.objects(f"{place}/out") == stored


async def test_a_progress_bar_on_a_terminal(
    define: Define, bucket_server: S3Server, place: str, environ: dict[str, str], tmp_path: Path
) -> None:
    """Each transfer is delayed until the test has seen its bar. A quick transfer may end before its bar is drawn."""
    bucket_server.put(f"{place}/in/x", bytes(1 * MIB))
    (tmp_path / "script.sh").write_text(COPY)
    ours, theirs = os.openpty()
    async with fault_proxy(
        bucket_server.endpoint,
        times=2,
        applies=lambda seen: seen.method in ("GET", "PUT"),
        stall_request_at=MIB // 2,
        stall_response_at=MIB // 2,
    ) as proxy:
        environ |= {"WATCHDOG_SERVICE_DEFINITION": define(endpoint=proxy.endpoint), "WATCHDOG_STORAGE_TIMEOUT": "60"}
        with begun(environ, event(f"{place}/in/x"), theirs) as process:
            os.close(theirs)
            for bar in (b"fetching  ", b"storing  ["):
                await asyncio.wait_for(proxy.standing_still.wait(), RunningServer.patience_s)
                shown = await asyncio.to_thread(read_terminal, ours, bar)
                assert bar in shown
                proxy.go_on()
            shown = await asyncio.to_thread(read_terminal, ours)
            os.close(ours)
            assert await asyncio.to_thread(process.wait, RunningServer.patience_s) == 0
    assert shown.endswith(b"\n"), "the bar went away"
    assert b"storing" not in shown.rstrip().rpartition(b"\n")[2]
    assert len(bucket_server.objects(f"{place}/out")["x"]) == MIB
