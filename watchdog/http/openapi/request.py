"""Describe requests: the body and the parameters of a call."""

from __future__ import annotations

from ...output.accept import AnswerForm
from ...output.media_type import BYTES_TYPE, JSON_TYPE, PLAIN_TYPE
from .interface import Interface, limit_text
from .parts import ABOUT_EVENTS, ANY_TYPE, BYTES, TEXT, Json, ref

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
BASE64_PATTERNS = (
    *(rf"^{_WHITE}(?:data:[^,\"]{{0,500}};base64,{_WHITE})?{each}{_WHITE}$" for each in _ALPHABETS),
    *(rf"^{_WHITE}=\"{_WHITE}{each}{_WHITE}\"{_WHITE}$" for each in _ALPHABETS),
    rf"^{_WHITE}[{{\[]",
)
# A duration, as settings/kinds.py reads it. The first group rejects zero, because then the function would have no time.
_NUMBER = r"(?:[0-9]{1,9}(?:\.[0-9]*)?|\.[0-9]+)"
_DURATION_PATTERN = rf"^(?=.*[1-9])\+?(?:{_NUMBER}|(?:{_NUMBER}(?:ns|us|ms|s|m|h))+)$"
_NAME_PATTERN = r"^[^\u0000-\u001f\u007f]*$"
_ENCODED_NAME_PATTERN = r"^(?:(?!%(?:[01]|7[Ff]))[^\u0000-\u001f\u007f])*$"


def request_body(interface: Interface) -> Json:
    """Return the body of a call."""
    limit = limit_text(interface, "max_input_size_bytes")
    if interface.is_classic:
        description = f"Any bytes, with any content type. They are not decoded. {limit}."
        return {"description": description, "content": {name: {"schema": BYTES} for name in (BYTES_TYPE, ANY_TYPE)}}
    content: Json = {
        PLAIN_TYPE: {"schema": ref("schemas", "Base64"), "example": "aGVsbG8K"},
        BYTES_TYPE: {"schema": dict(BYTES)},
        JSON_TYPE: {"schema": ref("schemas", "Json")},
        "application/x-www-form-urlencoded": {
            "schema": {
                "description": "Fields, which become a JSON object; or base64, as `curl -d` sends it. "
                "A single field without a value may look like base64 with padding; to send such a field, end it with "
                "`&`.",
                "type": "object",
                "propertyNames": {"minLength": 1},
                "additionalProperties": True,
            }
        },
        "multipart/form-data": {
            "schema": {
                "description": "Each part becomes a file. If one part is a file, that file is the input. Fields count "
                "only if no part is a file.",
                "type": "object",
                "properties": {"file": dict(BYTES)},
                "minProperties": 1,
                "propertyNames": {"pattern": _NAME_PATTERN},
            }
        },
        ANY_TYPE: {"schema": dict(BYTES)},
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


def parameters(interface: Interface) -> Json:
    """Return the parameters of a call."""

    def query(name: str, description: str, schema: Json) -> Json:
        return {"name": name, "in": "query", "description": description, "schema": schema}

    def header(name: str, description: str, schema: Json, **more: object) -> Json:
        return {"name": name, "in": "header", "description": description, "schema": schema, **more}

    encoding = {"type": "string", "enum": list(interface.encodings)}
    of_any: Json = {
        "X-Call-Id": header(
            "X-Call-Id",
            "The id of the call in its answer and its logs: visible ASCII without spaces. Without it, the server makes "
            "an id.",
            {"type": "string", "pattern": "^[!-~]{1,256}$"},
        ),
        "X-Timeout": header(
            "X-Timeout",
            "The time limit of the function, in seconds or like `1m30s`. It can only shorten "
            f"{limit_text(interface, 'exec_timeout_s')}.",
            {"type": "string", "pattern": _DURATION_PATTERN},
            example="30s",
        ),
        "traceparent": header(
            "traceparent", "W3C Trace Context, for the function and the log. It is ignored if it is malformed.", TEXT
        ),
        "tracestate": header("tracestate", "W3C Trace Context, used together with `traceparent`.", TEXT),
    }
    if interface.is_classic:
        events = {**TEXT, "examples": [AnswerForm.EVENTS.value]}
        return {**of_any, "output": query("output", f"{ABOUT_EVENTS} Only the function reads other values.", events)}
    return {
        **of_any,
        "input": query(
            "input", "How to read the body. Without it, the content type and the first bytes decide.", encoding
        ),
        "output": query(
            "output",
            f"The form of the answer. It overrides `Accept`. {ABOUT_EVENTS}",
            {**TEXT, "enum": [*interface.forms]},
        ),
        "filename": query(
            "filename",
            "The name of the input file. The server replaces unsafe characters. `X-Filename` overrides it.",
            {**TEXT, "pattern": _NAME_PATTERN},
        ),
        "X-Input-Encoding": header(
            "X-Input-Encoding", "How to read the body, like `?input=`. If both are given, `?input=` counts.", encoding
        ),
        "X-Filename": header(
            "X-Filename",
            "The name of the input file, as percent-encoded UTF-8. The server replaces unsafe characters.",
            {**TEXT, "pattern": _ENCODED_NAME_PATTERN},
        ),
    }
