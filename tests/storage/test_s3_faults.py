"""Other clients change an object or an upload during a transfer. This is never a success, and nothing is mixed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from running_server import RunningServer

from storage.fault_proxy import FaultProxy, Seen, fault_proxy
from storage.files import MIB, fetched, stored
from storage.servers import S3Server, moto_s3, rclone_s3
from watchdog.errors import ObjectMissing
from watchdog.storage import base
from watchdog.storage.s3 import S3

SIZE_BYTES = 9 * MIB
# The time of a file that has existed for a long time.
LONG_AGO_S = 1_000_000_000


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone_s3(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with moto_s3() as server:
        yield server


@pytest.fixture(params=["rclone", "moto"])
def server(request: pytest.FixtureRequest) -> S3Server:
    server: S3Server = request.getfixturevalue(request.param)
    return server


@contextlib.asynccontextmanager
async def through_faults(server: S3Server, **faults: Any) -> AsyncIterator[tuple[S3, FaultProxy]]:
    async with fault_proxy(server.endpoint, **faults) as proxy:
        s3 = S3(server.provider(endpoint=proxy.endpoint), timeout_s=RunningServer.patience_s, ca_file=None)
        try:
            yield s3, proxy
        finally:
            await s3.close()


def completes(seen: Seen) -> str:
    """Return the id of the upload that a request completes."""
    upload = re.search("uploadId=([^&]+)", seen.path)
    return unquote(upload[1]) if upload and seen.method == "POST" else ""


@pytest.mark.parametrize("other_bytes", [2 * MIB, 7 * MIB, SIZE_BYTES, 10 * MIB])
async def test_an_object_that_is_overwritten_between_tries(server: S3Server, tmp_path: Path, other_bytes: int) -> None:
    """Its two contents are not mixed, although the server ignores If-Range (moto, Ceph)."""
    location = f"bucket/overwritten{other_bytes}"
    old, new = os.urandom(SIZE_BYTES), os.urandom(other_bytes)
    server.put(location, old)
    tries = 0

    def first(seen: Seen) -> bool:
        nonlocal tries
        tries += 1
        if tries == 2:
            server.put(location, new)
        return tries == 1

    async with through_faults(server, applies=first, cut_response_at=4 * MIB) as (s3, proxy):
        assert await fetched(s3, tmp_path, location) == new
    assert "range" in proxy.requests[1].headers


async def test_an_upload_whose_completion_is_not_heard(server: S3Server, tmp_path: Path) -> None:
    data = os.urandom(SIZE_BYTES)
    faults: dict[str, Any] = {"times": 1, "applies": lambda seen: bool(completes(seen)), "cut_response_at": 0}
    async with through_faults(server, **faults) as (s3, proxy):
        await stored(s3, tmp_path, "bucket/unheard", data)
    assert proxy.happened == 1
    assert server.client().get_object(Bucket="bucket", Key="unheard")["Body"].read() == data


async def test_a_completion_that_failed_is_repeated_although_an_equal_object_exists(
    server: S3Server, tmp_path: Path
) -> None:
    """The object was stored a moment ago, and has the same size."""
    data = os.urandom(SIZE_BYTES)
    server.put("bucket/equal", bytes(SIZE_BYTES))
    async with through_faults(server, times=1, applies=lambda seen: bool(completes(seen)), status=503) as (s3, proxy):
        await stored(s3, tmp_path, "bucket/equal", data)
    assert proxy.happened == 1
    assert server.client().get_object(Bucket="bucket", Key="equal")["Body"].read() == data


async def test_an_upload_that_others_abort(rclone: S3Server, tmp_path: Path) -> None:
    """An earlier object with the same size does not count as the uploaded one."""
    assert rclone.root is not None
    rclone.put("bucket/called-off", bytes(SIZE_BYTES))
    os.utime(rclone.root / "bucket" / "called-off", (LONG_AGO_S, LONG_AGO_S))

    def call_off(seen: Seen) -> bool:
        if upload := completes(seen):
            rclone.client().abort_multipart_upload(Bucket="bucket", Key="called-off", UploadId=upload)
        return False

    async with through_faults(rclone, applies=call_off) as (s3, proxy):
        with pytest.raises(ObjectMissing, match="the multipart upload does not exist any more"):
            await stored(s3, tmp_path, "bucket/called-off", os.urandom(SIZE_BYTES))
    assert proxy.count("HEAD") == 1
    assert rclone.client().get_object(Bucket="bucket", Key="called-off")["Body"].read() == bytes(SIZE_BYTES)


async def test_an_upload_that_is_cancelled_while_it_begins_is_aborted(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The id of the upload is known only when the server has answered."""
    monkeypatch.setattr(base, "CLEANUP_S", RunningServer.patience_s)
    faults: dict[str, Any] = {"applies": lambda seen: seen.path.endswith("?uploads="), "stall_response_at": 0}
    async with through_faults(server, **faults) as (s3, proxy):
        storing = asyncio.create_task(stored(s3, tmp_path, "bucket/begun", bytes(SIZE_BYTES)))
        await asyncio.wait_for(proxy.standing_still.wait(), RunningServer.patience_s)
        storing.cancel()
        await asyncio.sleep(0)
        proxy.go_on()
        with pytest.raises(asyncio.CancelledError):
            await storing
    assert [seen.method for seen in proxy.requests] == ["POST", "DELETE"]
