"""``/_/openapi.json`` is valid and has the current settings. schemathesis compares it with a running server."""

from __future__ import annotations

import base64
import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from running_server import RunningServer, StartServer, free_port

import watchdog
from watchdog.http.problems import STATUS_OF_ERROR

ROOT = Path(__file__).parent.parent.parent
PLACE = "/_/openapi.json"
TOKEN = "the-token"
# A name without an ending: its type is application/octet-stream, whatever the input was called.
COPY = '#!/bin/sh\nexec cp -r "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/copy"\n'
FAIL = "#!/bin/sh\nexit 3\n"
METHODS = ("get", "head", "post", "put", "patch", "delete")

Document = dict[str, Any]
Change = Callable[[Document], object]

CONFIGURATIONS: dict[str, dict[str, str]] = {
    "script": {},
    "script-with-token": {"WATCHDOG_AUTH_TOKEN": TOKEN},
    "script-with-limits": {"WATCHDOG_MAX_INPUT_SIZE": "10Mi", "exec_timeout": "1m30s", "WATCHDOG_MAX_QUEUE": "0"},
    "script-with-token-for-all": {"WATCHDOG_AUTH_TOKEN": TOKEN, "WATCHDOG_AUTH_ALL": "true"},
    "classic": {"fprocess": "cat"},
    "classic-with-type": {"fprocess": "cat", "content_type": "text/csv; charset=utf-8"},
    "classic-with-token": {"fprocess": "cat", "WATCHDOG_AUTH_TOKEN": TOKEN},
}


def document_of(server: RunningServer) -> Document:
    answer = server.call(None, PLACE, "GET")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    document: Document = answer.json
    return document


def statuses_of(document: Document) -> set[int]:
    """Return the statuses of errors of calls, and the one of requests that are not calls."""
    assert "405" in document["components"]["responses"]
    codes = document["paths"]["/"]["post"]["responses"].keys() - {"200", "default"}
    return {int(code) for code in codes} | {405}


# ---- what it says


def test_it_is_openapi_3_1(start_server: StartServer) -> None:
    """All configurations in one test, because each process that checks documents first imports for two seconds."""
    from openapi_spec_validator import OpenAPIV31SpecValidator

    token = {"Authorization": f"Bearer {TOKEN}"}
    for environ in CONFIGURATIONS.values():
        server = start_server(COPY, **environ, WATCHDOG_METRICS_PORT=str(free_port()))
        document = server.call(None, PLACE, "GET", token).json
        OpenAPIV31SpecValidator(document).validate()
        assert document["openapi"].startswith("3.1.")
        # Each operation is a function of a generated client. So there are no copies for other methods.
        operations = [(path, *each) for path, item in document["paths"].items() for each in item.items()]
        assert {(path, method): it["operationId"] for path, method, it in operations if method in METHODS} == {
            ("/", "post"): "invoke",
            ("/_/health", "get"): "health",
            ("/_/ready", "get"): "ready",
            (PLACE, "get"): "openapi",
            ("/metrics", "get"): "metrics",
        }
    document["components"]["responses"]["400"].pop("description")
    assert not OpenAPIV31SpecValidator(document).is_valid()


def test_it_has_each_status_that_the_server_may_answer(start_server: StartServer, tmp_path: Path) -> None:
    definition = tmp_path / "function_config.yaml"
    definition.write_text(
        "storage_providers: {minio: {default: {endpoint: 'http://127.0.0.1:9', access_key: a, secret_key: b}}}\n"
        "output: [{storage_provider: minio, path: out}]\n"
    )
    text = (ROOT / "docs" / "reference" / "statuses-and-outcomes.md").read_text()
    of_docs = {int(code) for code in re.findall(r"^\| ([45]\d\d) \| ", text, re.MULTILINE)}
    of_server = {status for _, status, _ in STATUS_OF_ERROR}
    assert len(of_docs) > 8
    documented = statuses_of(
        document_of(start_server(COPY, WATCHDOG_AUTH_TOKEN=TOKEN, WATCHDOG_SERVICE_DEFINITION=str(definition)))
    )
    assert documented == of_docs == of_server | {405, 414, 431}
    # These errors need a token or a storage. A classic function has only one form of answer.
    assert statuses_of(document_of(start_server(COPY))) == of_docs - {401, 422, 502}
    assert statuses_of(document_of(start_server(None, fprocess="cat"))) == of_docs - {401, 406, 422, 502}


