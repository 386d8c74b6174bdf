"""Find the objects that an event reports, and what a job gets on stdin and in ``EVENT``.

The known shapes are those that OSCAR's faas-supervisor reads (its ``faassupervisor/events``), those in Amazon's
documentation of S3 notifications and in the CloudEvents project's S3 adapter, and those that radosgw sends. A text is
an event only if it has all parts of a shape. A user's own JSON with a key ``event`` or ``httpMethod`` is data.
"""

from __future__ import annotations

import glob
import re
from codecs import BOM_UTF8
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import unquote_plus

import msgspec

from ..errors import BadInput
from ..system.base64_reader import decoded_text
from .envelope import Notice, decoded, messages, notice

# What is longer is data. A queue's message has 256 KiB at most, a variable 128 KiB.
MOST_BYTES = 1 << 20
_MOST_ENVELOPES = 3
_MOST_TOLD_BYTES = 8 * MOST_BYTES
_SOURCES = {"minio:s3": "minio", "aws:s3": "s3", "ceph:s3": "ceph"}
_S3_KINDS = frozenset(_SOURCES.values())
# MinIO before the middle of 2020 sends this id for every object of a bucket that keeps no versions, and answers a GET
# with it with an error. Ids of real versions in MinIO are UUIDs.
_NO_VERSION_OF_MINIO = "1"
# The types of the CloudEvents project's adapter and of TriggerMesh's, which end in the event's name, and of Knative's.
_CLOUD_EVENT_TYPE = re.compile(r"com\.amazon(?:aws)?\.s3\.(?P<name>.*)|(?:dev\.knative\.)?aws\.s3", re.IGNORECASE)
# MinIO and Amazon begin some names with `s3:`; EventBridge has names of its own; a CloudEvent's type may be in lower
# case, with a dot. MinIO also calls changes of an object's tags and locks creations: the bytes stay the same.
_S3_CREATION = re.compile(
    r"Object Created$|(?:s3:)?ObjectCreated(?:[:.](?!(?:Put|Delete)Tagging$|PutRetention$|PutLegalHold$)|$)",
    re.IGNORECASE,
)
# inotify(7): a file that was made, written to its end, or moved into the directory.
_FILE_CREATIONS = frozenset({"IN_CREATE", "IN_CLOSE_WRITE", "IN_MOVED_TO"})
_OF_DIRECTORY = "IN_ISDIR"


