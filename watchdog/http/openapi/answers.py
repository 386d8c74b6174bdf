"""Describe the answers to calls: each status, its headers and its body."""

from __future__ import annotations

from collections.abc import Mapping

from ...output.event_stream import EVENT_STREAM_TYPE
from ...output.media_type import BYTES_TYPE, JSON_TYPE, PLAIN_TYPE, ZIP_TYPE
from ..problem_document import PROBLEM_TYPE
from .interface import Interface
from .parts import ANY_TYPE, BYTES, TEXT, Json, ref, refs_to_headers

# The meaning of each status of an error, also for the docs (`make docs`).
MEANINGS: Mapping[int, str] = {
    400: "The body cannot be decoded, or a form, name or header is malformed; `detail` has the reason.",
    401: "The bearer token is missing or wrong. If many calls have a wrong token, this answer is delayed.",
    405: "The server does not answer this method; `Allow` names the methods that it answers.",
    406: "The outputs cannot be sent in the form that the caller wants; `detail` names the possible forms.",
    408: "The headers were not complete after `read_timeout`, no byte of the body arrived for this time, or the body "
    "arrived more slowly than `min_data_rate`.",
    413: "The input is larger than `max_input_size`.",
    414: "The request line has more than 64 KiB.",
    422: "The storage event reports an object, version, bucket or space that does not exist.",
    429: "All places are taken, and the queue is full or `queue_timeout` passed; or `queue_timeout` passed, and no "
    "worker of a warm function was ready; or the body arrived too slowly while another call needed its place in the "
    "queue; or too many answers are still being sent. Try again after `Retry-After`.",
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


def responses(interface: Interface) -> Json:
    """Return the answers to a call, by their statuses. Operations refer to them."""
    headers = refs_to_headers("X-Call-Id", "X-Exit-Code", "X-Duration-Seconds", "X-Input-Encoding")
    if interface.is_warm:
        headers |= refs_to_headers("X-Warm")
    problem = {PROBLEM_TYPE: {"schema": ref("schemas", "Problem")}}
    found: Json = {"200": _success(interface, headers)}
    for status in error_statuses(interface):
        titles = dict.fromkeys(title for code, title in interface.errors if code == status)
        response: Json = {
            "description": f"{', '.join(titles)}. {MEANINGS.get(status, '')}".strip(),
            "headers": dict(headers),
            "content": dict(problem),
        }
        if status in (429, 503):
            response["headers"] |= refs_to_headers("Retry-After")
        if status == 429 and interface.has_token:
            response["description"] += " Also if the token is wrong and many other calls have a wrong token, too."
        if status == 401:
            response["headers"] |= refs_to_headers("WWW-Authenticate")
        if status == 500 and interface.is_classic:
            response["description"] += " As text: the exit status, stdout, and the end of stderr."
            response["content"][PLAIN_TYPE] = {"schema": {"type": "string"}}
        found[str(status)] = response
    for status, title in ANSWERED_BEFORE_A_CALL:
        found[str(status)] = {"description": f"{title}. {MEANINGS[status]}", "content": dict(problem)}
    found["405"] = {
        "description": MEANINGS[405],
        "headers": refs_to_headers("Allow"),
        "content": dict(problem),
    }
    found["default"] = {
        "description": (
            "A status that the function chose in `HTTP_RESPONSE_FILE`. It may also have chosen headers. "
            "If the function failed, the body is a problem document."
        ),
        "headers": headers | refs_to_headers("X-Warning"),
        "content": {**problem, ANY_TYPE: {}},
    }
    return found


def _success(interface: Interface, headers: Json) -> Json:
    of_events: Json = {EVENT_STREAM_TYPE: {"schema": ref("schemas", "ServerSentEvent")}}
    if interface.is_classic:
        # If the setting content_type is missing, the answer has the type of the body.
        types = [interface.content_type] if interface.content_type else [BYTES_TYPE, ANY_TYPE]
        return {
            "description": "The function's stdout.",
            "headers": headers | refs_to_headers("X-Warning"),
            "content": {**{name: {"schema": BYTES} if name == BYTES_TYPE else {} for name in types}, **of_events},
        }
    return {
        "description": (
            "The output of the function. `text/plain` is base64 and a line end; or what the function printed, if there "
            "is no output file; or the reason why a storage event did not run the function. Binary data that the "
            "function printed has the type that its first bytes show, or `application/octet-stream`. "
            "With `?output=raw`, an output file that is JSON is sent unchanged as `application/json`."
        ),
        "headers": headers
        | refs_to_headers("X-Output-Name", "X-Output-Content-Type", "Content-Disposition", "X-Warning"),
        # Some generators use only the first type that they know. The only one with a schema is JSON.
        "content": {
            JSON_TYPE: {"schema": ref("schemas", "Outcome")},
            PLAIN_TYPE: {"schema": dict(TEXT)},
            ZIP_TYPE: {"schema": dict(BYTES)},
            BYTES_TYPE: {"schema": dict(BYTES)},
            **of_events,
            ANY_TYPE: {},
        },
    }


def headers() -> Json:
    """Return the headers of answers. Answers refer to them."""

    def header(description: str, schema: Json, *, required: bool = False) -> Json:
        return {"description": description, "schema": schema, **({"required": True} if required else {})}

    return {
        "X-Call-Id": header("The id of the call: the caller's X-Call-Id, or an id made by the server.", TEXT),
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
        "X-Output-Name": header("The name of the only output file, percent-encoded.", TEXT),
        "X-Output-Content-Type": header(
            "The content type of the only output file, guessed from its name; `application/zip` if the answer is "
            "base64 of a ZIP.",
            TEXT,
        ),
        "X-Warning": header(
            "Why the result may be wrong or incomplete although the function did not fail: names such as `no-output`, "
            "separated by commas.",
            TEXT,
        ),
        "Content-Disposition": header("A file name for raw bytes and ZIPs.", TEXT),
        "Retry-After": header(
            "The caller may try again after this number of seconds.", {"type": "integer", "minimum": 0}
        ),
        "WWW-Authenticate": header("Always Bearer.", TEXT, required=True),
        "Allow": header("The methods that the server answers at this path.", TEXT, required=True),
    }


def error_statuses(interface: Interface) -> list[int]:
    """Return the statuses of the errors that this server can answer to a call."""
    left_out = set(_NOT_OF_CLASSIC_FUNCTIONS if interface.is_classic else ())
    if not interface.has_token:
        left_out.add(401)
    if not interface.has_storage:
        left_out |= _OF_STORAGE
    return sorted({status for status, _ in interface.errors} - left_out)
