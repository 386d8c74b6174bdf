"""Small parts of OpenAPI documents."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

ANY_TYPE = "*/*"
ABOUT_EVENTS = (
    "`events`, like `Accept: text/event-stream`, answers with server-sent events while the function runs. The last "
    "event is `completed`, with the status that the call would have without the stream. If this event is missing, the "
    "call has failed."
)
TEXT: Json = {"type": "string"}
# The format "binary" is from OpenAPI 3.0. OpenAPI 3.1 does not need it, but generators of clients use it.
BYTES: Json = {"type": "string", "format": "binary"}


def ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def refs_to_headers(*names: str) -> Json:
    return {name: ref("headers", name) for name in names}
