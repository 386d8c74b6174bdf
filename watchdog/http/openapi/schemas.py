"""Describe the documents that the server answers: problems, results, and the events of a stream."""

from __future__ import annotations

from collections.abc import Sequence

from .parts import ABOUT_EVENTS, TEXT, Json, ref
from .request import BASE64_PATTERNS


def _object(
    description: str, properties: Json, *, required: Sequence[str] | None = None, optional: Sequence[str] = ()
) -> Json:
    """Return the schema of an object.

    Args:
        required: the names of the required properties; None means all properties that are not in ``optional``.
    """
    names = [name for name in properties if name not in optional] if required is None else list(required)
    return {"description": description, "type": "object", "required": names, "properties": properties}


_COUNT: Json = {"type": "integer", "minimum": 0}
_SECONDS: Json = {"type": "number", "minimum": 0}
_BASE64: Json = {"type": "string", "contentEncoding": "base64", "contentMediaType": "application/octet-stream"}
_EXIT_CODE: Json = {
    "description": "The function's exit code; null if it did not end by itself.",
    "type": ["integer", "null"],
}
_CALL_ID: Json = {"description": "The id of the call, as in X-Call-Id.", **TEXT}
_SKIPPED: Json = {"description": "The reason why a storage event did not run the function.", **TEXT}
# The properties that a result and the last event of a stream share.
_ENDS: Json = {
    "stdout": {"description": "The end of the function's stdout.", **TEXT},
    "stderr": {"description": "The end of the function's stderr.", **TEXT},
    "warnings": {
        "description": "Why the result may be wrong or incomplete although the function did not fail.",
        "type": "array",
        "items": ref("schemas", "CallWarning"),
    },
}
_FILE: Json = {
    "name": {"description": "The name of the file, with its folders.", **TEXT},
    "size": {"description": "The size in bytes.", **_COUNT},
    "content_type": {"description": "The content type, guessed from the name.", **TEXT},
    "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
}


def schemas() -> Json:
    """Return the schemas. Their names are the names of types in generated clients."""
    return {
        "Base64": {
            "description": "Base64 in one alphabet, with or without padding and line ends; also as `data:…;base64,`.",
            **_BASE64,
            "anyOf": [{"type": "string", "pattern": pattern} for pattern in BASE64_PATTERNS],
        },
        # openapi-python-client leaves out such a body, because an array has no `items`. With `items`, or without types,
        # its clients would fail in each call, also with other bodies (0.29.1).
        "Json": {
            "description": "Any JSON, which is kept byte for byte; or base64.",
            "anyOf": [
                {"type": "object", "additionalProperties": True},
                *({"type": name} for name in ("array", "string", "number", "boolean", "null")),
            ],
        },
        "Problem": _object(
            "An error (RFC 9457).",
            {
                "type": {"type": "string", "format": "uri-reference"},
                "title": TEXT,
                "status": {"type": "integer", "minimum": 400, "maximum": 599},
                "detail": {"description": "What happened, what it happened to, and what to do.", **TEXT},
                "call_id": {
                    "description": "The same as X-Call-Id. It is missing if the request was not a call (405, or "
                    "malformed HTTP).",
                    **TEXT,
                },
                "exit_code": {"description": "The function's exit code, if it ended by itself.", "type": "integer"},
                "signal": {"description": "The signal that ended the function, such as SIGSEGV.", **TEXT},
                "out_of_memory": {"description": "Whether memory had run out.", "type": "boolean"},
                "stderr": {"description": "The last 4 KiB of the function's stderr.", **TEXT},
                "stored": {
                    "description": "The outputs that were stored, as provider:location.",
                    "type": "array",
                    "items": TEXT,
                },
                "not_stored": {
                    "description": "The outputs that were not stored, as provider:location, each with the reason.",
                    "type": "object",
                    "additionalProperties": TEXT,
                },
            },
            required=("type", "title", "status", "detail"),
        ),
        "CallWarning": _object(
            "Why a result may be wrong or incomplete.",
            {
                "name": {"description": "The same name as in X-Warning.", **TEXT},
                "detail": {"description": "What happened and what to do.", **TEXT},
            },
        ),
        "Outcome": _object(
            "The whole result of a call, for `?output=json` or `Accept: application/json`.",
            {
                "exit_code": _EXIT_CODE,
                "duration_s": _SECONDS,
                "outputs": {"type": "array", "items": ref("schemas", "Output")},
                **_ENDS,
                "skipped": _SKIPPED,
            },
            optional=("skipped",),
        ),
        "Output": _object("An output file of the function.", {**_FILE, "data": _BASE64}),
        **_events(),
    }


