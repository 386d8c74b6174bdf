"""Describe what the server answers, as an OpenAPI 3.1 document for people and programs.

::

    Interface -> document -> paths       "/" and "/{path}" (the function), "/_/…" (the server's own), "/metrics"
                          -> components  schemas, parameters, responses and bodies, each written once

The document is made on request, from the settings of this server. Statuses, methods and names of forms come from the
modules that define them, so the document cannot contradict these modules. OpenAPI cannot express three things, so the
descriptions contain them: a path of any depth, a status and headers that the script chooses, and the form of the answer
that ``Accept`` chooses (OpenAPI ignores a parameter of that name).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import __version__
from ..output.accept import AnswerForm
from ..output.event_stream import EVENT_STREAM_TYPE

_Json = dict[str, Any]

_PROBLEM = "application/problem+json"
_ANY_TYPE = "*/*"
_TEXT = "text/plain"
_ABOUT_EVENTS = (
    "`events`, like `Accept: text/event-stream`, answers with server-sent events while the function runs. The last "
    "event is `completed`, with the status that the call would have without the stream. A stream without it failed."
)
# The format "binary" is from OpenAPI 3.0. OpenAPI 3.1 does not need it, but generators of clients use it.
_BYTES: _Json = {"type": "string", "format": "binary"}
# The meaning of each status of an error, also for the docs (`make docs`).
MEANINGS: Mapping[int, str] = {
    400: "The body cannot be decoded, or a form, name or header is malformed; `detail` has the reason.",
    401: "The bearer token is missing or wrong. If many calls have a wrong token, this answer is delayed.",
    405: "The server does not answer this method; `Allow` names the methods that it answers.",
    406: "The outputs cannot be sent in the form that the caller wants; `detail` names the possible forms.",
    408: "No byte arrived for `read_timeout`, or fewer bytes a second than `min_data_rate`.",
    413: "The input is larger than `max_input_size`.",
    414: "The request line has more than 64 KiB.",
    422: "The storage event reports an object, version, bucket or space that does not exist.",
    429: "All places are taken, and the queue is full or `queue_timeout` passed; or the body arrived too slowly while "
    "another call needed its place in the queue; or too many answers are still being sent. Try again after "
    "`Retry-After`.",
    431: "The request line and all headers together have more than 64 KiB, or there are more than 1024 headers.",
    500: "The function failed (`exit_code`), was killed (`signal`, `out_of_memory`) or does not exist, its worker did "
    "not keep to the protocol, or its outputs are larger than `max_output_size` or cannot be read.",
    502: "A storage failed: the object of the event could not be fetched, or some outputs could not be stored "
    "(`stored`, `not_stored`).",
    503: "The server is stopping: send the call again, to another server if there are several. Or no worker of a warm "
    "function could be loaded (`exit_code`, `stderr`). Try again after `Retry-After`.",
    504: "The function ran for longer than `exec_timeout` or `X-Timeout`, and was ended.",
    507: "The disk has no space for the input, for stdout, or for the files of a function that failed.",
}
_NOT_OF_CLASSIC_FUNCTIONS = frozenset({406})
_OF_STORAGE = frozenset({422, 502})
# The status and the title of errors that are sent before a call begins.
ANSWERED_BEFORE_A_CALL = ((414, "Request line too long"), (431, "Request headers too large"))

# The settings whose values the document contains. For those in the second set, 0 means no limit.
LIMITS = (
    "max_inflight",
    "max_queue",
    "queue_timeout_s",
    "exec_timeout_s",
    "read_timeout_s",
    "write_timeout_s",
    "max_input_size_bytes",
    "max_output_size_bytes",
)
_NONE_IF_0 = frozenset(LIMITS) - {"max_queue", "queue_timeout_s"}

# The texts that base64_reader.py accepts, as regular expressions of ECMA-262. A text has only one alphabet. Line
# ends may be anywhere. Blanks may be at the start and the end of a line. The padding is complete or missing. All unused
# bits are 0. The text may also be a data URL, or have the quotes of OSCAR's curl example. JSON is accepted, too, and is
# recognized by its first byte.
_WHITE = r"[ \t\r\n]*"
_GAP = r"(?:[ \t]*[\r\n][ \t\r\n]*)?"


def _characters(alphabet: str) -> str:
    one = rf"[{alphabet}]{_GAP}"
    last_of_two, last_of_three = "[AQgw]", "[AEIMQUYcgkosw048]"
    return rf"(?:(?:{one}){{4}})*(?:{one}{last_of_two}(?:{_GAP}={_GAP}=)?|{one}{one}{last_of_three}(?:{_GAP}=)?)?"


_ALPHABETS = (_characters("A-Za-z0-9+/"), _characters("A-Za-z0-9_-"))
_BASE64_PATTERNS = (
    *(rf"^{_WHITE}(?:data:[^,\"]{{0,500}};base64,{_WHITE})?{each}{_WHITE}$" for each in _ALPHABETS),
    *(rf"^{_WHITE}=\"{_WHITE}{each}{_WHITE}\"{_WHITE}$" for each in _ALPHABETS),
    rf"^{_WHITE}[{{\[]",
)
# A duration, as settings/kinds.py reads it. The first group rejects zero, because then the function would have no time.
_NUMBER = r"(?:[0-9]{1,9}(?:\.[0-9]*)?|\.[0-9]+)"
_DURATION_PATTERN = rf"^(?=.*[1-9])\+?(?:{_NUMBER}|(?:{_NUMBER}(?:ns|us|ms|s|m|h))+)$"
_NAME_PATTERN = r"^[^\u0000-\u001f\u007f]*$"
_ENCODED_NAME_PATTERN = r"^(?:(?!%(?:[01]|7[Ff]))[^\u0000-\u001f\u007f])*$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """The facts about a server that its document describes.

    Args:
        service_name: the name of the service on its platform or in its service definition.
        is_classic: the function is a command that reads the body from stdin, not a script with files.
        is_warm: the function is a script that stays alive between calls.
        has_token: calls must have a bearer token.
        is_token_for_all: requests for this document and for the metrics must have the token, too.
        has_storage: the server fetches the objects of storage events, or stores outputs.
        methods: the methods that call the function.
        errors: the status and the title of each problem.
        encodings: the values of ``?input=``.
        forms: the values of ``?output=``.
        content_type: the content type of a classic function's answers, if it is always the same.
        metrics_port: the port of the metrics, or None if they are off.
        limits: the current value of each limit in ``LIMITS``.
    """

    service_name: str
    is_classic: bool
    is_warm: bool
    has_token: bool
    is_token_for_all: bool
    has_storage: bool
    methods: Sequence[str]
    errors: Sequence[tuple[int, str]]
    encodings: Sequence[str]
    forms: Sequence[str]
    content_type: str | None
    metrics_port: int | None
    limits: Mapping[str, float]


def document(interface: Interface) -> _Json:
    """Return the document as plain data."""
    paths: _Json = {
        "/": _function(interface, "Root", []),
        "/{path}": _function(interface, "Path", [_ref("parameters", "path")]),
        "/_/health": _readable(_health(), None),
        "/_/ready": _readable(_ready(), None),
        "/_/openapi.json": _readable(_itself(), interface),
    }
    if interface.metrics_port is not None:
        paths["/metrics"] = {"servers": [_metrics_server(interface.metrics_port)], **_readable(_metrics(), interface)}
    components: _Json = {
        "schemas": _schemas(),
        "parameters": _parameters(interface),
        "headers": _headers(),
        "responses": _responses(interface),
        "requestBodies": {"input": _request_body(interface)},
    }
    if interface.has_token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.1",
        "info": {
            "title": interface.service_name,
            "summary": "A function, called over HTTP",
            "description": _description(interface),
            "version": __version__,
        },
        # This URL is relative to the URL of the document. So it is also correct if a gateway adds a prefix.
        "servers": [{"url": ".."}],
        "tags": [
            {"name": "function", "description": "Calls of the function"},
            {"name": "operation", "description": "Requests of platforms and operators"},
        ],
        "paths": paths,
        "components": components,
    }


def _description(interface: Interface) -> str:
    limits = "\n".join(f"- {_limit(interface, name)}" for name in LIMITS)
    return (
        f"Served by oscar-watchdog {__version__}. The current limits:\n\n{limits}\n\n"
        "Every path except those under `/_/` in this document calls the same function. The function may read the path."
        "\n\nRequests with HEAD, or with GET and the `User-Agent` `kube-probe/…` (Kubernetes), do not call it. They "
        "are answered like `/_/health`."
    )


# ------------------------------------------------------------------------------------------------- paths


def _function(interface: Interface, suffix: str, parameters: list[_Json]) -> _Json:
    names = ["X-Call-Id", "X-Timeout", "traceparent", "tracestate"]
    if not interface.is_classic:
        names = ["input", "output", "filename", *names, "X-Input-Encoding", "X-Filename"]
    of_http = [status for status, _ in ANSWERED_BEFORE_A_CALL]
    codes = ["200", *sorted({str(status) for status in [*_error_statuses(interface), *of_http]}), "default"]
    operation: _Json = {
        "tags": ["function"],
        "summary": "Call the function",
        "description": _of_a_call(interface),
        "parameters": [*parameters, *(_ref("parameters", name) for name in names)],
        "responses": {code: _ref("responses", code) for code in codes},
    }
    if interface.has_token:
        operation["security"] = [{"token": []}]
    item: _Json = {"description": f"Other methods than {', '.join(interface.methods)} are answered 405."}
    for method in interface.methods:
        if method == "HEAD":
            item["head"] = {**_health(), "operationId": f"probe{suffix}", "parameters": parameters}
            item["head"]["summary"] = "Check that the server is alive; the function does not run"
            continue
        item[method.lower()] = {**operation, "operationId": f"call{suffix}With{method.capitalize()}"}
        # In HTTP, a body has no meaning for these methods (RFC 9110, 9.3), and OpenAPI advises not to declare one.
        if method not in ("GET", "DELETE"):
            item[method.lower()]["requestBody"] = _ref("requestBodies", "input")
    return item


def _of_a_call(interface: Interface) -> str:
    if interface.is_classic:
        return (
            "The function reads the body from stdin while the body arrives. What the function prints is the answer. "
            "All methods do the same, except HEAD, which is answered like `/_/health`. "
            "A GET or DELETE may have a body, too, but some clients and proxies do not send it. "
            "If the request is a CloudEvent (binary mode, headers `ce-…`), the answer is also a CloudEvent."
        )
    return (
        "The body becomes the function's input file. The output files are the answer: base64 of one file, or base64 of "
        "a ZIP of several files. If there is no output file, the answer is what the function printed. `?output=` or "
        "`Accept` selects another form: `application/zip`, `application/json`, or the type of the only file for the "
        "bytes of that file. "
        "All methods do the same, except HEAD, which is answered like `/_/health`. "
        "A GET or DELETE may have a body, too, but some clients and proxies do not send it. "
        "If the request is a CloudEvent (binary mode, headers `ce-…`), the answer is also a CloudEvent."
    )


def _readable(operation: _Json, behind_token: Interface | None) -> _Json:
    """Return an operation twice: as GET, and as HEAD, which returns only the headers.

    Args:
        behind_token: the interface of the server if requests for this path may need the token, else None.
    """
    if behind_token is not None and behind_token.is_token_for_all:
        refusals = {code: _ref("responses", code) for code in ("401", "429")}
        operation = {**operation, "security": [{"token": []}], "responses": operation["responses"] | refusals}
    return {"get": operation, "head": {**operation, "operationId": f"{operation['operationId']}Head"}}


def _health() -> _Json:
    return {
        "tags": ["operation"],
        "operationId": "health",
        "summary": "Check that the server is alive",
        "responses": {
            "200": _text_response("The server is healthy.", "OK"),
            "503": _text_response(
                "The server is stopping, its lock file is gone and cannot be written again, or a script has lowered "
                "limits of the server.",
                "draining",
                retry_after=True,
            ),
        },
    }


def _ready() -> _Json:
    return {
        "tags": ["operation"],
        "operationId": "ready",
        "summary": "Check that a new call would run at once",
        "responses": {
            "200": _text_response("A new call would run at once.", "OK"),
            "429": _text_response("A new call would wait or be rejected: no place is free.", "no place is free"),
            "503": _text_response(
                "The server is stopping or not healthy, or the function does not exist.", "draining", retry_after=True
            ),
        },
    }


def _itself() -> _Json:
    return {
        "tags": ["operation"],
        "operationId": "openapi",
        "summary": "This document",
        "responses": {
            "200": {
                "description": "OpenAPI 3.1",
                "content": {
                    "application/json": {"schema": {"type": "object", "required": ["openapi", "info", "paths"]}}
                },
            }
        },
    }


def _metrics() -> _Json:
    return {
        "tags": ["operation"],
        "operationId": "metrics",
        "summary": "Metrics for Prometheus",
        "responses": {
            "200": _text_response("The metrics in Prometheus's text format.", "http_requests_in_flight 0.0\n")
        },
    }


def _metrics_server(port: int) -> _Json:
    host = {"default": "localhost", "description": "The address of the container; gateways do not forward this port."}
    return {"url": f"http://{{host}}:{port}", "variables": {"host": host}}


# -------------------------------------------------------------------------------------------- components


def _request_body(interface: Interface) -> _Json:
    limit = _limit(interface, "max_input_size_bytes")
    if interface.is_classic:
        description = f"Any bytes, with any content type. They are not decoded. {limit}."
        return {"description": description, "content": {_ANY_TYPE: {"schema": dict(_BYTES)}}}
    content: _Json = {
        _TEXT: {"schema": {"$ref": "#/components/schemas/Base64"}, "example": "aGVsbG8K"},
        "application/octet-stream": {"schema": dict(_BYTES)},
        "application/json": {"schema": {"description": "Any JSON, which is kept byte for byte; or base64."}},
        "application/x-www-form-urlencoded": {
            "schema": {
                "description": "Fields, which become a JSON object; or base64, as `curl -d` sends it. "
                "A single field without a value may look like base64 with padding; to send such a field, end it with "
                "`&`.",
                "type": "object",
                "propertyNames": {"minLength": 1},
            }
        },
        "multipart/form-data": {
            "schema": {
                "description": "Each part becomes a file. If one part is a file, that file is the input. Fields count "
                "only if no part is a file.",
                "type": "object",
                "properties": {"file": dict(_BYTES)},
                "minProperties": 1,
                "propertyNames": {"pattern": _NAME_PATTERN},
            }
        },
        _ANY_TYPE: {"schema": dict(_BYTES)},
    }
    return {
        "description": (
            "The input file. The server detects forms, JSON and base64 by the content type and the first bytes. "
            "A body of the type `application/octet-stream` is read as base64 or raw. Any other type, such as "
            "`text/csv`, means raw bytes. `?input=` or `X-Input-Encoding` overrides this detection. "
            "`X-Input-Encoding` of the answer says how the body was read. `Content-Encoding: gzip` and `deflate` are "
            "decoded. Offsets in errors count the decoded bytes. An empty body is an empty file. "
            f"{limit}."
        ),
        "content": content,
    }


def _parameters(interface: Interface) -> _Json:
    def query(name: str, description: str, schema: _Json) -> _Json:
        return {"name": name, "in": "query", "description": description, "schema": schema}

    def header(name: str, description: str, schema: _Json, **more: object) -> _Json:
        return {"name": name, "in": "header", "description": description, "schema": schema, **more}

    text = {"type": "string"}
    encoding = {"type": "string", "enum": list(interface.encodings)}
    of_any: _Json = {
        "path": {
            "name": "path",
            "in": "path",
            "required": True,
            "description": (
                "Any path. The function gets it as `Http_Path`. It may have slashes, which OpenAPI cannot express. "
                "A client that is generated from this document may send them as `%2F`, which works, too."
            ),
            "schema": {"type": "string", "minLength": 1},
        },
        "X-Call-Id": header(
            "X-Call-Id",
            "The id of the call in its answer and its logs: visible ASCII without spaces. Without it, the server makes "
            "an id.",
            {"type": "string", "pattern": "^[!-~]{1,256}$"},
        ),
        "X-Timeout": header(
            "X-Timeout",
            "The time limit of the function, in seconds or like `1m30s`. It can only shorten "
            f"{_limit(interface, 'exec_timeout_s')}.",
            {"type": "string", "pattern": _DURATION_PATTERN},
            example="30s",
        ),
        "traceparent": header(
            "traceparent", "W3C Trace Context, for the function and the log. It is ignored if it is malformed.", text
        ),
        "tracestate": header("tracestate", "W3C Trace Context, used together with `traceparent`.", text),
    }
    if interface.is_classic:
        events = {**text, "enum": [AnswerForm.EVENTS.value]}
        return {**of_any, "output": query("output", _ABOUT_EVENTS, events)}
    return {
        **of_any,
        "input": query(
            "input", "How to read the body. Without it, the content type and the first bytes decide.", encoding
        ),
        "output": query(
            "output",
            f"The form of the answer. It overrides `Accept`. {_ABOUT_EVENTS}",
            {**text, "enum": [*interface.forms]},
        ),
        "filename": query(
            "filename",
            "The name of the input file. The server replaces unsafe characters. `X-Filename` overrides it.",
            {**text, "pattern": _NAME_PATTERN},
        ),
        "X-Input-Encoding": header(
            "X-Input-Encoding", "How to read the body, like `?input=`. If both are given, `?input=` counts.", encoding
        ),
        "X-Filename": header(
            "X-Filename",
            "The name of the input file, as percent-encoded UTF-8. The server replaces unsafe characters.",
            {**text, "pattern": _ENCODED_NAME_PATTERN},
        ),
    }


def _responses(interface: Interface) -> _Json:
    headers = _refs_to_headers("X-Call-Id", "X-Exit-Code", "X-Duration-Seconds", "X-Input-Encoding")
    if interface.is_warm:
        headers |= _refs_to_headers("X-Warm")
    problem = {_PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    responses: _Json = {"200": _success(interface, headers)}
    for status in _error_statuses(interface):
        titles = dict.fromkeys(title for code, title in interface.errors if code == status)
        response: _Json = {
            "description": f"{', '.join(titles)}. {MEANINGS.get(status, '')}".strip(),
            "headers": dict(headers),
            "content": dict(problem),
        }
        if status in (429, 503):
            response["headers"] |= _refs_to_headers("Retry-After")
        if status == 429 and interface.has_token:
            response["description"] += " Also if the token is wrong and many other calls have a wrong token, too."
        if status == 401:
            response["headers"] |= _refs_to_headers("WWW-Authenticate")
        if status == 500 and interface.is_classic:
            response["description"] += " As text: the exit status, stdout, and the end of stderr."
            response["content"][_TEXT] = {"schema": {"type": "string"}}
        responses[str(status)] = response
    for status, title in ANSWERED_BEFORE_A_CALL:
        responses[str(status)] = {"description": f"{title}. {MEANINGS[status]}", "content": dict(problem)}
    responses["405"] = {
        "description": MEANINGS[405],
        "headers": _refs_to_headers("Allow"),
        "content": dict(problem),
    }
    responses["default"] = {
        "description": (
            "A status that the function chose in `HTTP_RESPONSE_FILE`. It may also have chosen headers. "
            "If the function failed, the body is a problem document."
        ),
        "headers": headers | _refs_to_headers("X-Warning"),
        "content": {**problem, _ANY_TYPE: {}},
    }
    return responses


def _success(interface: Interface, headers: _Json) -> _Json:
    if interface.is_classic:
        content: _Json = {interface.content_type or _ANY_TYPE: {}, EVENT_STREAM_TYPE: {}}
        return {
            "description": "The function's stdout.",
            "headers": headers | _refs_to_headers("X-Warning"),
            "content": content,
        }
    return {
        "description": (
            "The output of the function. `text/plain` is base64 and a line end; or what the function printed, if there "
            "is no output file; or the reason why a storage event did not run the function. Binary data that the "
            "function printed has the type that its first bytes show, or `application/octet-stream`. "
            "With `?output=raw`, an output file that is JSON is sent unchanged as `application/json`."
        ),
        "headers": headers
        | _refs_to_headers("X-Output-Name", "X-Output-Content-Type", "Content-Disposition", "X-Warning"),
        "content": {
            _TEXT: {"schema": {"type": "string"}},
            "application/json": {"schema": {"$ref": "#/components/schemas/Outcome"}},
            "application/zip": {},
            "application/octet-stream": {},
            EVENT_STREAM_TYPE: {},
            _ANY_TYPE: {},
        },
    }


def _schemas() -> _Json:
    text: _Json = {"type": "string"}
    count: _Json = {"type": "integer", "minimum": 0}
    return {
        "Base64": {
            "description": "Base64 in one alphabet, with or without padding and line ends; also as `data:…;base64,`.",
            "type": "string",
            "contentEncoding": "base64",
            "contentMediaType": "application/octet-stream",
            "anyOf": [{"pattern": pattern} for pattern in _BASE64_PATTERNS],
        },
        "Problem": {
            "description": "An error (RFC 9457).",
            "type": "object",
            "required": ["type", "title", "status", "detail"],
            "properties": {
                "type": {"type": "string", "format": "uri-reference"},
                "title": text,
                "status": {"type": "integer", "minimum": 400, "maximum": 599},
                "detail": {"description": "What happened, to what, and what to do.", **text},
                "call_id": {
                    "description": "The same as X-Call-Id. It is missing if the request was not a call (405, or "
                    "malformed HTTP).",
                    **text,
                },
                "exit_code": {"description": "The function's exit code, if it ended by itself.", "type": "integer"},
                "signal": {"description": "The signal that ended the function, such as SIGSEGV.", **text},
                "out_of_memory": {"description": "Whether memory had run out.", "type": "boolean"},
                "stderr": {"description": "The last 4 KiB of the function's stderr.", **text},
                "stored": {
                    "description": "The outputs that were stored, as provider:location.",
                    "type": "array",
                    "items": text,
                },
                "not_stored": {
                    "description": "The outputs that were not stored, as provider:location, each with the reason.",
                    "type": "object",
                    "additionalProperties": text,
                },
            },
        },
        "Outcome": {
            "description": "The whole result of a call, for `?output=json` or `Accept: application/json`.",
            "type": "object",
            "required": ["exit_code", "duration_s", "outputs", "stdout", "stderr", "warnings"],
            "properties": {
                "exit_code": {"type": ["integer", "null"]},
                "duration_s": {"type": "number", "minimum": 0},
                "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/Output"}},
                "stdout": {"description": "The end of the function's stdout.", **text},
                "stderr": {"description": "The end of the function's stderr.", **text},
                "warnings": {
                    "description": "Why the result may be wrong or incomplete although the function did not fail.",
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "detail"],
                        "properties": {
                            "name": {"description": "The same name as in X-Warning.", **text},
                            "detail": {"description": "What happened and what to do.", **text},
                        },
                    },
                },
                "skipped": {"description": "The reason why a storage event did not run the function.", **text},
            },
        },
        "Output": {
            "description": "An output file of the function.",
            "type": "object",
            "required": ["name", "size", "content_type", "sha256", "data"],
            "properties": {
                "name": {"description": "The name of the file, with its folders.", **text},
                "size": {"description": "The size in bytes.", **count},
                "content_type": {"description": "The content type, guessed from the name.", **text},
                "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
                "data": {"type": "string", "contentEncoding": "base64", "contentMediaType": "application/octet-stream"},
            },
        },
    }


def _headers() -> _Json:
    def header(description: str, schema: _Json, *, required: bool = False) -> _Json:
        return {"description": description, "schema": schema, **({"required": True} if required else {})}

    text: _Json = {"type": "string"}
    return {
        "X-Call-Id": header("The id of the call: the caller's X-Call-Id, or an id made by the server.", text),
        "X-Exit-Code": header("The function's exit code, if it ended by itself.", {"type": "integer"}),
        "X-Duration-Seconds": header("The time for which the function ran.", {"type": "number", "minimum": 0}),
        "X-Input-Encoding": header(
            "How the body was read. It is missing if the call ended before this was known. An empty body and a classic "
            "function's body are `raw`.",
            {"type": "string", "enum": ["base64", "raw", "json", "form", "multipart"]},
        ),
        "X-Warm": header(
            "How many calls the worker of a warm function had served before this one.",
            {"type": "integer", "minimum": 0},
        ),
        "X-Output-Name": header("The name of the only output file, percent-encoded.", text),
        "X-Output-Content-Type": header("The content type of the only output file, guessed from its name.", text),
        "X-Warning": header(
            "Why the result may be wrong or incomplete although the function did not fail: names such as `no-output`, "
            "separated by commas.",
            text,
        ),
        "Content-Disposition": header("A file name for raw bytes and ZIPs.", text),
        "Retry-After": header(
            "The caller may try again after this number of seconds.", {"type": "integer", "minimum": 0}
        ),
        "WWW-Authenticate": header("Always Bearer.", text, required=True),
        "Allow": header("The methods that the server answers at this path.", text, required=True),
    }


# ------------------------------------------------------------------------------------------------ pieces


def _error_statuses(interface: Interface) -> list[int]:
    left_out = set(_NOT_OF_CLASSIC_FUNCTIONS if interface.is_classic else ())
    if not interface.has_token:
        left_out.add(401)
    if not interface.has_storage:
        left_out |= _OF_STORAGE
    return sorted({status for status, _ in interface.errors} - left_out)


def _limit(interface: Interface, name: str) -> str:
    value = interface.limits[name]
    setting, unit = name, ""
    for suffix, word in (("_s", " s"), ("_bytes", " bytes")):
        if name.endswith(suffix):
            setting, unit = name.removesuffix(suffix), word
    text = "none" if not value and name in _NONE_IF_0 else f"{value}{unit}".replace(".0 s", " s")
    return f"`{setting}`: {text}"


def _text_response(description: str, example: str, *, retry_after: bool = False) -> _Json:
    content: _Json = {_TEXT: {"schema": {"type": "string"}, "example": example}}
    response: _Json = {"description": description, "content": content}
    if retry_after:
        response["headers"] = _refs_to_headers("Retry-After")
    return response


def _refs_to_headers(*names: str) -> _Json:
    return {name: _ref("headers", name) for name in names}


def _ref(kind: str, name: str) -> _Json:
    return {"$ref": f"#/components/{kind}/{name}"}
