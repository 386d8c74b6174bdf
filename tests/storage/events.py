"""Events as platforms send them."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote_plus

TIME = "2026-01-02T03:04:05.678Z"


CREATED = "s3:ObjectCreated:Put"


def record(location: str, source: str = "minio:s3", name: str | None = CREATED, **about: Any) -> dict[str, Any]:
    """One record; ``location``: bucket and key; ``name``: of the event; ``about``: more of the object."""
    bucket, _, key = location.partition("/")
    named = {} if name is None else {"eventName": name}
    return named | {
        "eventVersion": "2.0",
        "eventSource": source,
        "awsRegion": "",
        "eventTime": TIME,
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "Config",
            "bucket": {"name": bucket, "arn": f"arn:aws:s3:::{bucket}"},
            "object": {"key": key if source == "ceph:s3" else quote_plus(key), "size": 1} | about,
        },
    }


def event(*locations: str, source: str = "minio:s3", name: str | None = CREATED, **about: Any) -> bytes:
    """An event with a record for each location."""
    document: dict[str, Any] = {"Records": [record(location, source, name, **about) for location in locations]}
    if source == "minio:s3":
        document = {"EventName": name, "Key": locations[0]} | document
    return json.dumps(document).encode()


def event_of(*records: dict[str, Any]) -> bytes:
    """An event with these records."""
    return json.dumps({"Records": records}).encode()


def delegated(inner: bytes, provider: str = "minio.default") -> bytes:
    """As another OSCAR cluster sends it."""
    return json.dumps({"storage_provider": provider, "event": inner.decode()}).encode()
