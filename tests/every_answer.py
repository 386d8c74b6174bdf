"""One answer of each kind that the server can give, as bytes, for tests of what all answers have in common."""

from __future__ import annotations

import base64
import signal
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from running_server import RunningServer, StartServer, free_port, read_all, until

from watchdog.http.request_head import MOST_HEAD_BYTES

TOKEN = "the-token"
# The body of a call is a command for the shell.
SHELL = '. "$INPUT_FILE_PATH"'
# A test opens the gate by making the file DIR/open.
AT_THE_GATE = 'touch "$DIR/up"; while [ ! -e "$DIR/open" ]; do sleep 0.02; done'
LONG_ANSWER = 'head -c 3000000 /dev/zero > "$TMP_OUTPUT_DIR/x"'
# The name of each kind, and its status.
STATUSES: Mapping[str, int] = {
    "base64": 200,
    "raw": 200,
    "zip": 200,
    "json": 200,
    "printed": 200,
    "long": 200,
    "events": 200,
    "events of a failure": 200,
    "events of a classic function": 200,
    "http 1.0": 200,
    "without a body": 204,
    "status of the script": 404,
    "failure with a status of the script": 418,
    "script failed": 500,
    "script killed": 500,
    "script timed out": 504,
    "not base64": 400,
    "malformed": 400,
    "two hosts": 400,
    "no token": 401,
    "method": 405,
    "form of answer": 406,
    "input too large": 413,
    "request line": 414,
    "headers": 431,
    "part of a head": 408,
    "part of a body": 408,
    "queue is full": 429,
    "not ready": 429,
    "stopping": 503,
    "health": 200,
    "head": 200,
    "ready": 200,
    "description": 200,
    "page": 200,
    "mistyped path": 404,
    "redirect to the page": 303,
    "events again": 204,
    "icon": 204,
    "robots": 200,
    "classic": 200,
    "classic failed": 500,
}
METRICS: Mapping[str, int] = {
    "metrics": 200,
    "no such path": 404,
    "method of metrics": 405,
    "no token for metrics": 401,
}


def every_answer(
    start_server: StartServer, directory: Path, origin: str | None = None, **environ: str
) -> dict[str, bytes]:
    """Return an answer of each kind of ``STATUSES``.

    Args:
        directory: for the files of the scripts.
        origin: the header ``Origin`` of each request.
    """
    own = {} if origin is None else {"Origin": origin}
    answers = _of_a_script(start_server, own, environ)
    answers |= _of_a_silent_caller(start_server, own, environ)
    answers |= _of_a_busy_server(start_server, directory, own, environ)
    server = start_server(None, fprocess="sh", **environ)
    answers["classic"] = server.raw(request(body=b"echo printed", headers=own))
    answers["classic failed"] = server.raw(request(body=b"exit 3", headers=own))
    answers["events of a classic function"] = server.raw(request("POST", "/?output=events", body=b"true", headers=own))
    for kind, status in STATUSES.items():
        version = b"1.0" if kind == "http 1.0" else b"1.1"
        assert answers[kind].startswith(b"HTTP/%b %d " % (version, status)), (kind, answers[kind][:500])
    assert answers.keys() == STATUSES.keys()
    return answers


def metrics_answers(start_server: StartServer, **environ: str) -> dict[str, bytes]:
    """Return an answer of each kind of ``METRICS``, from the port for metrics."""
    environ |= {"WATCHDOG_AUTH_TOKEN": TOKEN, "WATCHDOG_AUTH_ALL": "true", "WATCHDOG_METRICS_PORT": str(free_port())}
    server = start_server("true", **environ)
    server.port = int(environ["WATCHDOG_METRICS_PORT"])
    right = {"Authorization": f"Bearer {TOKEN}"}
    answers = {
        "metrics": server.raw(request("GET", "/metrics", headers=right)),
        "no such path": server.raw(request("GET", "/")),
        "method of metrics": server.raw(request("POST", "/metrics")),
        "no token for metrics": server.raw(request("GET", "/metrics")),
    }
    for kind, status in METRICS.items():
        assert answers[kind].startswith(b"HTTP/1.1 %d " % status), (kind, answers[kind][:500])
    return answers


