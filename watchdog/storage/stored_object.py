"""An object of a storage that an event reports, and whether the event reports it as new."""

from __future__ import annotations

import re
from dataclasses import dataclass

# MinIO and Amazon begin some names with `s3:`; EventBridge has names of its own; a CloudEvent's type may be in lower
# case, with a dot. MinIO also calls changes of an object's tags and locks creations: the bytes stay the same.
_S3_CREATION = re.compile(
    r"Object Created$|(?:s3:)?ObjectCreated(?:[:.](?!(?:Put|Delete)Tagging$|PutRetention$|PutLegalHold$)|$)",
    re.IGNORECASE,
)
# inotify(7): a file that was made, written to its end, or moved into the directory.
_FILE_CREATIONS = frozenset({"IN_CREATE", "IN_CLOSE_WRITE", "IN_MOVED_TO"})
_OF_DIRECTORY = "IN_ISDIR"
# The kinds of servers that speak S3.
_S3_KINDS = frozenset({"minio", "s3", "ceph"})


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


def _is_creation(kind: str, name: str) -> bool:
    """Whether an event of this name reports a new object. An event without a name does."""
    if not name:
        return True
    if kind == "webdav":
        masks = name.split(",")
        return not _FILE_CREATIONS.isdisjoint(masks) and _OF_DIRECTORY not in masks
    return _S3_CREATION.match(name) is not None