def test_it_says_that_all_readers_need_the_token(start_server: StartServer) -> None:
    environ = CONFIGURATIONS["script-with-token-for-all"]
    server = start_server(COPY, **environ, WATCHDOG_METRICS_PORT=str(free_port()))
    document = server.call(None, PLACE, "GET", {"Authorization": f"Bearer {TOKEN}"}).json
    for path, is_open in (("/metrics", False), (PLACE, False), ("/_/health", True), ("/_/ready", True)):
        operation = document["paths"][path]["get"]
        assert ("security" not in operation) is is_open
        assert ("401" not in operation["responses"]) is is_open


def test_it_has_the_current_settings(start_server: StartServer) -> None:
    document = document_of(start_server(COPY, **CONFIGURATIONS["script-with-limits"], K_SERVICE="plants"))
    assert document["info"]["title"] == "plants"
    assert document["info"]["version"] == watchdog.__version__
    for limit in ("`max_input_size`: 10485760 bytes", "`exec_timeout`: 90 s", "`max_queue`: 0"):
        assert limit in document["info"]["description"]
    assert "10485760 bytes" in document["components"]["requestBodies"]["input"]["description"]
    assert "90 s" in document["components"]["parameters"]["X-Timeout"]["description"]
    unlimited = document_of(start_server(COPY, OSCAR_SERVICE_NAME="cowsay"))
    assert unlimited["info"]["title"] == "cowsay"
    assert "`max_input_size`: none" in unlimited["info"]["description"]