def _events() -> Json:
    """Return the schemas of a stream: its text, and the data of each event."""
    events = {
        "queued": _object(
            "The call waits for a place. This event comes again when the position has changed.",
            {"position": {"description": "1 for the call that gets the next place.", **_COUNT}},
        ),
        "started": _object(
            "The function runs.",
            {
                "call_id": _CALL_ID,
                "worker": ref("schemas", "Worker"),
            },
            optional=("worker",),
        ),
        "log": _object(
            "A line that the function printed, or a whole traceback.",
            {"level": TEXT, "stream": {"type": "string", "enum": ["stdout", "stderr"]}, "text": TEXT},
        ),
        "dropped": _object(
            "Log lines are missing here, because the caller or the log was too slow.",
            {"lines": {"description": "The number of missing lines.", **_COUNT}},
        ),
        "progress": _object(
            "The function has reported its progress.",
            {"fraction": {"type": "number", "minimum": 0, "maximum": 1}, "text": TEXT},
        ),
        "output": _object(
            "A part of an output. The bytes of all its parts, in their order, are the output.",
            {
                "name": {
                    "description": "The name of the file, with its folders; null for what the function printed.",
                    "type": ["string", "null"],
                },
                "content_type": TEXT,
                "size": {"description": "The size of the whole output in bytes.", **_COUNT},
                "offset": {"description": "The position of this part in the output, in bytes.", **_COUNT},
                "data": _BASE64,
            },
        ),
        "completed": _object(
            "The end of the call. It is the last event.",
            {
                "call_id": _CALL_ID,
                "status": {"description": "The status that the call would have without the stream.", "type": "integer"},
                "outcome": {"description": "How the invocation ended, as in the log.", **TEXT},
                "exit_code": _EXIT_CODE,
                "duration_s": {
                    "description": "The time for which the function ran; null if it did not run.",
                    "type": ["number", "null"],
                },
                "queue_wait_s": {
                    "description": "The time for which the call waited for a place and for a worker.",
                    **_SECONDS,
                },
                "input_encoding": {
                    "description": "How the body was read, as in X-Input-Encoding; null if the call ended before.",
                    "type": ["string", "null"],
                },
                "worker": ref("schemas", "Worker"),
                "skipped": _SKIPPED,
                "outputs": {
                    "description": "The output files.",
                    "type": "array",
                    "items": ref("schemas", "OutputFile"),
                },
                **_ENDS,
                "error": {
                    "description": "The problem document if the call failed, else null.",
                    "oneOf": [ref("schemas", "Problem"), {"type": "null"}],
                },
                "retry_after_s": {"description": "The caller may try again after this number of seconds.", **_COUNT},
            },
            optional=("worker", "skipped", "retry_after_s"),
        ),
    }
    names = {name: f"{name.capitalize()}Event" for name in events}
    return {
        "Worker": _object(
            "The worker of a warm function.",
            {"calls": {"description": "The number of calls that it had served before.", **_COUNT}},
        ),
        "OutputFile": _object("An output file of the function, without its data.", _FILE),
        # Before OpenAPI 3.2, the schema of a stream describes one event.
        "ServerSentEvent": {
            "description": f"An event of a stream. {ABOUT_EVENTS} Ignore events with other names, and comments.",
            "oneOf": [_sent(name, schema) for name, schema in names.items()],
        },
        "Events": _object(
            "The data of each event, by the name of the event. No document has this form: it only names the types.",
            {name: ref("schemas", schema) for name, schema in names.items()},
        ),
        **{names[name]: schema for name, schema in events.items()},
    }


def _sent(name: str, schema: str) -> Json:
    """Return the schema of an event as it is sent: its data is JSON as text."""
    data = {**TEXT, "contentMediaType": "application/json", "contentSchema": ref("schemas", schema)}
    return _object(f"The event `{name}`.", {"event": {"const": name}, "data": data})
