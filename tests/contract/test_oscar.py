"""The behaviour that users of OSCAR know, with this program in place of ``fwatchdog`` and ``supervisor``.

Each pod is started only with the variables that OSCAR sets, in its own network, where port 8080 is free. Calls reach it
through a replacement for OSCAR's manager. The facts are from ``grycap/oscar``, ``grycap/oscar-cli`` and
``grycap/faas-supervisor``; docs/explanation/platforms.md has them.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import oscar_manager
import pod
import pytest
import requests
from live_call import LiveCall, outputs_of
from oscar_manager import OscarManager
from oscar_python.client import Client  # type: ignore[import-untyped]
from running_server import Answer, RunningServer, problem, until

PROGRAMS = Path(sys.executable).parent
MOUNTED = (Path(__file__).parent / "oscar_function_config.yaml").read_text()
NAME = "plants"
TOKEN = "0123456789abcdef" * 4
PICTURE = bytes(range(256)) * 40

# `ToPodSpec` and `addWatchdogEnvVars` in `pkg/types/service.go`, with the defaults of `pkg/types/config.go`.
OSCAR = {
    "OSCAR_SERVICE_NAME": NAME,
    "OSCAR_SERVICE_TOKEN": TOKEN,
    "OSCAR_SERVICE_BASE_PATH": "",
    "fprocess": "/oscar/bin/supervisor",
    "max_inflight": "1",
    "write_debug": "true",
    "exec_timeout": "0",
    "read_timeout": "300",
    "write_timeout": "300",
    "healthcheck_interval": "5",
}
# Variables of the container and its image.
IMAGE = {"PATH": os.environ["PATH"], "HOME": "/root"}
# Sets the loopback interface up (netdevice(7): SIOCSIFFLAGS, IFF_UP), then becomes the command.
_WITH_LOOPBACK = """
import fcntl, os, socket, struct, sys
with socket.socket() as sock:
    fcntl.ioctl(sock, 0x8914, struct.pack("16sh22x", b"lo", 1))
os.execvp(sys.argv[1], sys.argv[1:])
"""
INPUT_AS_IT_IS = 'cat "$INPUT_FILE_PATH"'


class Service:
    """A pod of a service, and the manager in front of it, until the context ends.

    Args:
        script: the content of ``script.sh``. ``set_script`` changes it for the next call.
        definition: the content of ``function_config.yaml``.
        environ: the ``environment.variables`` and secrets of the service, in addition to the variables that OSCAR sets.
    """

    def __init__(
        self,
        directory: Path,
        script: str = INPUT_AS_IT_IS,
        definition: str = MOUNTED,
        files: dict[str, str] | None = None,
        **environ: str,
    ) -> None:
        files = {"script.sh": script, "function_config.yaml": definition} if files is None else files
        in_pod = pod.prefix(directory, files, tmp_bytes=64 << 20)
        self._script = directory / "config" / "script.sh"
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "--net", sys.executable, "-c", _WITH_LOOPBACK, *in_pod, PROGRAMS / "fwatchdog"],
                env=IMAGE | OSCAR | environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(self._end)
            until(self._listens, "the pod to listen on port 8080")
            network = Path(f"/proc/{self.process.pid}/ns/net")
            self.manager = stack.enter_context(OscarManager(NAME, TOKEN, 8080, network=network))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        # `unshare --kill-child` has no effect here, because the kernel forgets it when PID 1 changes its user
        # (prctl(2)).
        if self.process.poll() is None:
            with contextlib.suppress(ValueError, ProcessLookupError):  # there is no child yet, or it has ended
                os.kill(pod.pid_1_of(self.process.pid), signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def _listens(self) -> bool:
        code = self.process.poll()
        assert code is None, f"the pod ended with {code}: {self._log.read_text()}"
        try:
            sockets = [Path(f"/proc/{self.process.pid}/net/{table}").read_text() for table in ("tcp", "tcp6")]
        except OSError:  # it has just ended, which the next check notices
            return False
        return any(re.search(r":1F90 [0:]+ 0A ", table) for table in sockets)

    def set_script(self, script: str) -> None:
        self._script.write_text(script)

    def call(self, body: bytes = b"", query: str = "", **headers: str) -> Answer:
        """Send ``POST /run/NAME`` to the manager with the token of the service. ``content_type="x/y"`` is a header."""
        sent = {"Authorization": f"Bearer {TOKEN}"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return call(self.manager, f"/run/{NAME}{query}", body, sent)

    def answer(self, script: str, body: bytes = b"", query: str = "", **headers: str) -> Answer:
        self.set_script(script)
        return self.call(body, query, **headers)

    def logs(self) -> list[dict[str, Any]]:
        *lines, _ = self._log.read_text().split("\n")
        return [json.loads(line) for line in lines]

    def tmp(self) -> Path:
        """Return the path of the pod's ``/tmp`` for this process."""
        return Path(f"/proc/{pod.pid_1_of(self.process.pid)}/root/tmp")

    def stop(self) -> int:
        os.kill(pod.pid_1_of(self.process.pid), signal.SIGTERM)
        return self.process.wait(RunningServer.patience_s)


