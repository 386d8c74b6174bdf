"""Read the objects that one event reports, in the shapes of MinIO, Amazon, Ceph, EventBridge, OneTrigger and dCache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_plus

import msgspec

from .envelope import decoded
from .stored_object import StoredObject

# The largest number of bytes in the texts of all objects of one event: eight times the longest event. Each text repeats
# the fields of the event outside of its records, so an event with many short records could fill the memory.
MOST_TEXT_BYTES = 8 << 20
_SOURCES = {"minio:s3": "minio", "aws:s3": "s3", "ceph:s3": "ceph"}
# The id that MinIO before the middle of 2020 sends for objects in a bucket without versions. A GET with it fails.
# Ids of real versions in MinIO are UUIDs.
_NO_VERSION_OF_MINIO = "1"


def objects_of(fields: Mapping[str, msgspec.Raw], text: bytes) -> tuple[StoredObject, ...]:
    """Return the objects of an event without an envelope; none if one of its records is incomplete."""
    if "Records" in fields:
        records = decoded(fields["Records"], list[msgspec.Raw]) or []
        # The text of each object repeats the fields of the event outside of its records. In events of real senders,
        # these fields are short.
        if len(records) * (len(text) - len(bytes(fields["Records"]))) > MOST_TEXT_BYTES:
            return ()
        objects: list[StoredObject] = []
        for record in records:
            name_of_all = (decoded(fields.get("EventName"), str) or "") if "EventName" in fields else ""
            # Scripts read only the first record, so the text of an object has only its own record.
            alone = text if len(records) == 1 else msgspec.json.encode({**fields, "Records": [record]})
            found = objects_of_record(record, alone) or _objects_of_onedata(fields, record, alone)
            if not found:
                return ()
            # MinIO also writes the event's name beside the records.
            objects += (each if each.name else msgspec.structs.replace(each, name=name_of_all) for each in found)
        return tuple(objects)
    if "subscription" in fields and "event" in fields:
        return _objects_of_dcache(fields, text)
    if "detail" in fields:
        return _objects_of_event_bridge(fields, text)
    return ()


def objects_of_record(raw: msgspec.Raw, text: bytes) -> tuple[StoredObject, ...]:
    record = decoded(raw, _Record)
    if record is None or record.event_source not in _SOURCES:
        return ()
    kind = _SOURCES[record.event_source]
    key, fault = record.s3.object.key, ""
    if kind != "ceph":  # radosgw does not encode keys
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
    # EventBridge does not encode keys.
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


class _Named(msgspec.Struct):
    name: str


class _Keyed(msgspec.Struct, rename="camel"):
    key: str
    # Values of unexpected types are ignored. They do not make the record another kind of event.
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
