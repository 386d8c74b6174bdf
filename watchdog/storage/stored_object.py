"""Describe an object that an event reports, and find out whether the event reports it as new."""

from __future__ import annotations

import re

import msgspec

from ..system.pattern import pattern

# Some names of MinIO and Amazon begin with `s3:`. EventBridge has other names. In the type of a CloudEvent, a name may
# be in lower case and have a dot in place of a colon. MinIO also reports changes of an object's tags and locks as
# creations. The pattern does not match such reports, because the bytes of the object stay the same.
_S3_CREATION = pattern(
    r"Object Created$|(?:s3:)?ObjectCreated(?:[:.](?!(?:Put|Delete)Tagging$|PutRetention$|PutLegalHold$)|$)",
    re.IGNORECASE,
)
# inotify(7): a file was made, closed after writing, or moved into the directory.
_FILE_CREATIONS = frozenset({"IN_CREATE", "IN_CLOSE_WRITE", "IN_MOVED_TO"})
_OF_DIRECTORY = "IN_ISDIR"
# The kinds of servers that speak S3.
_S3_KINDS = frozenset({"minio", "s3", "ceph"})


class StoredObject(msgspec.Struct, frozen=True):
    """One object that an event reports.

    ``kind``: ``minio``, ``s3``, ``ceph``, ``onedata`` or ``webdav``. ``container``: the bucket, or the space of
    Onedata; "" for WebDAV. ``key``: decoded; for WebDAV (dCache) the name below the input's path. ``time``, ``name``:
    the time and the name of the event, as the event has them, or "". ``text``: the event, byte for byte, if it reports
    only this object; else the same event with only this record. ``size_bytes``: as the event has it, or None.
    ``version``: the id of the version in its bucket, or "". ``fault``: why this complete record cannot be processed; ""
    if it can.
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
        """Return the bucket (or space) and the key, as the event has them."""
        return "/".join(filter(None, [self.container, self.key]))

    @property
    def why_not_new(self) -> str:
        """Return why the event does not report a new object to process; "" if it does."""
        if not _is_creation(self.kind, self.name):
            return f"{self.name[:100]} is not the creation of an object"
        # MinIO sends no size if the size is 0.
        if self.kind in _S3_KINDS and self.key.endswith("/") and not self.size_bytes:
            return "it is an empty object that marks a folder"
        return ""


def _is_creation(kind: str, name: str) -> bool:
    """Return whether an event with this name reports a new object. An event without a name also does so."""
    if not name:
        return True
    if kind == "webdav":
        masks = name.split(",")
        return not _FILE_CREATIONS.isdisjoint(masks) and _OF_DIRECTORY not in masks
    return _S3_CREATION.match(name) is not None