def call(
    manager: OscarManager, path: str, body: bytes | Iterator[bytes], headers: dict[str, str], method: str = "POST"
) -> Answer:
    """Send a request with only these headers, Host and the length of the body."""
    connection = http.client.HTTPConnection("127.0.0.1", manager.port, timeout=RunningServer.patience_s)
    with contextlib.closing(connection):
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        if isinstance(body, bytes):
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
        else:
            connection.putheader("Transfer-Encoding", "chunked")
            connection.endheaders(body, encode_chunked=True)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One pod for all tests with the same settings. The server reads its script again for each call."""
    with Service(tmp_path_factory.mktemp("service") / "pod", API_KEY="from the secret", MODEL="resnet") as service:
        yield service


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    with contextlib.ExitStack() as stack:

        def start(*script_and_definition: Any, **options: Any) -> Service:
            return stack.enter_context(Service(tmp_path / "pod", *script_and_definition, **options))

        yield start


# ---- started as OSCAR starts it


def test_it_serves_with_just_what_oscar_sets(start_service: Callable[..., Service]) -> None:
    service = start_service('tr a-z A-Z < "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/loud.txt"; echo "INFO: at work"')
    answer = service.call(base64.b64encode(b"hello"))
    assert (answer.status, base64.b64decode(answer.body)) == (200, b"HELLO")
    assert service.stop() == 0
    logs = service.logs()
    warnings = [event["event"] for event in logs if event["level"] != "info"]
    assert len(warnings) == 2, "no field of the definition is unknown"
    assert all("the platform withholds the keys of minio.default" in warning for warning in warnings)
    (listening,) = (event for event in logs if event["event"] == "listening")
    assert listening["port"] == 8080
    (line,) = (event for event in logs if event.get("logger") == "script")
    assert line["event"] == "INFO: at work"


@pytest.mark.parametrize("supervisor", ["/oscar/bin/supervisor", "/oscar/bin/alpine/supervisor"])
def test_oscars_fprocess_means_the_mounted_script(start_service: Callable[..., Service], supervisor: str) -> None:
    assert start_service("echo the script", fprocess=supervisor).call().body == b"the script\n"


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("DEBUG", ["DEBUG: a", "b", "ERROR: c"]),
        ("info", ["b", "ERROR: c"]),
        ("Warning", ["ERROR: c"]),
        ("CRITICAL", []),
        ("", ["b", "ERROR: c"]),
    ],
)
def test_the_log_level_is_the_definitions(start_service: Callable[..., Service], level: str, shown: list[str]) -> None:
    script = 'echo "DEBUG: a"; echo b; echo "ERROR: c"; printf result > "$TMP_OUTPUT_DIR/file"'
    service = start_service(script, MOUNTED.replace("log_level: INFO", f"log_level: {level}"))
    assert base64.b64decode(service.call().body) == b"result"
    assert service.stop() == 0
    assert [event["event"] for event in service.logs() if event.get("logger") == "script"] == shown


def test_an_unknown_log_level_is_named_and_nothing_starts(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match=r"ended with 2: .*log_level.*function_config\.yaml.*'chatty'"),
        Service(tmp_path / "pod", definition=MOUNTED.replace("log_level: INFO", "log_level: chatty")),
    ):
        pass


def test_an_unknown_log_level_of_the_image_is_a_warning(start_service: Callable[..., Service]) -> None:
    """A bare LOG_LEVEL may be meant for the script."""
    service = start_service('echo "$LOG_LEVEL"', LOG_LEVEL="chatty")
    assert service.call().body == b"chatty\n"
    assert service.stop() == 0
    assert [event["level"] for event in service.logs() if "chatty" in event["event"]] == ["warning", "info"]


def test_what_the_script_is_given(service: Service) -> None:
    answer = service.answer(
        'env; echo "input $(basename "$INPUT_FILE_PATH")"; [ -d "$TMP_INPUT_DIR" ] && [ -d "$TMP_OUTPUT_DIR" ]',
        b"aGk=",
    )
    lines = answer.body.decode().splitlines()
    assert {
        f"OSCAR_SERVICE_NAME={NAME}",
        f"OSCAR_SERVICE_TOKEN={TOKEN}",
        "OSCAR_SERVICE_BASE_PATH=",
        "MODEL=resnet",  # from the definition
        "OCTAL=0755",
        "API_KEY=from the secret",  # only in the pod: in the definition this secret is empty
    } <= set(lines)
    assert any(re.fullmatch("input event-file-[0-9a-f-]{36}", line) for line in lines)


def test_what_the_manager_leaves_of_a_request(service: Service) -> None:
    answer = service.answer("env | grep ^Http_", b"", "?output=base64&a=b%20c", X_Forwarded_For="10.0.0.1")
    variables = dict(line.split("=", 1) for line in answer.body.decode().splitlines())
    assert variables["Http_Path"] == "/"
    assert variables["Http_Query"] == "output=base64&a=b%20c"
    assert variables["Http_Host"] == f"{NAME}.oscar-svc"
    assert variables["Http_X_Forwarded_For"] == "10.0.0.1, 127.0.0.1"
    assert "Http_Authorization" not in variables


def test_a_whole_document_with_its_script_beside_it(start_service: Callable[..., Service]) -> None:
    """OSCAR mounts the flat object. With ``docker run``, the author may mount the whole document."""
    whole = """