def _is_creation(kind: str, name: str) -> bool:
    """Whether an event of this name reports a new object. An event without a name does."""
    if not name:
        return True
    if kind == "webdav":
        masks = name.split(",")
        return not _FILE_CREATIONS.isdisjoint(masks) and _OF_DIRECTORY not in masks
    return _S3_CREATION.match(name) is not None


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object that an event tells of.

    ``kind``: ``minio``, ``s3``, ``ceph``, ``onedata`` or ``webdav``. ``container``: the bucket, or the space of
    Onedata; "" for WebDAV. ``key``: decoded; for WebDAV (dCache) the name below the input's path. ``time``, ``name``:
    when and what happened, as sent; "" if the event does not tell. ``text``: the event as it came, byte for byte, if it
    tells of this object alone; else the same event with this record alone. ``size_bytes``: as sent, None if the event
    does not say; ``version``: the id of the version in its bucket, or "". ``fault``: why this record cannot be
    processed, though it is complete; "" if it can.
    """

    kind: str
    container: str
    key: str
    time: str
    name: str
    text: bytes
    size_bytes: int | None = None
    version: str = ""
    fault: str = ""

    @property
    def location(self) -> str:
        """Bucket (or space) and key, as the event has them."""
        return "/".join(filter(None, [self.container, self.key]))

    @property
    def why_not_new(self) -> str:
        """Why the event does not report a new object to process; "" if it does."""
        if not _is_creation(self.kind, self.name):
            return f"{self.name[:100]} is not the creation of an object"
        # MinIO leaves the size out where it is 0.
        if self.kind in _S3_KINDS and self.key.endswith("/") and not self.size_bytes:
            return "it is an empty object that marks a folder"
        return ""


@dataclass(frozen=True, slots=True)
class Event:
    """What a text reports.

    ``objects``: the reported ones, new or not. ``notices``: messages of the sender that report no object. Without both,
    ``data`` is the input. ``provider``: the storage provider that a delegated event names, or "".
    ``variables``: ``CONT_VAR_NAME`` for each query parameter of an API gateway.
    ``data_is``: ``bytes``, which are the input, ``text``, which is the input unless it is base64, or else a ``body`` as
    of any call.
    """

    objects: tuple[StoredObject, ...] = ()
    provider: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    data: bytes | None = None
    data_is: Literal["bytes", "text", "body"] = "body"
    notices: tuple[Notice, ...] = ()

    @property
    def kinds(self) -> set[str]:
        """The kinds of its objects and of its notices."""
        return {stored.kind for stored in self.objects} | ({"s3"} if self.notices else set())


def read(text: bytes) -> Event | None:
    """The event that a text is; None if it is data. Raises nothing."""
    return _read(text, _MOST_ENVELOPES)


def read_data(event_type: str, data: bytes) -> Event | None:
    """The event whose data this is, of a CloudEvent in binary mode, where ``type`` is a header; None: it is data."""
    data = data.removeprefix(BOM_UTF8)
    fields = _fields(data)
    if fields is None:
        return None
    event = _read_bare(fields, data, _MOST_ENVELOPES) or Event()
    objects = event.objects
    if (type_of_s3 := _CLOUD_EVENT_TYPE.match(event_type)) is not None:
        objects = objects or _objects_of_record(msgspec.Raw(data), data)
        name = type_of_s3["name"] or ""
        objects = tuple(each if each.name else replace(each, name=name) for each in objects)
    return replace(event, objects=objects) if objects or event.notices else None


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
    """An event of objects, a notice, or several of them that SQS or SNS has wrapped; None if one is not complete."""
    if objects := _objects(fields, text):
        return Event(objects)
    if (received := notice(fields)) is not None:
        return Event(notices=(received,))
    wrapped = messages(fields) if envelopes else []
    events: list[Event] = []
    told_bytes = 0
    for message in wrapped:
        message = message.removeprefix(BOM_UTF8)
        inner = _fields(message)
        event = None if inner is None else _read_bare(inner, message, envelopes - 1)
        if event is None:
            return None
        told_bytes += sum(len(stored.text) for stored in event.objects)
        if told_bytes > _MOST_TOLD_BYTES:
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
        text.decode()  # msgspec looks only at the texts that it is asked for
        return msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


# ------------------------------------------------------------------------------------------- what tells of objects


class _Named(msgspec.Struct):
    name: str


class _Keyed(msgspec.Struct, rename="camel"):
    key: str
    # Other values here do not change which event this is.
    size: Any = None
    version_id: Any = None


class _S3(msgspec.Struct):
    bucket: _Named
    object: _Keyed


class _Record(msgspec.Struct, rename="camel"):
    event_source: str
    s3: _S3
    event_time: Any = None
    event_name: Any = None


class _OneTrigger(msgspec.Struct, rename="camel"):
    event_source: str
    object_key: str
    event_time: str = ""


class _DetailKeyed(msgspec.Struct, rename="kebab"):
    key: str
    size: Any = None
    version_id: Any = None


class _Detail(msgspec.Struct):
    bucket: _Named
    object: _DetailKeyed


class _Inotify(msgspec.Struct):
    name: str
    mask: list[str] = []


def _objects(fields: Mapping[str, msgspec.Raw], text: bytes) -> tuple[StoredObject, ...]:
    """Those of an event that is no envelope; all its records are complete, or there are none."""
    if "Records" in fields:
        records = decoded(fields["Records"], list[msgspec.Raw]) or []
        # Each record is told with all that stands beside them: a little, of whoever sends such events.
        if len(records) * (len(text) - len(bytes(fields["Records"]))) > _MOST_TOLD_BYTES:
            return ()
        objects: list[StoredObject] = []
        for record in records:
            name_of_all = (decoded(fields.get("EventName"), str) or "") if "EventName" in fields else ""
            # Scripts look at the first record.
            alone = text if len(records) == 1 else msgspec.json.encode({**fields, "Records": [record]})
            found = _objects_of_record(record, alone) or _objects_of_onedata(fields, record, alone)
            if not found:
                return ()
            # MinIO has the name also beside the records.
            objects += (each if each.name else replace(each, name=name_of_all) for each in found)
        return tuple(objects)
    if "subscription" in fields and "event" in fields:
        return _objects_of_dcache(fields, text)
    if "detail" in fields:
        return _objects_of_event_bridge(fields, text)
    return ()


def _objects_of_record(raw: msgspec.Raw, text: bytes) -> tuple[StoredObject, ...]:
    record = decoded(raw, _Record)
    if record is None or record.event_source not in _SOURCES:
        return ()
    kind = _SOURCES[record.event_source]
    key, fault = record.s3.object.key, ""
    if kind != "ceph":  # radosgw sends keys as they are
        try:
            key = unquote_plus(key, errors="strict")
        except UnicodeDecodeError:
            fault = "its key is not UTF-8"
    time = record.event_time if isinstance(record.event_time, str) else ""
    name = record.event_name or ""
    if not isinstance(name, str):
        name, fault = "", "its eventName is not a text"
    size, version = record.s3.object.size, record.s3.object.version_id
    if kind == "minio" and version == _NO_VERSION_OF_MINIO:
        version = None
    return _object(kind, record.s3.bucket.name, key, time, name, text, size, version, fault)


def _objects_of_onedata(fields: Mapping[str, msgspec.Raw], raw: msgspec.Raw, text: bytes) -> tuple[StoredObject, ...]:
    record = decoded(raw, _OneTrigger)
    path = decoded(fields.get("Key"), str)
    if record is None or record.event_source != "OneTrigger" or path is None:
        return ()
    space, _, key = path.strip("/").partition("/")
    return _object("onedata", space, key, record.event_time, "", text)


def _objects_of_dcache(fields: Mapping[str, msgspec.Raw], text: bytes) -> tuple[StoredObject, ...]:
    inotify = decoded(fields["event"], _Inotify)
    if inotify is None or decoded(fields["subscription"], str) is None:
        return ()
    return _object("webdav", "", inotify.name.strip("/"), "", ",".join(inotify.mask), text)


def _objects_of_event_bridge(fields: Mapping[str, msgspec.Raw], text: bytes) -> tuple[StoredObject, ...]:
    detail = decoded(fields["detail"], _Detail)
    name, source = decoded(fields.get("detail-type"), str), decoded(fields.get("source"), str)
    if detail is None or not name or source != "aws.s3":
        return ()
    time = decoded(fields.get("time"), str) or ""
    size, version = detail.object.size, detail.object.version_id
    # Keys are not encoded here.
    return _object("s3", detail.bucket.name, detail.object.key, time, name, text, size, version)


def _object(
    kind: str,
    container: str,
    key: str,
    time: str,
    name: str,
    text: bytes,
    size: object = None,
    version: object = None,
    fault: str = "",
) -> tuple[StoredObject, ...]:
    if not key or not (container or kind == "webdav"):
        return ()
    if "\0" in container + key + time:
        fault = "it has a NUL in its name or time"
    size_bytes = size if isinstance(size, int) else None
    version = version if isinstance(version, str) else ""
    return (StoredObject(kind, container, key, time, name, text, size_bytes, version, fault),)


# ------------------------------------------------------------------------------------------------------- envelopes


def _read_cloud_event(fields: Mapping[str, msgspec.Raw], envelopes: int) -> Event | None:
    """A CloudEvent in structured mode. One whose data tells of no object is data as a whole."""
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
    """OSCAR's, of another cluster (`pkg/resourcemanager/delegate.go`): the inner event is a text, or an object."""
    provider = decoded(fields.get("storage_provider"), str)
    if provider is None or "event" not in fields:
        return None
    inner = _inner(fields["event"])
    if inner is None:
        return None
    event = _read(inner, envelopes) or Event(data=inner)
    return replace(event, provider=event.provider or provider)


