"""Tests with Ceph: its strict S3, and the bucket events that it pushes to a running server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from running_server import RunningServer, StartServer, until

from storage.ceph import ceph, missing_program
from storage.conftest import Define
from storage.fault_proxy import fault_proxy
from storage.files import MIB, Moving, fetched, output_of, stored
from storage.servers import REGION, S3Server
from watchdog.errors import ObjectMissing, StorageError
from watchdog.storage.s3 import S3

pytestmark = [pytest.mark.ceph, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def bucket_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Use Ceph in place of rclone, so that `define` names it."""
    if reason := missing_program():
        pytest.skip(reason)
    with ceph(tmp_path_factory.mktemp("ceph")) as server:
        yield server


def content(server: S3Server, key: str) -> bytes:
    body: bytes = server.client().get_object(Bucket="bucket", Key=key)["Body"].read()
    return body


@pytest.mark.parametrize("size_bytes", [0, 1, 8 * MIB, 8 * MIB + 1, 40 * MIB])
async def test_a_stored_object_can_be_fetched(bucket_server: S3Server, tmp_path: Path, size_bytes: int) -> None:
    s3 = S3(bucket_server.provider(), timeout_s=30.0, ca_file=None)
    data = os.urandom(size_bytes)
    assert await stored(s3, tmp_path, f"bucket/{size_bytes}", data) == size_bytes
    assert content(bucket_server, str(size_bytes)) == data
    assert await fetched(s3, tmp_path, f"bucket/{size_bytes}") == data
    await s3.close()


@pytest.mark.parametrize(
    "key", ["a b", "a+b", "a%20b", "100%", "é/ü", "日本", "a#b?c&d=e", "q\"uo'te", "a//b", "a/../b", "t~i*", "folder/"]
)
async def test_odd_keys(bucket_server: S3Server, tmp_path: Path, key: str) -> None:
    s3 = S3(bucket_server.provider(), timeout_s=30.0, ca_file=None)
    await stored(s3, tmp_path, f"bucket/{key}", key.encode())
    assert content(bucket_server, key) == key.encode()
    assert await fetched(s3, tmp_path, f"bucket/{key}") == key.encode()
    await s3.close()


async def test_what_is_missing_or_refused(bucket_server: S3Server, tmp_path: Path) -> None:
    s3 = S3(bucket_server.provider(), timeout_s=10.0, ca_file=None)
    for location, reason in (("bucket/missing", "NoSuchKey"), ("nobucket/missing", "NoSuchBucket")):
        with pytest.raises(ObjectMissing, match=reason):
            await fetched(s3, tmp_path, location)
    with pytest.raises(ObjectMissing, match="NoSuchBucket"):
        await stored(s3, tmp_path, "nobucket/x", b"x")
    await s3.close()
    for wrong, reason in (({"secret": "wrong"}, "SignatureDoesNotMatch"), ({"user": "WRONG"}, "InvalidAccessKeyId")):
        s3 = S3(bucket_server.provider(**wrong), timeout_s=10.0, ca_file=None)
        with pytest.raises(StorageError, match=rf"refuses the GET of bucket/x \(403, {reason}\)"):
            await fetched(s3, tmp_path, "bucket/x")
        await s3.close()


async def test_a_download_that_is_cut_is_resumed(bucket_server: S3Server, tmp_path: Path) -> None:
    data = os.urandom(12 * MIB)
    bucket_server.put("bucket/cut", data)
    async with fault_proxy(bucket_server.endpoint, times=2, cut_response_at=3 * MIB) as proxy:
        s3 = S3(bucket_server.provider(endpoint=proxy.endpoint), timeout_s=10.0, ca_file=None)
        assert await fetched(s3, tmp_path, "bucket/cut") == data
        await s3.close()
    assert [seen.headers.get("range") for seen in proxy.requests][1:] != [None, None], "it did not begin anew"


async def test_versions(bucket_server: S3Server, tmp_path: Path) -> None:
    contents = (b"first", b"second")
    ids = bucket_server.put_versions("versions/a b+c", *contents)
    marker = bucket_server.client().delete_object(Bucket="versions", Key="a b+c")["VersionId"]
    s3 = S3(bucket_server.provider(), timeout_s=10.0, ca_file=None)
    for version, data in zip(ids, contents, strict=True):
        assert await fetched(s3, tmp_path, "versions/a b+c", version=version) == data
    for version in (marker, "no-such-version"):
        with pytest.raises(ObjectMissing):
            await fetched(s3, tmp_path, "versions/a b+c", version=version)
    await s3.close()