functions:
  oscar:
  - my-cluster:
      name: plants
      image: ghcr.io/grycap/plants
      cpu: 1.0
      memory: 1Gi
      log_level: critical
      script: plants.sh
      environment: {Variables: {MODEL: resnet}, secrets: {API_KEY: mine}}
"""
    service = start_service(files={"function_config.yaml": whole, "plants.sh": 'echo "$MODEL $API_KEY"'})
    assert service.call().body == b"resnet mine\n"
    assert service.stop() == 0
    assert service.logs() == []


# ---- the manager


def test_callers_that_may_call(service: Service) -> None:
    service.set_script("echo hi")
    manager, good = service.manager, {"Authorization": f"Bearer {TOKEN}"}
    assert call(manager, f"/run/{NAME}", b"", good).status == 200
    assert call(manager, f"/run/{NAME}", b"", {"Authorization": f"Bearer {'f' * 64}"}).status == 401
    assert call(manager, f"/run/{NAME}", b"", {}).status == 401
    assert call(manager, "/run/other", b"", good).status == 404
    assert call(manager, f"/run/{NAME}", b"", good, "GET").status == 404


@pytest.mark.parametrize(("token", "status"), [(TOKEN, 200), ("f" * 64, 401)])
def test_the_token_is_passed_on(start_service: Callable[..., Service], token: str, status: int) -> None:
    """So the pod may require the token, too, with WATCHDOG_AUTH_TOKEN or its file."""
    assert start_service("echo hi", WATCHDOG_AUTH_TOKEN=token).call().status == status


def test_a_call_that_reaches_the_managers_limit_ends_and_frees_its_place(service: Service) -> None:
    """Before, its script continued to run, and kept the only place of the pod (``max_inflight=1``)."""
    service.set_script("touch /tmp/up; while :; do sleep 0.05; done")
    with ThreadPoolExecutor(1) as callers:
        caller = callers.submit(service.call)
        until((service.tmp() / "up").exists, "the script to run")
        service.manager.let_the_oldest_reach_its_limit()
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            caller.result()
    assert service.answer("echo next").body == b"next\n"
    until(lambda: [event for event in service.logs() if event.get("outcome") == "caller_gone"], "the event of its end")


def test_a_run_over_write_timeout_is_answered(start_service: Callable[..., Service]) -> None:
    """If a run took longer, the classic watchdog closed the connection without a status."""
    answer = start_service("sleep 1; echo done", write_timeout="0.1s").call()
    assert (answer.status, answer.body) == (200, b"done\n")


# ---- oscar-python


@pytest.fixture
def client(service: Service) -> Client:
    """Return a client as users make it. It asks the manager for the token of the service."""
    options = {"cluster_id": "my-cluster", "endpoint": service.manager.url, "ssl": "True"}
    return Client(options | {"user": oscar_manager.USER, "password": oscar_manager.PASSWORD})


def test_oscar_python_sends_a_file_and_decodes_the_answer_into_one(
    service: Service, client: Client, tmp_path: Path
) -> None:
    service.set_script('cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/copy.jpg"')
    (tmp_path / "in.jpg").write_bytes(PICTURE)
    response = client.run_service(NAME, input=str(tmp_path / "in.jpg"), output=str(tmp_path / "out.jpg"))
    assert response.status_code == 200
    assert base64.b64decode(response.text) == PICTURE
    assert (tmp_path / "out.jpg").read_bytes() == PICTURE


def test_oscar_python_sends_a_text(service: Service, client: Client, tmp_path: Path) -> None:
    service.set_script('tr a-z A-Z < "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/loud.txt"')
    client.run_service(NAME, input="hello there", output=str(tmp_path / "out.txt"))
    assert (tmp_path / "out.txt").read_text() == "HELLO THERE"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"message": "hi there", "n": 3}, {"message": "hi there", "n": "3"}),
        ({"names": ["Quercus", "é"]}, {"names": ["Quercus", "é"]}),
        ({"event": "a&b=c"}, {"event": "a&b=c"}),
    ],
)
def test_oscar_python_sends_a_dict(
    service: Service, client: Client, sent: dict[str, object], expected: dict[str, object]
) -> None:
    """It sends a form with the content type of JSON. The script gets the object."""
    service.set_script(INPUT_AS_IT_IS)
    assert client.run_service(NAME, input=sent).json() == expected


def test_oscar_python_sends_nothing(service: Service, client: Client) -> None:
    service.set_script('wc -c < "$INPUT_FILE_PATH"')
    assert client.run_service(NAME).text.split() == ["0"]


def test_oscar_python_asks_for_another_form(service: Service, client: Client) -> None:
    service.set_script('cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/copy.png"')
    assert client.run_service(NAME, input="hi", headers="Accept: image/png").content == b"hi"


def test_oscar_python_writes_an_answer_that_is_not_base64_unchanged(
    service: Service, client: Client, tmp_path: Path
) -> None:
    """It reads any text with a suitable number of letters and digits as base64. This text is not of this kind."""
    service.set_script("echo 'no plant was found'")
    client.run_service(NAME, input="hi", output=str(tmp_path / "out.txt"))
    assert (tmp_path / "out.txt").read_text() == "no plant was found\n"


def test_oscar_python_raises_when_the_script_failed(service: Service, client: Client, tmp_path: Path) -> None:
    service.set_script("echo 'no such model' >&2; exit 3")
    with pytest.raises(requests.HTTPError) as raised:
        client.run_service(NAME, input="hi", output=str(tmp_path / "out"))
    assert raised.value.response is not None
    document = raised.value.response.json()
    assert (document["status"], document["exit_code"], document["stderr"]) == (500, 3, "no such model\n")
    assert not (tmp_path / "out").exists()


# ---- oscar-cli


class Failed(Exception):
    """The error with which ``oscar-cli`` ends. The user reads its text."""


def oscar_cli_run(service: Service, data: bytes) -> bytes:
    """Return what ``oscar-cli service run`` shows, by the rules of ``cmd/service_run.go`` and ``CheckStatusCode``."""
    encoded = base64.b64encode(data)
    pieces = iter([encoded[:1000], encoded[1000:]] if len(encoded) > 1000 else [encoded])
    headers = {"Authorization": f"Bearer {TOKEN}", "User-Agent": "Go-http-client/1.1", "Accept-Encoding": "gzip"}
    answer = call(service.manager, f"/run/{NAME}", pieces, headers)
    told = {401: "invalid credentials", 404: "not found", 502: "the service is not ready yet"}
    if answer.status in told:
        raise Failed(told[answer.status])
    if not 200 <= answer.status <= 204:
        raise Failed(answer.body.decode())
    try:
        # Go's decoder ignores line ends, and nothing else.
        return base64.b64decode(answer.body.translate(None, b"\r\n"), validate=True)
    except ValueError:
        return answer.body


def zipped(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize(
    ("script", "data", "shown"),
    [
        ('cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/copy"', PICTURE, PICTURE),
        ('cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/copy"', b"", b""),
        (INPUT_AS_IT_IS, b'{"message": "Hello World"}', b'{"message": "Hello World"}'),
        ("echo ' __________'; echo '< Hello! >'", b"x", b" __________\n< Hello! >\n"),
        ('echo log; echo log >&2; printf result > "$TMP_OUTPUT_DIR/a"', b"x", b"result"),
        ("echo 'Status: 204' > $HTTP_RESPONSE_FILE", b"x", b""),
    ],
    ids=["a file", "an empty file", "a text", "what was printed", "no logs in it", "204"],
)
def test_oscar_cli_shows(service: Service, script: str, data: bytes, shown: bytes) -> None:
    service.set_script(script)
    assert oscar_cli_run(service, data) == shown


def test_oscar_cli_shows_a_zip_of_several_files(service: Service) -> None:
    service.set_script('cd "$TMP_OUTPUT_DIR"; mkdir b; cp "$INPUT_FILE_PATH" a; echo 2 > b/c')
    assert zipped(oscar_cli_run(service, PICTURE)) == {"a": PICTURE, "b/c": b"2\n"}


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("echo why >&2; exit 3", '"exit_code":3,"stderr":"why\\n"'),
        ("kill -9 $$", '"signal":"SIGKILL"'),
        ("echo 'Status: 206' > $HTTP_RESPONSE_FILE; echo partial", "partial\n"),
        ("echo 'Status: 404' > $HTTP_RESPONSE_FILE; echo no plant", "not found"),
    ],
    ids=["failed", "killed", "206", "404"],
)
def test_oscar_cli_fails_and_tells(service: Service, script: str, text: str) -> None:
    service.set_script(script)
    with pytest.raises(Failed, match=re.escape(text)):
        oscar_cli_run(service, b"x")


# ---- defects of the pair that it replaces: the input

FORM = "application/x-www-form-urlencoded"  # curl -d
JSON = "application/json"  # oscar-python
MINIO_EVENT = json.dumps(
    {
        "EventName": "s3:ObjectCreated:Put",
        "Key": "plants/in/a.jpg",
        "Records": [
            {
                "eventSource": "minio:s3",
                "eventTime": "2026-01-02T03:04:05Z",
                "s3": {"bucket": {"name": "plants"}, "object": {"key": "in%2Fa.jpg"}},
            }
        ],
    }
).encode()


def unchanged(body: bytes) -> tuple[bytes, str, bytes]:
    return body, FORM, body


@pytest.mark.parametrize(
    ("body", "content_type", "the_input"),
    [
        pytest.param(b"1234", FORM, base64.b64decode(b"1234"), id="base64 of digits only"),
        pytest.param(b"12345678", JSON, base64.b64decode(b"12345678"), id="base64 of digits from oscar-python"),
        pytest.param(*unchanged(b'[1, "a", null]\n'), id="JSON list"),
        pytest.param(b"3.14", JSON, b"3.14", id="JSON number"),
        pytest.param(b"false", JSON, b"false", id="JSON boolean"),
        pytest.param(b'"a text"', JSON, b'"a text"', id="JSON string"),
        pytest.param(*unchanged(b'{"a": 1, "a": 2}'), id="duplicate keys"),
        pytest.param(*unchanged(b'{"n": 1e400, "m": 12345678901234567890.10}'), id="big numbers"),
        pytest.param(*unchanged('{"name": "Jos\u00e9"}'.encode()), id="characters outside ASCII"),
        pytest.param(*unchanged(b'{"event": {"x": 1}}'), id="a key event"),
        pytest.param(*unchanged(b'{"event": "a", "subscription": "b"}'), id="keys event and subscription"),
        pytest.param(*unchanged(b'{"event_type": "a", "payload": {"scope": "b"}}'), id="a key event_type"),
        pytest.param(*unchanged(b'{"httpMethod": "POST", "body": "eA=="}'), id="a key httpMethod"),
        pytest.param(*unchanged(b'{"event": {}, "storage_provider": "minio.default"}'), id="no delegated event"),
        pytest.param(PICTURE, "image/jpeg", PICTURE, id="raw binary"),
        pytest.param(b"\x89PNG\r\n", "application/octet-stream", b"\x89PNG\r\n", id="raw octets"),
        pytest.param(b"name=Quercus+robur&n=3", FORM, b'{"name":"Quercus robur","n":"3"}', id="form"),
        pytest.param(b"data:image/png;base64,aGVsbG8=", FORM, b"hello", id="data URL"),
        pytest.param(b"-_-_", FORM, base64.b64decode(b"+/+/"), id="URL-safe base64"),
        pytest.param(b"aGVs\r\nbG8\n", FORM, b"hello", id="wrapped base64 without padding"),
        pytest.param(b"\xef\xbb\xbfaGVsbG8=", FORM, b"hello", id="byte order mark before base64"),
        pytest.param(*unchanged(b'\xef\xbb\xbf{"a": 1}'), id="byte order mark before JSON"),
        pytest.param(b"a,b\n1,2\n", "text/csv", b"a,b\n1,2\n", id="CSV"),
        pytest.param(b"ACGTACGT", "text/x-fasta", b"ACGTACGT", id="FASTA"),
    ],
)
def test_the_input_is_what_was_sent(service: Service, body: bytes, content_type: str, the_input: bytes) -> None:
    answer = service.answer(INPUT_AS_IT_IS, body, content_type=content_type)
    assert (answer.status, answer.body) == (200, the_input)


def test_a_multipart_form_is_its_file(service: Service) -> None:
    body = b'--X\r\nContent-Disposition: form-data; name="f"; filename="a.jpg"\r\n\r\n' + PICTURE + b"\r\n--X--\r\n"
    script = '[ "$(basename "$INPUT_FILE_PATH")" = a.jpg ]; cat "$INPUT_FILE_PATH"'
    assert service.answer(script, body, content_type="multipart/form-data; boundary=X").body == PICTURE


@pytest.mark.parametrize(
    ("body", "offset"),
    [
        pytest.param(b"no base64!", 2, id="a sentence"),
        pytest.param(b"SGVs bG8=", 4, id="a plus that became a space"),
        pytest.param(b"SGVs!bG8=", 4, id="a wrong byte in padded base64"),
        pytest.param(b"ab+/ab-_", 6, id="both alphabets"),
        pytest.param(b"-----BEGIN X-----\nQUJD\n-----END X-----\n", 0, id="PEM"),
        pytest.param(b"QUJDQUJ", 6, id="cut off"),
    ],
)
def test_what_is_not_an_input_is_refused_with_its_offset(service: Service, body: bytes, offset: int) -> None:
    document = problem(service.answer("echo never", body, content_type=FORM), 400)
    assert f"at offset {offset}" in str(document["detail"])


@pytest.mark.parametrize(
    ("body", "content_type", "encoding"),
    [
        (b"aGVsbG8=", FORM, "base64"),
        (b"{}", JSON, "json"),
        (b"a=1", JSON, "form"),
        (PICTURE, "image/jpeg", "raw"),
        (b"", FORM, "raw"),
    ],
)
def test_the_answer_and_the_log_say_how_the_body_was_read(
    service: Service, body: bytes, content_type: str, encoding: str
) -> None:
    def ended(call_id: str | None) -> list[dict[str, Any]]:
        return [e for e in service.logs() if e["event"] == "invocation ended" and e["call_id"] == call_id]

    for script, status in (("echo fine", 200), ("exit 3", 500)):
        answer = service.answer(script, body, content_type=content_type)
        assert (answer.status, answer.headers["X-Input-Encoding"]) == (status, encoding)
        call_id = answer.headers["X-Call-Id"]
        until(functools.partial(ended, call_id), "the event of the end")
        assert ended(call_id)[0]["input_encoding"] == encoding


def test_an_event_of_a_bucket_whose_keys_are_withheld_is_reported(service: Service) -> None:
    """Synchronous pods do not get the keys. A script cannot use the JSON of the event in place of the object."""
    service.set_script("echo ran")
    answer = service.call(MINIO_EVENT)
    assert answer.status == 502
    assert "the platform withholds the keys of minio.default" in answer.json["detail"]


def test_an_event_of_a_bucket_that_no_input_covers_does_not_run_the_script(service: Service) -> None:
    """Example: an event of the service's output folder. Its JSON is not a photo, and its sender must not try again."""
    service.set_script("echo ran")
    answer = service.call(MINIO_EVENT.replace(b"plants", b"others"))
    assert answer.status == 200
    assert b"the script did not run: others/in/a.jpg: no input" in answer.body


