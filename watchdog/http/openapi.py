"""Describe what the server answers, as an OpenAPI 3.1 document for people and programs.

::

    Interface -> document -> paths       "/" and "/{path}": the function; "/_/…": the server's own; "/metrics"
                          -> components  schemas, parameters, responses and bodies, each written once

The document is made on request, from the settings of this server. Other modules pass in what they decide (statuses,
methods, names of forms), so the document cannot contradict them. OpenAPI cannot express three things, so descriptions
contain them: a path of any depth, a status and headers that the script chooses, and the form of an answer that
``Accept`` chooses (OpenAPI ignores a parameter of that name).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import __version__

_Json = dict[str, Any]

_PROBLEM = "application/problem+json"
_ANY_TYPE = "*/*"
_TEXT = "text/plain"
# OpenAPI 3.0's word for bytes as they are: 3.1 needs none, but makers of clients go by it.
_BYTES: _Json = {"type": "string", "format": "binary"}
# What each status of an error means, also for the docs (`make docs`).
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
    500: "The function failed (`exit_code`), was killed (`signal`, `out_of_memory`) or does not exist, or its outputs "
    "are larger than `max_output_size` or cannot be read.",
    502: "A storage failed: the object of the event could not be fetched, or some outputs could not be stored "
    "(`stored`, `not_stored`).",
    503: "The server is stopping. Send the call again, to another server if there are several.",
    504: "The function ran for longer than `exec_timeout` or `X-Timeout`, and was ended.",
    507: "The disk has no space for the input, for stdout, or for the files of a function that failed.",
}
_NOT_OF_CLASSIC_FUNCTIONS = frozenset({406})
_OF_STORAGE = frozenset({422, 502})
# The status and the title of requests that are answered before they are a call.
ANSWERED_BEFORE_A_CALL = ((414, "Request line too long"), (431, "Request headers too large"))

# Bounds that callers meet, by the attributes of the settings; and those of them that 0 turns off.
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

# What base64_reader.py accepts, in the regular expressions of ECMA-262: one alphabet, line ends anywhere, blanks at the
# start and the end of a line, padding complete or left out, no bits set behind the last byte; as a data URL, or in the
# quotes of OSCAR's curl example. Or JSON, known by its first byte.
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
# As settings/kinds.py reads it. The first group refuses a zero, which would leave the function no time.
_NUMBER = r"(?:[0-9]{1,9}(?:\.[0-9]*)?|\.[0-9]+)"
_DURATION_PATTERN = rf"^(?=.*[1-9])\+?(?:{_NUMBER}|(?:{_NUMBER}(?:ns|us|ms|s|m|h))+)$"
_NAME_PATTERN = r"^[^\u0000-\u001f\u007f]*$"
_ENCODED_NAME_PATTERN = r"^(?:(?!%(?:[01]|7[Ff]))[^\u0000-\u001f\u007f])*$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """What a server offers.

    Args:
        service_name: what its platform or its service definition calls it.
        is_classic: the function is a command with the body on its stdin, not a script with files.
        has_token: calls must carry a bearer token.
        is_token_for_all: readers of this document and of the metrics must carry it, too.
        has_storage: objects of storage events are fetched, or outputs stored.
        methods: those that call the function.
        errors: the status and the title of each problem.
        encodings: the values of ``?input=``.
        forms: the values of ``?output=``.
        content_type: of a classic function's answers, if it is always the same.
        metrics_port: where the metrics are, or None if they are off.
        limits: the value in force for each of ``LIMITS``.
    """

    service_name: str
    is_classic: bool
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
    """The document, as plain data."""
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
        # The parent of the place that this document was had from, be it behind a gateway's prefix.
        "servers": [{"url": ".."}],
        "tags": [
            {"name": "function", "description": "Calls of the function"},
            {"name": "operation", "description": "What platforms and operators ask for"},
        ],
        "paths": paths,
        "components": components,
    }


def _description(interface: Interface) -> str:
    limits = "\n".join(f"- {_limit(interface, name)}" for name in LIMITS)
    return (
        f"Served by oscar-watchdog {__version__}. The limits in force:\n\n{limits}\n\n"
        "All paths but those under `/_/` named here are the same function, which may look at the path itself."
        "\n\nHEAD, and GET with the `User-Agent` `kube-probe/…` (Kubernetes), is answered like `/_/health` there."
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
            item["head"]["summary"] = "Whether the server lives; the function does not run"
            continue
        item[method.lower()] = {**operation, "operationId": f"call{suffix}With{method.capitalize()}"}
        # HTTP gives these a body without meaning (RFC 9110, 9.3), and OpenAPI advises not to declare one.
        if method not in ("GET", "DELETE"):
            item[method.lower()]["requestBody"] = _ref("requestBodies", "input")
    return item


def _of_a_call(interface: Interface) -> str:
    if interface.is_classic:
        return (
            "The body goes to the function's stdin as it comes, and what the function prints is the answer. "
            "All methods do the same, except HEAD, which is answered like `/_/health`. "
            "A GET or DELETE may have a body, too, if all on its way let it pass. "
            "The headers of a CloudEvent (binary mode, `ce-…`) make the answer one, too."
        )
    return (
        "The body becomes the function's input file, and what the function leaves is the answer: base64 of one file, "
        "base64 of a ZIP of several, or what it printed if it left none. `?output=` or `Accept` ask for another form: "
        "`application/zip`, `application/json`, or the one file's own type for its own bytes. "
        "All methods do the same, except HEAD, which is answered like `/_/health`. "
        "A GET or DELETE may have a body, too, if all on its way let it pass. "
        "The headers of a CloudEvent (binary mode, `ce-…`) make the answer one, too."
    )


def _readable(operation: _Json, behind_token: Interface | None) -> _Json:
    """GET, and HEAD for its headers alone.

    Args:
        behind_token: the server, if it may want its token here.
    """
    if behind_token is not None and behind_token.is_token_for_all:
        refusals = {code: _ref("responses", code) for code in ("401", "429")}
        operation = {**operation, "security": [{"token": []}], "responses": operation["responses"] | refusals}
    return {"get": operation, "head": {**operation, "operationId": f"{operation['operationId']}Head"}}


def _health() -> _Json:
    return {
        "tags": ["operation"],
        "operationId": "health",
        "summary": "Whether the server lives",
        "responses": {
            "200": _text_response("It does.", "OK"),
            "503": _text_response(
                "It is stopping, or its lock file is gone and cannot be written again.", "draining", retry_after=True
            ),
        },
    }


def _ready() -> _Json:
    return {
        "tags": ["operation"],
        "operationId": "ready",
        "summary": "Whether a call would be run now",
        "responses": {
            "200": _text_response("It would.", "OK"),
            "429": _text_response("It would wait: no place is free.", "no place is free"),
            "503": _text_response(
                "The server is stopping, or the function is not there.", "draining", retry_after=True
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
        "responses": {"200": _text_response("Prometheus's text format.", "http_requests_in_flight 0.0\n")},
    }


def _metrics_server(port: int) -> _Json:
    host = {"default": "localhost", "description": "The container's own address: no gateway leads to this port."}
    return {"url": f"http://{{host}}:{port}", "variables": {"host": host}}


# -------------------------------------------------------------------------------------------- components


def _request_body(interface: Interface) -> _Json:
    limit = _limit(interface, "max_input_size_bytes")
    if interface.is_classic:
        description = f"Any bytes, with any content type; they are not decoded. {limit}."
        return {"description": description, "content": {_ANY_TYPE: {"schema": dict(_BYTES)}}}
    content: _Json = {
        _TEXT: {"schema": {"$ref": "#/components/schemas/Base64"}, "example": "aGVsbG8K"},
        "application/octet-stream": {"schema": dict(_BYTES)},
        "application/json": {"schema": {"description": "Any JSON, kept byte for byte; or bare base64."}},
        "application/x-www-form-urlencoded": {
            "schema": {
                "description": "Fields, which become a JSON object; or base64, as `curl -d` sends it. "
                "A single field without a value may look like base64 with its padding: end it with `&`.",
                "type": "object",
                "propertyNames": {"minLength": 1},
            }
        },
        "multipart/form-data": {
            "schema": {
                "description": "Each part becomes a file of its own. With one file, that is the input; fields only "
                "count if there is no file.",
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
            "The input file. A form's parts, JSON and base64 are known by their content type and their first bytes; "
            "an `application/octet-stream` may be base64 or raw, any other type, as `text/csv`, means the bytes "
            "themselves. `?input=` or `X-Input-Encoding` settle it; `X-Input-Encoding` of the answer says how the body "
            "was read. `Content-Encoding: gzip` and `deflate` are decoded; offsets in errors count the decoded bytes. "
            f"No body is an empty file. {limit}."
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
                "Any path, which the function sees as `Http_Path`. It may have slashes, which OpenAPI cannot say: "
                "a client made from this document may send them as `%2F`, which is as good."
            ),
            "schema": {"type": "string", "minLength": 1},
        },
        "X-Call-Id": header(
            "X-Call-Id",
            "Names the call in answer and logs; one is made if there is none. Visible ASCII without spaces.",
            {"type": "string", "pattern": "^[!-~]{1,256}$"},
        ),
        "X-Timeout": header(
            "X-Timeout",
            f"The longest run, in seconds or like `1m30s`; it can only shorten {_limit(interface, 'exec_timeout_s')}.",
            {"type": "string", "pattern": _DURATION_PATTERN},
            example="30s",
        ),
        "traceparent": header("traceparent", "W3C Trace Context, for function and log; ignored if malformed.", text),
        "tracestate": header("tracestate", "W3C Trace Context; goes with `traceparent`.", text),
    }
    if interface.is_classic:
        return of_any
    return {
        **of_any,
        "input": query("input", "How the body is to be read. Without it, its type and first bytes tell.", encoding),
        "output": query("output", "The form of the answer; wins over `Accept`.", {**text, "enum": [*interface.forms]}),
        "filename": query(
            "filename", "The input file's name, made safe. `X-Filename` wins.", {**text, "pattern": _NAME_PATTERN}
        ),
        "X-Input-Encoding": header("X-Input-Encoding", "As `?input=`, which wins.", encoding),
        "X-Filename": header(
            "X-Filename",
            "The input file's name, percent-encoded UTF-8, made safe.",
            {**text, "pattern": _ENCODED_NAME_PATTERN},
        ),
    }


def _responses(interface: Interface) -> _Json:
    headers = _refs_to_headers("X-Call-Id", "X-Exit-Code", "X-Duration-Seconds", "X-Input-Encoding")
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
            response["description"] += " As text: how it ended, what it printed, its last words to stderr."
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
            "A status that the function chose in `HTTP_RESPONSE_FILE`, with headers of its own choice, too. "
            "If it failed, this is a problem document."
        ),
        "headers": headers | _refs_to_headers("X-Warning"),
        "content": {**problem, _ANY_TYPE: {}},
    }
    return responses


def _success(interface: Interface, headers: _Json) -> _Json:
    if interface.is_classic:
        content: _Json = {interface.content_type or _ANY_TYPE: {}}
        return {
            "description": "What the function printed to stdout.",
            "headers": headers | _refs_to_headers("X-Warning"),
            "content": content,
        }
    return {
        "description": (
            "What the function left. As text: base64 and a line end, or what it printed if it left no file; "
            "or why a storage event did not run it. Printed "
            "binary data has the type that its first bytes show, or `application/octet-stream`. "
            "With `?output=raw` or its type in `Accept`, a file that is JSON comes as `application/json` of its own."
        ),
        "headers": headers
        | _refs_to_headers("X-Output-Name", "X-Output-Content-Type", "Content-Disposition", "X-Warning"),
        "content": {
            _TEXT: {"schema": {"type": "string"}},
            "application/json": {"schema": {"$ref": "#/components/schemas/Outcome"}},
            "application/zip": {},
            "application/octet-stream": {},
            _ANY_TYPE: {},
        },
    }


def _schemas() -> _Json:
    text: _Json = {"type": "string"}
    count: _Json = {"type": "integer", "minimum": 0}
    return {
        "Base64": {
            "description": "base64 of one alphabet, with or without padding and line ends; also as `data:…;base64,`.",
            "type": "string",
            "contentEncoding": "base64",
            "contentMediaType": "application/octet-stream",
            "anyOf": [{"pattern": pattern} for pattern in _BASE64_PATTERNS],
        },
        "Problem": {
            "description": "What went wrong (RFC 9457).",
            "type": "object",
            "required": ["type", "title", "status", "detail"],
            "properties": {
                "type": {"type": "string", "format": "uri-reference"},
                "title": text,
                "status": {"type": "integer", "minimum": 400, "maximum": 599},
                "detail": {"description": "What happened, to what, and what to do.", **text},
                "call_id": {
                    "description": "As X-Call-Id; missing if the request was not a call (405, or malformed HTTP).",
                    **text,
                },
                "exit_code": {"description": "Of the function, if it ended by itself.", "type": "integer"},
                "signal": {"description": "That ended the function, as SIGSEGV.", **text},
                "out_of_memory": {"description": "Whether memory had ended.", "type": "boolean"},
                "stderr": {"description": "The last 4 KiB of the function's stderr.", **text},
                "stored": {
                    "description": "The outputs that are where they should be, as provider:location.",
                    "type": "array",
                    "items": text,
                },
                "not_stored": {
                    "description": "The outputs that are not, each with the reason.",
                    "type": "object",
                    "additionalProperties": text,
                },
            },
        },
        "Outcome": {
            "description": "All that is known of a call, with `?output=json` or `Accept: application/json`.",
            "type": "object",
            "required": ["exit_code", "duration_s", "outputs", "stdout", "stderr", "warnings"],
            "properties": {
                "exit_code": {"type": ["integer", "null"]},
                "duration_s": {"type": "number", "minimum": 0},
                "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/Output"}},
                "stdout": {"description": "The end of it.", **text},
                "stderr": {"description": "The end of it.", **text},
                "warnings": {
                    "description": "Why the result may be wrong or incomplete though the function did not fail.",
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "detail"],
                        "properties": {
                            "name": {"description": "As in X-Warning.", **text},
                            "detail": {"description": "What happened and what to do.", **text},
                        },
                    },
                },
                "skipped": {"description": "Why a storage event did not run the function.", **text},
            },
        },
        "Output": {
            "description": "A file that the function left.",
            "type": "object",
            "required": ["name", "size", "content_type", "sha256", "data"],
            "properties": {
                "name": {"description": "With the folders in which it is.", **text},
                "size": {"description": "In bytes.", **count},
                "content_type": {"description": "Guessed from the name.", **text},
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
        "X-Call-Id": header("The call's name, the caller's own if it gave one.", text),
        "X-Exit-Code": header("The function's, if it ended by itself.", {"type": "integer"}),
        "X-Duration-Seconds": header("How long the function ran.", {"type": "number", "minimum": 0}),
        "X-Input-Encoding": header(
            "How the body was read, once that is known. A classic function's body is raw, as is an empty one.",
            {"type": "string", "enum": ["base64", "raw", "json", "form", "multipart"]},
        ),
        "X-Output-Name": header("The one file's name, percent-encoded.", text),
        "X-Output-Content-Type": header("The one file's type, guessed from its name.", text),
        "X-Warning": header(
            "Why the result may be wrong or incomplete though the function did not fail: names such as `no-output`, "
            "separated by commas.",
            text,
        ),
        "Content-Disposition": header("A name for raw bytes and ZIPs.", text),
        "Retry-After": header("Seconds.", {"type": "integer", "minimum": 0}),
        "WWW-Authenticate": header("Bearer", text, required=True),
        "Allow": header("The methods that are answered.", text, required=True),
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