async def test_a_cancelled_upload_leaves_nothing(bucket_server: S3Server, tmp_path: Path) -> None:
    async with fault_proxy(
        bucket_server.endpoint, applies=lambda seen: "partNumber=2" in seen.path, stall_request_at=MIB
    ) as proxy:
        s3 = S3(bucket_server.provider(endpoint=proxy.endpoint), timeout_s=60.0, ca_file=None)
        output = output_of(tmp_path, bytes(20 * MIB))
        storing = asyncio.create_task(s3.store(output, "bucket/cancelled", moved=Moving()))
        await asyncio.wait_for(proxy.standing_still.wait(), 30)
        storing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await storing
        await s3.close()
    client = bucket_server.client()
    assert "Uploads" not in client.list_multipart_uploads(Bucket="bucket")
    assert "Contents" not in client.list_objects_v2(Bucket="bucket", Prefix="cancelled")


# Events


def push_events(
    server: S3Server,
    prefix: str,
    watchdog: RunningServer,
    names: Sequence[str] = ("s3:ObjectCreated:*",),
    bucket: str = "bucket",
) -> None:
    """Let Ceph report each new object below a prefix to the server, or other events."""
    sns = boto3.client(
        "sns",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name=REGION,
        config=Config(signature_version="s3", proxies={}),
    )
    endpoint = f"http://127.0.0.1:{watchdog.port}/"
    topic = sns.create_topic(Name="made", Attributes={"push-endpoint": endpoint})["TopicArn"]
    rules = {"Key": {"FilterRules": [{"Name": "prefix", "Value": prefix}]}}
    notification = {"Id": "made", "TopicArn": topic, "Events": list(names), "Filter": rules}
    server.client().put_bucket_notification_configuration(
        Bucket=bucket, NotificationConfiguration={"TopicConfigurations": [notification]}
    )


@pytest.mark.parametrize("kind", ["minio", "s3"])
def test_a_pushed_event_is_fetched_run_and_stored(
    bucket_server: S3Server, define: Define, start_server: StartServer, place: str, kind: str
) -> None:
    definition = define(
        storage_providers={kind: {"default": bucket_server.definition()}},
        input=[{"storage_provider": kind, "path": f"{place}/in"}],
        output=[{"storage_provider": kind, "path": f"{place}/out"}],
    )
    script = 'tr a-z A-Z < "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/$(basename "$STORAGE_OBJECT_KEY")"'
    server = start_server(script, WATCHDOG_SERVICE_DEFINITION=definition)
    folder = place.partition("/")[2]
    push_events(bucket_server, f"{folder}/in/", server)
    names = ["plain.txt", "a b+c%20é.txt"]
    for name in names:
        bucket_server.put(f"{place}/in/{name}", f"in {name}".encode())
    for _ in names:
        assert server.event("invocation ended")["outcome"] == "ok"
    for name in names:
        until(lambda: content(bucket_server, f"{folder}/out/{name}"), "the output")  # noqa: B023
        expected = f"in {name}".translate({code: code - 32 for code in range(ord("a"), ord("z") + 1)})
        assert content(bucket_server, f"{folder}/out/{name}").decode() == expected


def test_a_pushed_event_of_an_object_that_no_input_covers_does_not_run_the_script(
    bucket_server: S3Server, define: Define, start_server: StartServer, place: str
) -> None:
    definition = define(input=[{"storage_provider": "minio.default", "path": f"{place}/other"}])
    server = start_server("echo ran", WATCHDOG_SERVICE_DEFINITION=definition)
    folder = place.partition("/")[2]
    push_events(bucket_server, f"{folder}/in/", server)
    bucket_server.put(f"{place}/in/x", b"object")
    ended = server.event("invocation ended")
    assert (ended["outcome"], f"{place}/in/x: no input" in ended["reason"]) == ("skipped", True)


def test_a_pushed_event_names_the_version_that_is_fetched(
    bucket_server: S3Server, define: Define, start_server: StartServer
) -> None:
    definition = define(input=[{"storage_provider": "minio.default", "path": "pushed/in"}], output=None)
    server = start_server('cat "$INPUT_FILE_PATH"', WATCHDOG_SERVICE_DEFINITION=definition)
    bucket_server.put_versions("pushed/elsewhere", b"")
    push_events(bucket_server, "in/", server, bucket="pushed")
    for version in bucket_server.put_versions("pushed/in/x", b"first", b"second"):
        assert server.event("input fetched")["source"] == f"minio.default:pushed/in/x (version {version})"
        assert server.event("invocation ended")["outcome"] == "ok"


def test_a_pushed_event_of_a_removal_does_not_run_the_script(
    bucket_server: S3Server, define: Define, start_server: StartServer, place: str
) -> None:
    server = start_server("echo ran", WATCHDOG_SERVICE_DEFINITION=define(output=None))
    folder = place.partition("/")[2]
    push_events(bucket_server, f"{folder}/in/", server, ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"])
    bucket_server.put(f"{place}/in/x", b"object")
    assert server.event("invocation ended")["outcome"] == "ok"
    bucket_server.client().delete_object(Bucket="bucket", Key=f"{folder}/in/x")
    ended = server.event("invocation ended")
    assert ended["outcome"] == "skipped"
    assert f"{place}/in/x: ObjectRemoved:Delete is not the creation of an object" in ended["reason"]