def test_file_stage_in_keeps_the_body(start_service: Callable[..., Service]) -> None:
    """This setting is about files in a bucket. A synchronous call has no such file."""
    definition = MOUNTED.replace("file_stage_in: false", "file_stage_in: true")
    assert start_service(INPUT_AS_IT_IS, definition).call(b"aGVsbG8=").body == b"hello"


# ---- defects of the pair that it replaces: the script and the answer


@pytest.mark.parametrize(
    ("script", "part"),
    [
        ("echo why >&2; exit 3", {"exit_code": 3, "stderr": "why\n"}),
        ("no-such-program", {"exit_code": 127}),
        ("kill -9 $$", {"signal": "SIGKILL"}),
        ("#!/no/such/interpreter\n", {}),
    ],
    ids=["exit code", "missing program", "killed", "missing interpreter"],
)
def test_a_script_that_failed_is_a_call_that_failed(service: Service, script: str, part: dict[str, object]) -> None:
    document = problem(service.answer(script), 500)
    assert part.items() <= document.items()


def test_a_missing_script_is_reported(start_service: Callable[..., Service]) -> None:
    service = start_service(files={"function_config.yaml": MOUNTED})
    assert "/oscar/config/script.sh" in str(problem(service.call(), 500)["detail"])


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ("#!/bin/bash\na=(one two); echo ${a[1]}", b"two\n"),
        ("#!/usr/bin/env python3\nprint(6 * 7)", b"42\n"),
        ("#!/usr/bin/no-such-place/bash\na=(one two); echo ${a[1]}", b"two\n"),
        ("echo $0 | grep -c script.sh", b"1\n"),
    ],
    ids=["bash", "Python", "bash is elsewhere", "none"],
)
def test_the_first_line_of_the_script_is_honoured(service: Service, script: str, answer: bytes) -> None:
    """ConfigMaps have no executable files: the mode is 0644."""
    assert service.answer(script).body == answer