def test_it_needs_no_token_and_names_the_token_only_if_there_is_one(start_server: StartServer) -> None:
    with_token = document_of(start_server(COPY, WATCHDOG_AUTH_TOKEN=TOKEN))
    assert with_token["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    for path, item in with_token["paths"].items():
        for method in item.keys() & set(METHODS):
            assert ("security" in item[method]) == (path == "/")
    assert TOKEN not in json.dumps(with_token)
    without = document_of(start_server(COPY))
    assert "securitySchemes" not in without["components"]
    assert "security" not in without["paths"]["/"]["post"]


def test_other_methods_are_answered_as_on_the_health_route(start_server: StartServer) -> None:
    server = start_server(COPY)
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        answers = [server.call(None, path, method) for path in (PLACE, "/_/health")]
        assert [(answer.status, answer.headers["Allow"]) for answer in answers] == [(405, "GET, HEAD")] * 2
    assert server.stop() == 0
    assert not any(event["event"] == "invocation ended" for event in server.logs)


def test_a_classic_function_has_no_encodings_and_one_form(start_server: StartServer) -> None:
    document = document_of(start_server(None, **CONFIGURATIONS["classic-with-type"]))
    components = document["components"]
    others = {"X-Call-Id", "X-Timeout", "traceparent", "tracestate"}
    assert components["parameters"].keys() == {*others, "output"}
    assert components["parameters"]["output"]["schema"] == {"type": "string", "examples": ["events"]}
    assert components["requestBodies"]["input"]["content"].keys() == {"application/octet-stream", "*/*"}
    assert components["responses"]["200"]["content"].keys() == {"text/csv; charset=utf-8", "text/event-stream"}
    assert components["responses"]["500"]["content"].keys() == {"text/plain", "application/problem+json"}


# ---- what one can do with it


def test_the_example_of_base64_is_a_call_that_works(start_server: StartServer) -> None:
    server = start_server(COPY)
    document = document_of(server)
    # Clients resolve this URL relative to the URL of the document (OpenAPI 3.1, Server Object).
    url = urljoin(f"http://127.0.0.1:{server.port}{PLACE}", document["servers"][0]["url"])
    operation = document["paths"]["/"]["post"]
    body = resolved(document, operation["requestBody"])["content"]["text/plain"]
    timeout = next(p for p in (resolved(document, p) for p in operation["parameters"]) if p["name"] == "X-Timeout")
    headers = {"Content-Type": "text/plain", "X-Timeout": timeout["example"]}
    answer = server.call(body["example"].encode(), urlsplit(url).path, headers=headers)
    assert answer.status == 200
    assert base64.b64decode(answer.body) == base64.b64decode(body["example"]) != b""
    for name, header in resolved(document, operation["responses"]["200"])["headers"].items():
        assert resolved(document, header)
        assert name in answer.headers or name in ("Content-Disposition", "X-Warning")


def test_its_server_is_right_behind_a_gateway_with_a_prefix(start_server: StartServer) -> None:
    url = document_of(start_server(COPY))["servers"][0]["url"]
    assert urljoin(f"https://gateway.example/function/plants{PLACE}", url) == "https://gateway.example/function/plants/"


def test_the_metrics_are_where_it_says(start_server: StartServer) -> None:
    server = start_server(COPY, WATCHDOG_METRICS_PORT=str(free_port()))
    document = document_of(server)
    (place,) = document["paths"]["/metrics"]["servers"]
    url = urlsplit(place["url"].format(**{name: value["default"] for name, value in place["variables"].items()}))
    answer = server.call(None, "/metrics", "GET", port=url.port)
    assert answer.status == 200
    (media_type,) = document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    assert answer.headers.get_content_type() == media_type
    assert "/metrics" not in document_of(start_server(COPY, WATCHDOG_METRICS_PORT="0"))["paths"]


def resolved(document: Document, node: Document) -> Document:
    while "$ref" in node:
        found: Any = document
        for key in node["$ref"].removeprefix("#/").split("/"):
            found = found[key]
        node = found
    return node


# ---- schemathesis


# Hundreds of calls, one after the other: ten seconds on an idle machine.
SCHEMATHESIS_S = 540
many_calls = pytest.mark.timeout(SCHEMATHESIS_S + 60)


def made_strict(document: Document) -> Document:
    """Return a document in which each answer of ``COPY`` has exactly one description.

    The function chooses no status, and its file has no type of its own. ``*/*`` of the body is one type of many, as
    schemathesis would choose it from those that have rules of their own.

    The document says only in words that other methods and paths do the same. Here each has an operation of its own.
    """
    strict = copy.deepcopy(document)
    components, paths = strict["components"], strict["paths"]
    for response in components["responses"].values():
        if len(response["content"]) > 1:
            response["content"].pop("*/*", None)
    content = components["requestBodies"]["input"]["content"]
    content["image/jpeg"] = content.pop("*/*")
    paths["/"]["post"]["responses"].pop("default")
    paths["/{path}"] = {}
    path = {"name": "path", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    for place, name in (("/", "Root"), ("/{path}", "Path")):
        for method in METHODS:
            operation = copy.deepcopy(paths["/"]["post"])
            if method in ("get", "head", "delete"):
                operation.pop("requestBody")
            if method == "head":
                operation = {"responses": paths["/_/health"]["get"]["responses"]}
            operation |= {"operationId": f"call{name}With{method.capitalize()}"}
            if place != "/":
                operation["parameters"] = [path, *operation.get("parameters", [])]
            paths[place].setdefault(method, operation)
    for item in paths.values():
        if "post" not in item:
            item["head"] = {**item["get"], "operationId": f"{item['get']['operationId']}Head"}
    return strict


def schemathesis(server: RunningServer, document: Document, *flags: str) -> dict[str, Any]:
    """Run schemathesis on a server, with the same cases each time. Check that it is complete, and return its report."""
    directory = server.directory
    (directory / "openapi.json").write_text(json.dumps(document))
    report = directory / "report.json"
    report.unlink(missing_ok=True)
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", "openapi.json"),
            *("--url", f"http://127.0.0.1:{server.port}", "--checks", "all", "--request-timeout", "60"),
            *("--generation-deterministic", "--no-shrink", "--continue-on-failure", "--no-color"),
            *("--report", "json", "--report-json-path", str(report), *flags),
        ],
        cwd=directory,
        env=os.environ | {"SCHEMATHESIS_HOOKS": "openapi_hooks", "PYTHONPATH": f"{Path(__file__).parent}:{ROOT}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SCHEMATHESIS_S,
    )
    assert report.exists(), finished.stdout + finished.stderr
    result: dict[str, Any] = json.loads(report.read_text())
    result["output"] = finished.stdout
    assert result["complete"], finished.stdout
    assert result["errors"] == [], finished.stdout
    assert result["operations"]["tested"] == result["operations"]["selected"] > 0
    return result


@pytest.mark.slow
@many_calls
def test_the_server_answers_as_described(start_server: StartServer) -> None:
    """All ways to call the function, and the routes of the server: in one run, because a start takes two seconds.

    The same code reads the parameters in all these ways, so the next test tries random ones in one way only.
    """
    server = start_server(COPY)
    flags = ("--exclude-path", "/metrics", "--phases", "examples,coverage")
    result = schemathesis(server, made_strict(document_of(server)), *flags)
    assert result["failures"] == [], result["output"]
    assert result["operations"]["tested"] == 2 * len(METHODS) + 6  # GET and HEAD of each route of the server
    assert result["test_cases"]["generated"] > 2 * 400
    assert server.stop() == 0
    outcomes = {event["outcome"] for event in server.logs if event["event"] == "invocation ended"}
    # Calls that were run, and calls that were refused before that.
    assert {"ok", "bad_input"} <= outcomes
    assert not any(event["level"] == "error" for event in server.logs)


@pytest.mark.slow
@many_calls
def test_a_server_with_a_token_answers_as_described(start_server: StartServer) -> None:
    server = start_server(COPY, WATCHDOG_AUTH_TOKEN=TOKEN)
    flags = ["--include-operation-id", "invoke", "--phases", "examples,coverage,fuzzing"]
    flags += ["--max-examples", "25", "--header", f"Authorization: Bearer {TOKEN}"]
    # The check missing_required_header cannot work, because --header adds the token again. The check ignored_auth makes
    # calls without a token.
    flags += ["--exclude-checks", "missing_required_header"]
    result = schemathesis(server, made_strict(document_of(server)), *flags)
    assert result["failures"] == [], result["output"]
    assert server.stop() == 0
    assert any(event.get("status") == 401 for event in server.logs if event["event"] == "call refused")


@pytest.mark.slow
@many_calls
def test_a_classic_function_answers_as_described(start_server: StartServer) -> None:
    server = start_server(None, **CONFIGURATIONS["classic-with-type"])
    flags = ("--include-path", "/{path}", "--phases", "coverage")
    result = schemathesis(server, made_strict(document_of(server)), *flags)
    assert result["failures"] == [], result["output"]
    assert result["operations"]["tested"] == len(METHODS)


# Changes that make the document wrong, by the check that finds them.
LIES: dict[str, Change] = {
    "UndefinedStatusCode": lambda it: it["paths"]["/"]["post"]["responses"].pop("400"),
    "UndefinedContentType": lambda it: it["components"]["responses"]["200"]["content"].pop("text/plain"),
    "MissingHeaders": lambda it: it["components"]["headers"]["Content-Disposition"].update(required=True),
    "JsonSchemaError": lambda it: it["components"]["schemas"]["Output"]["properties"]["size"].update(type="string"),
    "AcceptedNegativeData": lambda it: it["components"]["parameters"]["traceparent"]["schema"].update(maxLength=3),
    "RejectedPositiveData": lambda it: it["components"]["parameters"]["output"]["schema"]["enum"].append("xml"),
    "UnsupportedMethodResponse": lambda it: it["paths"]["/"].pop("patch"),
    "AllowHeaderMismatch": lambda it: it["paths"]["/"].pop("put"),
    "IgnoredAuth": lambda it: it["paths"]["/"]["post"].update(security=[{"token": []}]),
}


@pytest.mark.slow
@many_calls
def test_schemathesis_sees_a_document_that_is_not_true(start_server: StartServer) -> None:
    server = start_server(COPY)
    document = made_strict(document_of(server))
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for lie in LIES.values():
        lie(document)
    # Two checks look at the token.
    assert failures(server, document) == LIES.keys() | {"MissingHeaderNotRejected"}


@pytest.mark.slow
@many_calls
def test_schemathesis_sees_a_wrong_schema_of_the_data_of_an_event(start_server: StartServer) -> None:
    server = start_server(COPY)
    document = made_strict(document_of(server))
    document["components"]["schemas"]["CompletedEvent"]["properties"]["status"]["type"] = "string"
    assert failures(server, document, fuzzes=False) == {"JsonSchemaError"}


@pytest.mark.slow
@many_calls
def test_schemathesis_sees_a_script_that_fails(start_server: StartServer) -> None:
    server = start_server(FAIL)
    assert failures(server, made_strict(document_of(server))) == {"ServerError"}


def failures(server: RunningServer, document: Document, *, fuzzes: bool = True) -> set[str]:
    """Return the kinds of failures of one operation. The unchanged document has none there."""
    phases = "coverage,fuzzing" if fuzzes else "coverage"
    flags = ("--include-operation-id", "invoke", "--phases", phases, "--max-examples", "25")
    return {failure["type"] for failure in schemathesis(server, document, *flags)["failures"]}