def _read_api_gateway(fields: Mapping[str, msgspec.Raw], envelopes: int) -> Event | None:
    """Amazon's proxy integration of an API gateway."""
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
    return replace(event, variables={**variables, **event.variables})


def _inner(raw: msgspec.Raw) -> bytes | None:
    """An object as it is; a text's bytes, decoded if they are base64 of an object."""
    if bytes(raw).startswith(b"{"):
        return bytes(raw)
    text = decoded(raw, str)
    if text is None:
        return None
    data = text.encode("utf-8", "surrogatepass")
    in_base64 = decoded_text(data)
    return in_base64 if in_base64 is not None and _fields(in_base64.removeprefix(BOM_UTF8)) is not None else data


# ---------------------------------------------------------------------------------------------------- a job's input


def job_text(stdin: bytes, variable: str | None) -> bytes:
    """The event of a job.

    OSCAR starts ``echo $EVENT | supervisor``, without quotes: the shell joins white space, expands patterns, and dash's
    echo expands backslashes. ``EVENT`` itself is whole, and counts if stdin is what a shell makes of it, or what it
    holds in base64 (InterLink decodes it in the pipe).

    Args:
        stdin: all of it.
        variable: ``EVENT``, if it is set.

    Raises:
        BadInput: there is no event, or it is an object broken beyond repair.
    """
    whole = (variable or "").encode("utf-8", "surrogateescape")
    if not stdin.strip():
        if not whole.strip():
            raise BadInput(
                "there is no event: give it on stdin (watchdog job < event.json), or in the variable EVENT, as JSON or "
                "as base64 of it"
            )
        stdin = whole
    elif whole.strip() and (_is_echo_of(stdin, whole) or decoded_text(whole) == stdin.rstrip(b"\n")):
        stdin = whole
    in_base64 = decoded_text(stdin.removeprefix(BOM_UTF8))
    if in_base64 is not None and _is_object(in_base64):
        stdin = in_base64
    return _repaired(stdin) if _is_object(stdin) else stdin