def test_an_empty_output_file_is_an_empty_answer_and_not_what_was_printed(service: Service) -> None:
    answer = service.answer('echo log; : > "$TMP_OUTPUT_DIR/empty.txt"')
    assert (answer.status, answer.body, answer.headers["X-Output-Name"]) == (200, b"\n", "empty.txt")


@pytest.mark.parametrize("printed", [b"\xff\xfe\x00\n", "Jos\u00e9\n".encode()], ids=["no UTF-8", "UTF-8"])
def test_what_was_printed_is_the_answer_byte_for_byte(service: Service, printed: bytes) -> None:
    in_octal = "".join(rf"\{byte:03o}" for byte in printed)
    assert service.answer(f"printf '{in_octal}'; echo log >&2").body == printed


@pytest.mark.parametrize("level", ["DEBUG", "CRITICAL"])
def test_logs_are_never_in_the_answer(start_service: Callable[..., Service], level: str) -> None:
    """Users do not need ``log_level: CRITICAL`` for that any more."""
    definition = MOUNTED.replace("log_level: INFO", f"log_level: {level}")
    service = start_service('echo log >&2; echo log; printf result > "$TMP_OUTPUT_DIR/a"', definition)
    assert service.call().body == base64.b64encode(b"result") + b"\n"
    assert service.answer("echo printed; echo log >&2").body == b"printed\n"


