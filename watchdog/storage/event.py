"""Find the objects that an event reports, with or without envelopes around it.

The known shapes are those that OSCAR's faas-supervisor reads (its ``faassupervisor/events``), those in Amazon's
documentation of S3 notifications and in the CloudEvents project's S3 adapter, and those that radosgw sends. A text is
an event only if it has all parts of a shape. A user's own JSON with a key ``event`` or ``httpMethod`` is data.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Mapping
from typing import Literal

import msgspec

from ..system.base64_reader import decoded_text
from ..system.pattern import pattern
from .envelope import Notice, decoded, messages, notice
from .records import MOST_TEXT_BYTES, objects_of, objects_of_record
from .stored_object import StoredObject

# A longer text is data. A message of SQS has at most 256 KiB, an environment variable at most 128 KiB.
MOST_BYTES = 1 << 20
_MOST_ENVELOPES = 3
# Types of CloudEvents. The types of the CloudEvents project's adapter and the types of TriggerMesh end with the event's
# name. The types of Knative do not.
_CLOUD_EVENT_TYPE = pattern(r"com\.amazon(?:aws)?\.s3\.(?P<name>.*)|(?:dev\.knative\.)?aws\.s3", re.IGNORECASE)


class Event(msgspec.Struct, frozen=True):
    """The content of a text that is an event.

    ``objects``: the reported objects, new or not. ``notices``: messages of the sender that report no object. If both
    are empty, ``data`` is the input. ``provider``: the storage provider that a delegated event names, or "".
    ``variables``: ``CONT_VAR_NAME`` for each query parameter of an API gateway.
    ``data_is``: how to read ``data``. If this is "bytes", ``data`` is the input. If it is "text", ``data`` is the input
    or base64 of the input. If it is "body", ``data`` is read like the body of any call.
    """

    objects: tuple[StoredObject, ...] = ()
    provider: str = ""
    variables: Mapping[str, str] = msgspec.field(default_factory=dict)
    data: bytes | None = None
    data_is: Literal["bytes", "text", "body"] = "body"
    notices: tuple[Notice, ...] = ()

    @property
    def kinds(self) -> set[str]:
        """Return the kinds of its objects; a notice counts as ``s3``."""
        return {stored.kind for stored in self.objects} | ({"s3"} if self.notices else set())


def read(text: bytes) -> Event | None:
    """Read a text as an event. Return None if the text is data. Raise nothing."""
    return _read(text, _MOST_ENVELOPES)


def read_data(event_type: str, data: bytes) -> Event | None:
    """Return the event in the data of a CloudEvent; None if the data is not an event.

    ``event_type``: the type of the CloudEvent. In binary mode a header of the request has it.
    """
    data = data.removeprefix(BOM_UTF8)
    fields = _fields(data)
    if fields is None:
        return None
    event = _read_bare(fields, data, _MOST_ENVELOPES) or Event()
    objects = event.objects
    if (type_of_s3 := _CLOUD_EVENT_TYPE.match(event_type)) is not None:
        objects = objects or objects_of_record(msgspec.Raw(data), data)
        name = type_of_s3["name"] or ""
        objects = tuple(each if each.name else msgspec.structs.replace(each, name=name) for each in objects)
    return msgspec.structs.replace(event, objects=objects) if objects or event.notices else None


def _read(text: bytes, envelopes: int) -> Event | None:
    text = text.removeprefix(BOM_UTF8)
    fields = _fields(text)
    if fields is None:
        return None
    if event := _read_bare(fields, text, envelopes):
        return event
    for read_envelope in (_read_cloud_event, _read_delegated, _read_api_gateway):
        event = read_envelope(fields, envelopes - 1) if envelopes else None
        if event is not None:
            return event
    return None


def _read_bare(fields: Mapping[str, msgspec.Raw], text: bytes, envelopes: int) -> Event | None:
    """Return an event of objects, a notice, or the events that SQS or SNS has wrapped; None if a part is missing."""
    if objects := objects_of(fields, text):
        return Event(objects)
    if (received := notice(fields)) is not None:
        return Event(notices=(received,))
    wrapped = messages(fields) if envelopes else []
    events: list[Event] = []
    text_bytes = 0
    for message in wrapped:
        message = message.removeprefix(BOM_UTF8)
        inner = _fields(message)
        event = None if inner is None else _read_bare(inner, message, envelopes - 1)
        if event is None:
            return None
        text_bytes += sum(len(stored.text) for stored in event.objects)
        if text_bytes > MOST_TEXT_BYTES:
            return None
        events.append(event)
    if not events:
        return None
    return Event(
        tuple(stored for event in events for stored in event.objects),
        notices=tuple(each for event in events for each in event.notices),
    )


def _fields(text: bytes) -> dict[str, msgspec.Raw] | None:
    if len(text) > MOST_BYTES or not text.lstrip().startswith(b"{"):
        return None
    try:
        text.decode()  # msgspec checks only the encoding of strings that it decodes
        return msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _read_cloud_event(fields: Mapping[str, msgspec.Raw], envelopes: int) -> Event | None:
    """Read a CloudEvent in structured mode. If its data reports no object, the whole text is data."""
    event_type = decoded(fields.get("type"), str)
    if decoded(fields.get("specversion"), str) is None or event_type is None:
        return None
    data = fields.get("data")
    if data is None:
        encoded = decoded(fields.get("data_base64"), str)
        in_base64 = None if encoded is None else decoded_text(encoded.encode())
        return None if in_base64 is None else read_data(event_type, in_base64)
    return read_data(event_type, bytes(data))


def _read_delegated(fields: Mapping[str, msgspec.Raw], envelopes: int) -> Event | None:
    """Read an event that OSCAR delegated from another cluster (`pkg/resourcemanager/delegate.go`).

    The inner event is a string or an object.
    """
    provider = decoded(fields.get("storage_provider"), str)
    if provider is None or "event" not in fields:
        return None
    inner = _inner(fields["event"])
    if inner is None:
        return None
    event = _read(inner, envelopes) or Event(data=inner)
    return msgspec.structs.replace(event, provider=event.provider or provider)


def _read_api_gateway(fields: Mapping[str, msgspec.Raw], envelopes: int) -> Event | None:
    """Read an event of Amazon's API gateway with proxy integration."""
    others = {"requestContext", "headers", "queryStringParameters"}
    if decoded(fields.get("httpMethod"), str) is None or "body" not in fields or others.isdisjoint(fields):
        return None
    parameters = decoded(fields.get("queryStringParameters"), dict[str, str]) or {}
    variables = {
        f"CONT_VAR_{name}": value
        for name, value in parameters.items()
        if name and "=" not in name and "\0" not in name + value
    }
    body: bytes | None = b""
    if bytes(fields["body"]) != b"null":
        body = _inner(fields["body"])
    is_base64 = decoded(fields.get("isBase64Encoded"), bool) or False
    if body is not None and is_base64:
        body = decoded_text(body)
    if body is None:
        return None
    event = _read(body, envelopes) or Event(data=body, data_is="bytes" if is_base64 else "text")
    return msgspec.structs.replace(event, variables={**variables, **event.variables})


def _inner(raw: msgspec.Raw) -> bytes | None:
    """Return the bytes of an object, or of a string. Decode a string that is base64 of an object."""
    if bytes(raw).startswith(b"{"):
        return bytes(raw)
    text = decoded(raw, str)
    if text is None:
        return None
    data = text.encode("utf-8", "surrogatepass")
    in_base64 = decoded_text(data)
    return in_base64 if in_base64 is not None and _fields(in_base64.removeprefix(BOM_UTF8)) is not None else data