def _is_object(text: bytes) -> bool:
    return text.removeprefix(BOM_UTF8).lstrip().startswith(b"{")


def _is_echo_of(stdin: bytes, variable: bytes) -> bool:
    """Is this what `echo $VARIABLE` prints, in dash or in bash, in this working directory?"""
    words = [(word, _files_of(word)) for word in variable.split()]
    text = b" ".join(b" ".join(files) or word for word, files in words)
    printed = stdin.rstrip(b"\n")
    for echoed in (text, _as_dash_echoes(text)):
        if printed == echoed.rstrip(b"\n"):
            return True
        # The order of files is that of the shell's locale.
        if any(files for _, files in words) and sorted(printed.split()) == sorted(echoed.split()):
            return True
    return False


def _files_of(word: bytes) -> list[bytes]:
    """The files whose names a pattern becomes; none: the word stays as it is, as one without `*`, `?` or `[` does."""
    return sorted(glob.glob(word)) if glob.has_magic(word) else []


_DASH_ESCAPE = re.compile(rb"\\(?:([abefnrtv\\])|0([0-7]{0,3})|([1-7][0-7]{0,2}))")
_ESCAPED = dict(zip(b"abefnrtv\\", b"\a\b\x1b\f\n\r\t\v\\", strict=True))


def _as_dash_echoes(text: bytes) -> bytes:
    """What dash's echo makes of backslashes; it prints nothing after `\\c`."""

    def expanded(match: re.Match[bytes]) -> bytes:
        if match[1]:
            return bytes([_ESCAPED[match[1][0]]])
        return bytes([int(match[2] or match[3] or b"0", 8) & 0xFF])

    end = re.match(rb"(?:[^\\]|\\[^c])*?\\c", text, re.DOTALL)
    return _DASH_ESCAPE.sub(expanded, text if end is None else end[0][:-2])


def _repaired(text: bytes) -> bytes:
    """An object whose strings hold raw control characters, with those escaped: dash has expanded `\\n` in it."""
    mark = BOM_UTF8 if text.startswith(BOM_UTF8) else b""
    text = text.removeprefix(BOM_UTF8)
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
        return mark + text
    except (msgspec.DecodeError, RecursionError) as error:
        reason = str(error)
    repaired = _with_escapes(text)
    try:
        msgspec.json.decode(repaired, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        raise BadInput(
            f"the event is no JSON ({reason}). A shell changes it where $EVENT stands without quotes: set the variable "
            "EVENT for this command, too, or use printf '%s' \"$EVENT\" | watchdog job"
        ) from None
    return mark + repaired


_OF_STRINGS = re.compile(rb'\\.|["\x00-\x1f]', re.DOTALL)


def _with_escapes(text: bytes) -> bytes:
    """With the control characters in strings escaped, in one pass: a text may be broken anywhere, and long."""
    is_inside = False

    def escaped(match: re.Match[bytes]) -> bytes:
        nonlocal is_inside
        found = match[0]
        if found == b'"':
            is_inside = not is_inside
        elif is_inside and len(found) == 1:
            return b"\\u%04x" % found[0]
        return found

    return _OF_STRINGS.sub(escaped, text)
