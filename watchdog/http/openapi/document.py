"""Describe what the server answers, as an OpenAPI 3.1 document for people and programs.

::

    Interface -> document -> paths       "/" (the function), "/_/…" (the server's own), "/metrics"
                          -> components  schemas, parameters, responses and bodies, each written once

The document is made on request, from the settings of this server. Statuses, methods and names of forms come from the
modules that define them, so the document cannot contradict these modules. OpenAPI cannot express three things, so the
descriptions contain them: a path of any depth, a status and headers that the script chooses, and the form of the answer
that ``Accept`` chooses (OpenAPI ignores a parameter of that name).

The try-it page (``/_/try``) is not in the document, because it is for people.

Generators make one function of a client from each operation. So each thing that a program wants to do is described
once: a call only as POST, and no path with HEAD. The descriptions name the other methods.
"""

from __future__ import annotations

from ... import __version__
from ...output.media_type import JSON_TYPE, PLAIN_TYPE
from .answers import ANSWERED_BEFORE_A_CALL, error_statuses, headers, responses
from .interface import LIMITS, Interface, limit_text
from .parts import Json, ref, refs_to_headers
from .request import parameters, request_body
from .schemas import schemas


def document(interface: Interface) -> Json:
    """Return the document as plain data."""
    paths: Json = {
        "/": {"post": _function(interface)},
        "/_/health": {"get": _health()},
        "/_/ready": {"get": _ready()},
        "/_/openapi.json": {"get": _behind_token(_itself(), interface)},
    }
    if interface.metrics_port is not None:
        server = _metrics_server(interface.metrics_port)
        paths["/metrics"] = {"servers": [server], "get": _behind_token(_metrics(), interface)}
    components: Json = {
        "schemas": schemas(),
        "parameters": parameters(interface),
        "headers": headers(),
        "responses": responses(interface),
        "requestBodies": {"input": request_body(interface)},
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
    limits = "\n".join(f"- {limit_text(interface, name)}" for name in LIMITS)
    callers = ", ".join(method for method in interface.methods if method != "HEAD")
    return (
        f"Served by oscar-watchdog {__version__}. The current limits:\n\n{limits}\n\n"
        f"This document describes only `POST /`, but the function is also called by {callers}, and at every path "
        "except those under `/_/`, `/favicon.ico` and `/robots.txt`. The function can read the method and the path. "
        "All paths under `/_/` belong to the server: HEAD of one of them returns the headers of GET, and a path that "
        "the server does not have is answered 404.\n\n"
        "Requests with HEAD, or with GET and the `User-Agent` `kube-probe/…` (Kubernetes), do not call the function. "
        "They are answered like `/_/health`. Other methods are answered 405."
    )


# ------------------------------------------------------------------------------------------------- paths


def _function(interface: Interface) -> Json:
    names = ["output"] if interface.is_classic else ["input", "output", "filename", "X-Input-Encoding", "X-Filename"]
    names += ["X-Call-Id", "X-Timeout", "traceparent", "tracestate"]
    of_http = [status for status, _ in ANSWERED_BEFORE_A_CALL]
    codes = ["200", *sorted({str(status) for status in [*error_statuses(interface), *of_http]}), "default"]
    operation: Json = {
        "tags": ["function"],
        "operationId": "invoke",
        "summary": "Call the function",
        "description": _of_a_call(interface),
        "parameters": [ref("parameters", name) for name in names],
        "requestBody": ref("requestBodies", "input"),
        "responses": {code: ref("responses", code) for code in codes},
    }
    if interface.has_token:
        operation["security"] = [{"token": []}]
    return operation


def _of_a_call(interface: Interface) -> str:
    of_events = "If the request is a CloudEvent (binary mode, headers `ce-…`), the answer is also a CloudEvent."
    if interface.is_classic:
        return (
            "The function reads the body from stdin while the body arrives. What the function prints is the answer. "
            f"{of_events}"
        )
    return (
        "The body becomes the function's input file. The output files are the answer: base64 of one file, or base64 of "
        "a ZIP of several files. If there is no output file, the answer is what the function printed. `?output=` or "
        "`Accept` selects another form: `application/zip`, `application/json`, or the type of the only file for the "
        "bytes of that file. A generated client that reads the answer as JSON must send `output=json`. "
        f"{of_events}"
    )


def _behind_token(operation: Json, interface: Interface) -> Json:
    """Return an operation of a path that needs the token if ``auth_all`` is set."""
    if not interface.is_token_for_all:
        return operation
    refusals = {code: ref("responses", code) for code in ("401", "429")}
    return {**operation, "security": [{"token": []}], "responses": operation["responses"] | refusals}


def _health() -> Json:
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


def _ready() -> Json:
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


def _itself() -> Json:
    return {
        "tags": ["operation"],
        "operationId": "openapi",
        "summary": "This document",
        "responses": {
            "200": {
                "description": "OpenAPI 3.1",
                "content": {JSON_TYPE: {"schema": {"type": "object", "required": ["openapi", "info", "paths"]}}},
            }
        },
    }


def _metrics() -> Json:
    return {
        "tags": ["operation"],
        "operationId": "metrics",
        "summary": "Metrics for Prometheus",
        "responses": {
            "200": _text_response("The metrics in Prometheus's text format.", "http_requests_in_flight 0.0\n")
        },
    }


def _metrics_server(port: int) -> Json:
    host = {"default": "localhost", "description": "The address of the container; gateways do not forward this port."}
    return {"url": f"http://{{host}}:{port}", "variables": {"host": host}}


def _text_response(description: str, example: str, *, retry_after: bool = False) -> Json:
    content: Json = {PLAIN_TYPE: {"schema": {"type": "string"}, "example": example}}
    response: Json = {"description": description, "content": content}
    if retry_after:
        response["headers"] = refs_to_headers("Retry-After")
    return response
