"""Read and write CloudEvents over HTTP in binary mode: the attributes are headers, the data is the body.

This follows version 1.0.2 of the "HTTP Protocol Binding for CloudEvents", section 3.1. In structured mode, the whole
event is a JSON body. Such a body is treated as ordinary data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..errors import BadInput, quoted
from ..system.pattern import pattern

_HEADER = pattern(r"ce-([a-z0-9]+)", re.IGNORECASE)
REQUIRED_ATTRIBUTES = ("specversion", "id", "source", "type")
_CONTROL = pattern("[\x00-\x1f\x7f-\x9f]")
# These characters need no percent-encoding in a header. The space, `"`, `%` and all other characters need it.
_PLAIN = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')


def event_of(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the attributes of an event by their names. They are empty if the headers have no event of version 1.

    Args:
        headers: the case of names does not matter; if a name occurs several times, the first header counts.

    Raises:
        BadInput: an attribute is not percent-encoded UTF-8, or has a control character.
    """
    # This check comes first because most requests are not events.
    if "ce-specversion" not in headers:
        return {}
    if not all(headers.get(f"ce-{name}") for name in REQUIRED_ATTRIBUTES):
        return {}
    if not headers["ce-specversion"].startswith("1."):
        return {}
    raw: dict[str, str] = {}
    for header, value in headers.items():
        if match := _HEADER.fullmatch(header):
            raw.setdefault(match[1].lower(), value)
    return {name: _decoded(name, value) for name, value in raw.items()}


def is_structured(content_type: str) -> bool:
    """Return whether a body of this type has one or more events in structured mode (section 3 of the binding)."""
    return content_type.lower().startswith("application/cloudevents")


def headers_of_answer(event: Mapping[str, str], service_name: str) -> dict[str, str]:
    """Return the headers of an answer that is a CloudEvent. Knative's brokers reject any other answer that has a body.

    The answer has the id of the event that it answers. So two answers to the same event count as one event.
    """
    from urllib.parse import quote

    return {
        "Ce-Specversion": "1.0",
        "Ce-Id": quote(event["id"], safe=_PLAIN),
        # This attribute is a URI. In a header, each "%" of the URI is percent-encoded again.
        "Ce-Source": quote("/" + quote(service_name, safe=""), safe=_PLAIN),
        "Ce-Type": quote(event["type"], safe=_PLAIN) + ".answer",
    }


def _decoded(name: str, value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    from urllib.parse import unquote

    try:
        text = unquote(value, errors="strict")
        text.encode()
    except UnicodeError:
        raise BadInput(f"the header Ce-{name.capitalize()}: {quoted(value)} is not percent-encoded UTF-8") from None
    if _CONTROL.search(text):
        raise BadInput(f"the header Ce-{name.capitalize()}: {quoted(value)} has a control character")
    return text
