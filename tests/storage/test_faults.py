"""Faults between a backend and its server. A transfer is resumed, or fails in bounded time with a true message.

There is never a part of a file under its name, and nothing is left of a failed or cancelled transfer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from botocore.exceptions import ClientError
from running_server import RunningServer

from storage.fault_proxy import FaultProxy, Seen, fault_proxy
from storage.files import MIB, Moving, fetched, output_of, stored
from storage.servers import S3Server, moto_s3, rclone_s3
from storage.webdav_servers import WebDavServer, rclone_webdav
from watchdog.errors import StorageError
from watchdog.storage import base, connections, http_request, retry
from watchdog.storage.base import Storage
from watchdog.storage.s3 import S3
from watchdog.storage.webdav import WebDav

# Long enough for several attempts and for a busy machine. Short enough to wait for their end.
TIMEOUT_S = 4.0
# For tests in which the storage must answer, however busy the machine is.
PATIENT_S = 10.0
# For tests in which silence must be reported.
SILENCE_S = 1.5
LARGE_BYTES = 12 * MIB + 3


@dataclass(frozen=True)
class Target:
    """A server, and the backend for it."""

    server: S3Server | WebDavServer

    @property
    def place(self) -> str:
        return "bucket/" if isinstance(self.server, S3Server) else ""

    def storage(self, endpoint: str, timeout_s: float) -> Storage:
        backend = S3 if isinstance(self.server, S3Server) else WebDav
        return backend(self.server.provider(endpoint=endpoint), timeout_s=timeout_s, ca_file=None)

    def names(self, prefix: str) -> list[str]:
        """Return objects whose names begin like this, and multipart uploads that were neither completed nor aborted."""
        if isinstance(self.server, WebDavServer):
            return [name for path in self.server.root.rglob("*") if (name := path.name) and path.is_file()
                    and (name.startswith((prefix, ".")))]  # fmt: skip
        client = self.server.client()
        listed = client.list_objects_v2(Bucket="bucket", Prefix=prefix).get("Contents", [])
        try:
            uploads = client.list_multipart_uploads(Bucket="bucket").get("Uploads", [])
        except ClientError as error:  # rclone's answer if there are no uploads
            if error.response["Error"]["Code"] != "NoSuchUpload":
                raise
            uploads = []
        return [each["Key"] for each in listed] + [f"upload of {each['Key']}" for each in uploads]


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Target]]:
    with (
        rclone_s3(tmp_path_factory.mktemp("s3")) as rclone,
        moto_s3() as moto,
        rclone_webdav(tmp_path_factory.mktemp("webdav")) as webdav,
    ):
        yield {"rclone s3": Target(rclone), "moto": Target(moto), "webdav": Target(webdav)}


@pytest.fixture(params=["rclone s3", "moto", "webdav"])
def target(request: pytest.FixtureRequest, targets: dict[str, Target]) -> Target:
    return targets[request.param]


@contextlib.asynccontextmanager
async def through_faults(
    target: Target, timeout_s: float = TIMEOUT_S, **faults: Any
) -> AsyncIterator[tuple[Storage, FaultProxy]]:
    async with fault_proxy(target.server.endpoint, **faults) as proxy:
        storage = target.storage(proxy.endpoint, timeout_s)
        try:
            yield storage, proxy
        finally:
            await storage.close()


@contextlib.asynccontextmanager
async def direct(target: Target) -> AsyncIterator[Storage]:
    storage = target.storage(target.server.endpoint, PATIENT_S)
    try:
        yield storage
    finally:
        await storage.close()


def of_file(method: str, name: str) -> Any:
    """Return whether a request is about this object or a part of it."""
    return lambda seen: seen.method == method and (name in seen.path or ".watchdog" in seen.path)


# Downloads


@pytest.mark.parametrize("times", [1, 3])
async def test_a_download_that_is_cut_is_resumed(target: Target, tmp_path: Path, times: int) -> None:
    data = os.urandom(LARGE_BYTES)
    async with direct(target) as storage:
        await stored(storage, tmp_path, target.place + "cut", data)
    async with through_faults(target, timeout_s=PATIENT_S, times=times, cut_response_at=2 * MIB) as (storage, proxy):
        assert await fetched(storage, tmp_path, target.place + "cut") == data
    assert proxy.happened == times
    assert proxy.count("GET") > times


async def test_a_download_that_is_always_cut_at_once_fails(target: Target, tmp_path: Path) -> None:
    async with direct(target) as storage:
        await stored(storage, tmp_path, target.place + "never", bytes(MIB))
    async with through_faults(target, cut_response_at=0) as (storage, proxy):
        with pytest.raises(StorageError, match="closed the connection"):
            await fetched(storage, tmp_path, target.place + "never")
    assert proxy.happened > 1


async def test_a_server_that_stands_still_in_a_download_is_given_up(target: Target, tmp_path: Path) -> None:
    async with direct(target) as storage:
        await stored(storage, tmp_path, target.place + "still", bytes(LARGE_BYTES))
    async with through_faults(target, timeout_s=SILENCE_S, stall_response_at=0) as (storage, proxy):
        with pytest.raises(StorageError, match=r"silent|closed the connection"):
            await fetched(storage, tmp_path, target.place + "still")
    assert proxy.standing_still.is_set()


async def test_a_download_that_stalls_once_is_resumed(target: Target, tmp_path: Path) -> None:
    data = os.urandom(LARGE_BYTES)
    async with direct(target) as storage:
        await stored(storage, tmp_path, target.place + "once", data)
    async with through_faults(target, times=1, stall_response_at=3 * MIB) as (storage, proxy):
        assert await fetched(storage, tmp_path, target.place + "once") == data
    assert proxy.standing_still.is_set()


@pytest.mark.parametrize("bytes_before_cut", [None, 20])
async def test_a_server_that_sends_a_few_bytes_now_and_then_is_given_up(
    tmp_path: Path, bytes_before_cut: int | None
) -> None:
    """The server keeps the connection, or closes it again and again. Each attempt gets a little further."""
    connections: list[asyncio.Task[None]] = []

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.ensure_future(serve(reader, writer)))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            begin = int(found[1]) if (found := re.search(r"range: bytes=(\d+)-", head)) else 0
            status = "206 Partial Content" if begin else "200 OK"
            writer.write(
                f'HTTP/1.1 {status}\r\nContent-Length: {LARGE_BYTES - begin}\r\nETag: "one"\r\n'
                f"Content-Range: bytes {begin}-{LARGE_BYTES - 1}/{LARGE_BYTES}\r\n\r\n".encode()
            )
            sent = 0
            while bytes_before_cut is None or sent < bytes_before_cut:
                writer.write(b"x" * 10)
                sent += 10
                await writer.drain()
                await asyncio.sleep(0.1)  # this makes the server slow
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        provider = S3Server(f"http://127.0.0.1:{port}", "key", "secret").provider()
        storage = S3(provider, timeout_s=SILENCE_S, ca_file=None)
        try:
            with pytest.raises(StorageError, match=r"let only .* bytes through|closed the connection"):
                await asyncio.wait_for(fetched(storage, tmp_path, "bucket/drip"), RunningServer.patience_s)
        finally:
            await storage.close()
            await asyncio.gather(*connections)
    assert len(connections) > 1


@pytest.mark.parametrize(("end", "total"), [(400, "*"), (500, "*"), (400, "400")])
async def test_a_rest_that_is_too_short_is_not_the_end(tmp_path: Path, end: int, total: str) -> None:
    """The size that the server announced at first counts, also if the answer with the rest gives none or another."""
    data = os.urandom(500)
    requests: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        begin = int(found[1]) if (found := re.search(r"range: bytes=(\d+)-", head)) else 0
        requests.append(f"from {begin}")
        lines = ["HTTP/1.1 200 OK", "Content-Length: 500"]
        upto = 300 if len(requests) == 1 else 500
        if begin:
            upto = end if begin == 300 else 500
            lines = ["HTTP/1.1 206 Partial Content", f"Content-Length: {upto - begin}"]
            lines.append(f"Content-Range: bytes {begin}-{upto - 1}/{total}")
        writer.write("\r\n".join([*lines, 'ETag: "one"', "Connection: close", "", ""]).encode() + data[begin:upto])
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        storage = S3(S3Server(f"http://127.0.0.1:{port}", "key", "secret").provider(), timeout_s=40.0, ca_file=None)
        try:
            assert await fetched(storage, tmp_path, "bucket/rest") == data
        finally:
            await storage.close()
    assert requests[:2] == ["from 0", "from 300"]


async def test_a_cancelled_download_leaves_no_file_or_connection_open(target: Target, tmp_path: Path) -> None:
    async with direct(target) as storage:
        await stored(storage, tmp_path, target.place + "cancelled", bytes(LARGE_BYTES))
    async with through_faults(target, timeout_s=PATIENT_S, stall_response_at=3 * MIB) as (storage, proxy):
        descriptors = os.listdir("/proc/self/fd")
        fetching = asyncio.create_task(fetched(storage, tmp_path, target.place + "cancelled"))
        await asyncio.wait_for(proxy.standing_still.wait(), RunningServer.patience_s)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        # The proxy closes its own connections when the connection of the storage has ended.
        async with asyncio.timeout(RunningServer.patience_s):
            while os.listdir("/proc/self/fd") != descriptors:
                await asyncio.sleep(0.01)


# Both directions


@pytest.mark.parametrize("size_bytes", [100, LARGE_BYTES])
async def test_503_twice_is_tried_again(target: Target, tmp_path: Path, size_bytes: int) -> None:
    data = os.urandom(size_bytes)
    async with through_faults(target, timeout_s=PATIENT_S, times=2, status=503) as (storage, proxy):
        await stored(storage, tmp_path, f"{target.place}twice{size_bytes}", data)
        assert proxy.happened == 2
    async with through_faults(target, timeout_s=PATIENT_S, times=2, status=503) as (storage, proxy):
        assert await fetched(storage, tmp_path, f"{target.place}twice{size_bytes}") == data
        assert proxy.happened == 2


async def test_503_for_ever_fails(target: Target, tmp_path: Path) -> None:
    async with through_faults(target, status=503) as (storage, proxy):
        with pytest.raises(StorageError, match=r"answers .* with 503"):
            await stored(storage, tmp_path, target.place + "ever", b"data")
        assert proxy.happened > 2
        with pytest.raises(StorageError, match=r"answers .* with 503"):
            await fetched(storage, tmp_path, target.place + "ever")
    assert target.names("ever") == []


async def test_a_slow_link_is_not_a_failure(target: Target, tmp_path: Path) -> None:
    """The whole transfer takes several times as long as the longest allowed silence."""
    data = os.urandom(2 * MIB)
    async with through_faults(target, timeout_s=2, bytes_per_s=400 * 1024) as (storage, _):
        await stored(storage, tmp_path, target.place + "slow", data)
        assert await fetched(storage, tmp_path, target.place + "slow") == data


async def test_a_silent_server_is_given_up(target: Target, tmp_path: Path) -> None:
    async with through_faults(target, timeout_s=1.0, is_silent=True) as (storage, proxy):
        with pytest.raises(StorageError, match="silent"):
            await stored(storage, tmp_path, target.place + "silent", bytes(1000))
        with pytest.raises(StorageError, match="silent"):
            await fetched(storage, tmp_path, target.place + "silent")
    assert proxy.standing_still.is_set()
    assert target.names("silent") == []


async def test_a_server_whose_packets_are_dropped_is_not_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later uploads still ask for 100 Continue: that no connection was made does not show that it never comes."""
    expects: list[str] = []
    timeout_s = RunningServer.patience_s
    monkeypatch.setattr(connections, "_CONNECT_S", 1.0)

    async def answer(request: web.BaseRequest) -> web.Response:
        expects.append(request.headers.get("Expect", ""))
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await request.content.read()
        return web.Response(status=200)

    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    runner = web.ServerRunner(web.Server(answer), handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    port = listener.getsockname()[1]
    storage = S3(S3Server(f"http://127.0.0.1:{port}", "key", "secret").provider(), timeout_s=timeout_s, ca_file=None)
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(8):  # the kernel drops the packets of a client when this queue of the listener is full
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(("127.0.0.1", port))
            monkeypatch.setattr(http_request, "_CONTINUE_S", 0.1)
            with monkeypatch.context() as patched:
                patched.setattr(retry, "_FIRST_PAUSE_S", 3 * timeout_s)  # so the client gives up at once
                with pytest.raises(StorageError, match=r"reached .*: no connection could be made in 1 s; check"):
                    await stored(storage, tmp_path, "bucket/large", bytes(2 * MIB))
        monkeypatch.setattr(http_request, "_CONTINUE_S", timeout_s)
        await web.SockSite(runner, listener).start()
        await stored(storage, tmp_path, "bucket/large", bytes(2 * MIB))
    finally:
        await storage.close()
        await runner.cleanup()
        listener.close()
    assert expects[0] == "100-continue"


# Uploads


@pytest.fixture
def patient_cleanup(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of a failed upload is removed, also on a slow machine."""
    monkeypatch.setattr(base, "CLEANUP_S", RunningServer.patience_s)


async def test_an_upload_that_is_cut_is_sent_again(target: Target, tmp_path: Path) -> None:
    data = os.urandom(LARGE_BYTES)
    faults = {"applies": of_file("PUT", "again"), "times": 2, "cut_request_at": MIB}
    async with through_faults(target, timeout_s=PATIENT_S, **faults) as (storage, proxy):
        assert await stored(storage, tmp_path, target.place + "again", data) == len(data)
    assert proxy.happened == 2
    assert target.names("again") == ["again"]
    async with direct(target) as storage:
        assert await fetched(storage, tmp_path, target.place + "again") == data


@pytest.mark.usefixtures("patient_cleanup")
async def test_an_upload_that_is_always_cut_leaves_nothing(target: Target, tmp_path: Path) -> None:
    faults = {"applies": of_file("PUT", "nothing"), "cut_request_at": MIB}
    async with through_faults(target, **faults) as (storage, proxy):
        with pytest.raises(StorageError, match="closed the connection"):
            await stored(storage, tmp_path, target.place + "nothing", bytes(LARGE_BYTES))
    assert proxy.happened > 1
    assert target.names("nothing") == []


@pytest.mark.usefixtures("patient_cleanup")
async def test_a_server_that_stands_still_in_an_upload_is_given_up(target: Target, tmp_path: Path) -> None:
    faults = {"applies": of_file("PUT", "stalled"), "stall_request_at": MIB}
    async with through_faults(target, timeout_s=SILENCE_S, **faults) as (storage, proxy):
        with pytest.raises(StorageError, match="silent"):
            await stored(storage, tmp_path, target.place + "stalled", bytes(LARGE_BYTES))
    assert proxy.standing_still.is_set()
    assert target.names("stalled") == []


@pytest.mark.usefixtures("patient_cleanup")
@pytest.mark.parametrize("times", [1, 2])
async def test_a_cancelled_upload_leaves_nothing(target: Target, tmp_path: Path, times: int) -> None:
    """There is no object, temporary file or multipart upload, also if the waiting task is cancelled twice."""

    def late_part(seen: Seen) -> bool:
        return seen.method == "PUT" and (".watchdog" in seen.path or "partNumber=2" in seen.path)

    output = output_of(tmp_path, bytes(LARGE_BYTES))
    async with through_faults(target, timeout_s=60.0, applies=late_part, stall_request_at=MIB) as (storage, proxy):
        storing = asyncio.create_task(storage.store(output, target.place + "cancelled-up", moved=Moving()))
        await asyncio.wait_for(proxy.standing_still.wait(), RunningServer.patience_s)
        for _ in range(times):
            storing.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await storing
        if isinstance(target.server, S3Server):
            assert any(re.search("uploadId", seen.path) for seen in proxy.requests if seen.method == "DELETE")
    assert target.names("cancelled-up") == []