def test_nothing_of_a_call_is_left(service: Service) -> None:
    service.answer('(sleep 600; echo late) & : > "$TMP_OUTPUT_DIR/a"')
    until(lambda: not list(service.tmp().glob("watchdog-*/[0-9]*")), "the workspace to be removed")
    assert service.answer("ps -A -o args= | grep -c '[s]leep 600' || true").body == b"0\n"


# ---- switched back


def test_error_status_false_restores_200(start_service: Callable[..., Service]) -> None:
    """As ``environment: variables: {WATCHDOG_ERROR_STATUS: "false"}`` of the definition sets it in the pod."""
    definition = MOUNTED.replace("  variables:\n", '  variables:\n    WATCHDOG_ERROR_STATUS: "false"\n')
    service = start_service("echo out; exit 3", definition, WATCHDOG_ERROR_STATUS="false")
    answer = service.call()
    assert (answer.status, answer.body, answer.headers["X-Exit-Code"]) == (200, b"out\n", "3")
    partly = service.answer('printf partly > "$TMP_OUTPUT_DIR/a"; kill -9 $$')
    assert (partly.status, base64.b64decode(partly.body)) == (200, b"partly")
    assert service.answer("no-such-program").status == 200
    assert oscar_cli_run(service, b"x") == b""


def test_live_call_passes_the_manager_event_by_event(service: Service) -> None:
    """The manager drops the path and keeps the query."""
    service.set_script('echo here; until [ -e /tmp/gate ]; do sleep 0.02; done; cat "$INPUT_FILE_PATH"')
    headers = {"Authorization": f"Bearer {TOKEN}"}
    body = base64.b64encode(b"a picture")
    with LiveCall(service.manager.port, body, f"/run/{NAME}?output=events", headers) as call:
        assert call.headers["Content-Type"] == "text/event-stream"
        assert call.next("log").data["text"] == "here"
        (service.tmp() / "gate").touch()
        events = call.rest()
        (service.tmp() / "gate").unlink()
    assert events[-1].data["outcome"] == "ok"
    assert outputs_of(events) == {None: b"here\na picture"}