def request(
    method: str = "POST",
    target: str = "/",
    *,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    version: str = "1.1",
) -> bytes:
    given = {"Host": "x", "Connection": "close", **({"Content-Length": str(len(body))} if body else {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in {**given, **(headers or {})}.items())
    return f"{method} {target} HTTP/{version}\r\n{lines}\r\n".encode() + body


def head_of(answer: bytes) -> list[tuple[str, str]]:
    """Return the headers of an answer, with their names in lower case."""
    lines = answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]


def _of_a_script(start_server: StartServer, own: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, bytes]:
    limits = {"WATCHDOG_AUTH_TOKEN": TOKEN, "WATCHDOG_MAX_INPUT_SIZE": "1Mi"}
    server = start_server(SHELL, **{**limits, **environ})
    right = {**own, "Authorization": f"Bearer {TOKEN}"}

    def call(script: str, target: str = "/", version: str = "1.1", **headers: str) -> bytes:
        body = base64.b64encode(script.encode())
        return server.raw(request("POST", target, body=body, headers={**right, **headers}, version=version))

    def get(method: str, target: str, **headers: str) -> bytes:
        return server.raw(request(method, target, headers={**own, **headers}))

    one_file = 'echo text > "$TMP_OUTPUT_DIR/x.txt"'
    choose = 'printf "%s\\n" "Status: {}" > "$HTTP_RESPONSE_FILE"'
    return {
        "base64": call(one_file),
        "raw": call(one_file, "/?output=raw"),
        "zip": call(one_file, "/?output=zip"),
        "json": call(one_file, "/?output=json"),
        "printed": call("echo printed"),
        "long": call(LONG_ANSWER),
        "events": call(one_file, "/?output=events"),
        "events of a failure": call("exit 3", Accept="text/event-stream"),
        "http 1.0": call(one_file, version="1.0"),
        "without a body": call(choose.format(204)),
        "status of the script": call(choose.format(404)),
        "failure with a status of the script": call(choose.format(418) + "; exit 3"),
        "script failed": call("exit 3"),
        "script killed": call("kill -9 $$"),
        "script timed out": call("sleep 60", **{"X-Timeout": "1ms"}),
        "not base64": server.raw(request(body=b"!", headers=right)),
        "malformed": server.raw(b"POST / HTTP/1.1\r\nno header\r\n\r\n"),
        "two hosts": server.raw(request(headers=right).replace(b"\r\n", b"\r\nHost: y\r\n", 1)),
        "no token": get("POST", "/"),
        "method": get("TRACE", "/"),
        "form of answer": call(one_file, Accept="image/png"),
        "input too large": server.raw(request(body=bytes(1 << 21), headers={**right, "X-Input-Encoding": "raw"})),
        "request line": server.raw(request("GET", "/" + MOST_HEAD_BYTES * "x")),
        "headers": server.raw(request(headers={**own, "X": MOST_HEAD_BYTES * "x"})),
        "health": get("GET", "/_/health"),
        "head": get("HEAD", "/"),
        "ready": get("GET", "/_/ready"),
        "description": get("GET", "/_/openapi.json"),
        "page": get("GET", "/_/try"),
        "mistyped path": get("GET", "/_/helth"),
        "redirect to the page": get("GET", "/", **{"Sec-Fetch-Mode": "navigate"}),
        "events again": server.raw(request("GET", "/?output=events", headers={**right, "Last-Event-ID": "c"})),
        "icon": get("GET", "/favicon.ico"),
        "robots": get("GET", "/robots.txt"),
    }


def _of_a_silent_caller(
    start_server: StartServer, own: Mapping[str, str], environ: Mapping[str, str]
) -> dict[str, bytes]:
    # A short timeout needs a separate server, because the call of another test may be slower than this.
    server = start_server("true", **{"WATCHDOG_READ_TIMEOUT": "100ms", **environ})
    whole = request(body=b"12345678", headers=own)
    return {
        "part of a head": server.raw_at_once(b"POST / HTTP/1.1\r\n"),
        "part of a body": server.raw_at_once(whole[:-4]),
    }


def _of_a_busy_server(
    start_server: StartServer, directory: Path, own: Mapping[str, str], environ: Mapping[str, str]
) -> dict[str, bytes]:
    limits = {"WATCHDOG_MAX_INFLIGHT": "1", "WATCHDOG_MAX_QUEUE": "0", "WATCHDOG_HEALTHCHECK_INTERVAL": "0"}
    server = start_server(AT_THE_GATE, DIR=str(directory), WATCHDOG_WRITE_TIMEOUT="0.1s", **{**limits, **environ})
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(_raw, server, request(headers=own))
        until((directory / "up").exists, "the script")
        answers = {
            "queue is full": server.raw(request(headers=own)),
            "not ready": server.raw(request("GET", "/_/ready", headers=own)),
        }
        server.signal(signal.SIGTERM)
        answers["stopping"] = running.result()
    return answers


def _raw(server: RunningServer, data: bytes) -> bytes:
    with server.connect() as sock:
        sock.sendall(data)
        return read_all(sock)
