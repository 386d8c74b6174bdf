"""Versions of an object: the transfer fetches the version that the event reports, not the latest one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from running_server import RunningServer, StartServer, problem

from storage.conftest import Define
from storage.events import event
from storage.fault_proxy import fault_proxy
from storage.files import MIB, fetched
from storage.servers import S3Server, moto_s3
from watchdog.errors import ObjectMissing, StorageError
from watchdog.settings.storage_providers import Provider
from watchdog.storage.s3 import S3

KEY = "versions/in/a b+c"
PRINT = 'cat "$INPUT_FILE_PATH"'


@pytest.fixture(scope="module")
def bucket_server() -> Iterator[S3Server]:
    """Use moto in place of rclone, because moto keeps versions and checks signatures."""
    with moto_s3() as server:
        yield server


def started(start_server: StartServer, define: Define, **options: Any) -> RunningServer:
    definition = define(input=[{"storage_provider": "minio.default", "path": "versions/in"}], output=None, **options)
    return start_server(PRINT, WATCHDOG_SERVICE_DEFINITION=definition, WATCHDOG_STORAGE_TIMEOUT="10")


@contextlib.asynccontextmanager
async def opened(provider: Provider) -> AsyncIterator[S3]:
    s3 = S3(provider, timeout_s=10.0, ca_file=None)
    try:
        yield s3
    finally:
        await s3.close()


@pytest.mark.guard("version-of-event")
def test_each_of_two_events_is_of_its_own_version(
    start_server: StartServer, define: Define, bucket_server: S3Server
) -> None:
    first, second = bucket_server.put_versions(KEY, b"first", b"second")
    server = started(start_server, define)
    for version, data in ((first, b"first"), (second, b"second")):
        assert server.call(event(KEY, versionId=version)).body == data
        assert server.event("input fetched")["source"] == f"minio.default:{KEY} (version {version})"
    assert server.call(event(KEY, versionId="")).body == b"second", "the latest"


def test_an_old_minio_that_sends_version_1_without_versions_gets_the_object(
    start_server: StartServer, define: Define, bucket_server: S3Server
) -> None:
    client = bucket_server.client()
    client.create_bucket(Bucket="keeps-no-versions")
    client.put_object(Bucket="keeps-no-versions", Key="in/x", Body=b"data")
    definition = define(input=[{"storage_provider": "minio.default", "path": "keeps-no-versions/in"}], output=None)
    server = start_server(PRINT, WATCHDOG_SERVICE_DEFINITION=definition, WATCHDOG_STORAGE_TIMEOUT="10")
    assert server.call(event("keeps-no-versions/in/x", versionId="1")).body == b"data"
    # With another source, the version in the event counts.
    problem(server.call(event("keeps-no-versions/in/x", source="aws:s3", versionId="1")), 422)


def test_a_long_version_is_cut_in_the_error(start_server: StartServer, define: Define) -> None:
    detail = str(problem(started(start_server, define).call(event(KEY, versionId="v" * 4000)), 422)["detail"])
    assert len(detail) < 1000


def test_both_records_of_one_event(start_server: StartServer, define: Define, bucket_server: S3Server) -> None:
    first, second = bucket_server.put_versions(KEY, b"first ", b"second ")
    server = started(start_server, define)
    both = event(KEY, versionId=first).decode(), event(KEY, versionId=second).decode()
    records = ", ".join(text.partition('"Records": [')[2].removesuffix("]}") for text in both)
    assert server.call(f'{{"Records": [{records}]}}'.encode()).body == b"first second "


def test_null_is_the_id_of_a_version(start_server: StartServer, define: Define, bucket_server: S3Server) -> None:
    """This is the id of an object that was stored before its bucket kept versions."""
    client = bucket_server.client()
    client.create_bucket(Bucket="was-plain")
    client.put_object(Bucket="was-plain", Key="in/x", Body=b"before")
    bucket_server.put_versions("was-plain/in/x", b"after")
    definition = define(input=[{"storage_provider": "minio.default", "path": "was-plain/in"}], output=None)
    server = start_server(PRINT, WATCHDOG_SERVICE_DEFINITION=definition)
    assert server.call(event("was-plain/in/x", versionId="null")).body == b"before"


def test_a_version_that_is_gone_is_422(start_server: StartServer, define: Define, bucket_server: S3Server) -> None:
    gone, _ = bucket_server.put_versions(KEY, b"gone", b"kept")
    client = bucket_server.client()
    client.delete_object(Bucket="versions", Key=KEY.partition("/")[2], VersionId=gone)
    marker = client.delete_object(Bucket="versions", Key=KEY.partition("/")[2])["VersionId"]
    server = started(start_server, define)
    for version in (gone, marker):
        document = problem(server.call(event(KEY, versionId=version)), 422)
        assert f"{version!r}, with 404, NoSuchVersion: this version of the object does not exist" in str(
            document["detail"]
        )
        assert server.event("invocation ended")["outcome"] == "no_object"


async def test_a_download_of_a_version_that_is_cut_is_resumed(bucket_server: S3Server, tmp_path: Path) -> None:
    data = os.urandom(3 * MIB)
    first, _ = bucket_server.put_versions(KEY, data, os.urandom(3 * MIB))
    async with (
        fault_proxy(bucket_server.endpoint, times=2, cut_response_at=MIB) as proxy,
        opened(bucket_server.provider(endpoint=proxy.endpoint)) as s3,
    ):
        assert await fetched(s3, tmp_path, KEY, version=first) == data
    assert [f"versionId={first}" in seen.path for seen in proxy.requests] == [True] * len(proxy.requests)
    assert len(proxy.requests) > 1


@pytest.mark.parametrize("version", ["a/b+c d&e=f?g#h%2F", "é", "x" * 1024])
async def test_the_id_of_a_version_may_have_any_characters(
    bucket_server: S3Server, tmp_path: Path, version: str
) -> None:
    """With a wrong signature the answer would be 403."""
    bucket_server.put_versions(KEY, b"x")
    async with opened(bucket_server.provider()) as s3:
        with pytest.raises(ObjectMissing, match="NoSuchVersion"):
            await fetched(s3, tmp_path, KEY, version=version)


@pytest.mark.parametrize(
    ("status", "code", "kind", "text"),
    [
        (405, "MethodNotAllowed", ObjectMissing, "this version is a delete marker: the object was removed"),
        (400, "InvalidArgument", ObjectMissing, "this version of the object does not exist any more"),
        (403, "AccessDenied", StorageError, "needs the permission s3:GetObjectVersion"),
    ],
)
async def test_what_amazon_answers_about_a_version(
    tmp_path: Path, status: int, code: str, kind: type[Exception], text: str
) -> None:
    """The answers are from Amazon's API reference, because moto answers differently."""

    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(status=status, text=f"<Error><Code>{code}</Code></Error>")

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        provider = Provider(
            kind="s3", id="x", endpoint="http://{}:{}".format(*runner.addresses[0]), user="a", secret="b"
        )
        async with opened(provider) as s3:
            with pytest.raises(kind, match=text) as caught:
                await fetched(s3, tmp_path, "bucket/key", version="7")
            assert type(caught.value) is kind
            assert "the GET of bucket/key, version '7', " in str(caught.value)
            assert f"{status}, {code}" in str(caught.value)
    finally:
        await runner.cleanup()
