"""Servers that several files of tests share, and a service definition for one of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.servers import S3Server, rclone_s3


@pytest.fixture(scope="module")
def bucket_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Run the S3 server of rclone, with its root at ``bucket_server.root``."""
    with rclone_s3(tmp_path_factory.mktemp("buckets")) as server:
        yield server


@pytest.fixture
def place(bucket_server: S3Server, tmp_path: Path) -> str:
    """Return a folder of ``bucket`` that only this test uses."""
    return f"bucket/{tmp_path.name}"


Define = Callable[..., str]


@pytest.fixture
def define(bucket_server: S3Server, place: str, tmp_path: Path) -> Define:
    """Write a service definition and return its path: inputs below ``PLACE/in``, outputs to ``PLACE/out``."""

    def write(*, endpoint: str = "", provider: dict[str, Any] | None = None, **fields: Any) -> str:
        minio = bucket_server.definition(**({"endpoint": endpoint} if endpoint else {}), **(provider or {}))
        definition = {
            "name": "tests",
            "storage_providers": {"minio": {"default": minio}},
            "input": [{"storage_provider": "minio.default", "path": f"{place}/in"}],
            "output": [{"storage_provider": "minio.default", "path": f"{place}/out"}],
        } | fields
        path = tmp_path / "function_config.yaml"
        path.write_text(json.dumps({name: value for name, value in definition.items() if value is not None}))
        return str(path)

    return write
