"""Events as platforms send them."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote_plus

TIME = "2026-01-02T03:04:05.678Z"


def record(location: str, source: str = "minio:s3") -> dict[str, Any]:
    """One record; ``location``: bucket and key."""
    bucket, _, key = location.partition("/")
    return {
        "eventVersion": "2.0",
        "eventSource": source,
        "awsRegion": "",
        "eventTime": TIME,
        "eventName": "s3:ObjectCreated:Put",
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "Config",
            "bucket": {"name": bucket, "arn": f"arn:aws:s3:::{bucket}"},
            "object": {"key": key if source == "ceph:s3" else quote_plus(key), "size": 1},
        },
    }


def event(*locations: str, source: str = "minio:s3") -> bytes:
    """An event with a record for each location."""
    document: dict[str, Any] = {"Records": [record(location, source) for location in locations]}
    if source == "minio:s3":
        document = {"EventName": "s3:ObjectCreated:Put", "Key": locations[0]} | document
    return json.dumps(document).encode()


def delegated(inner: bytes, provider: str = "minio.default") -> bytes:
    """As another OSCAR cluster sends it."""
    return json.dumps({"storage_provider": provider, "event": inner.decode()}).encode()
