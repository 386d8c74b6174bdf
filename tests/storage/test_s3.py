"""The S3 backend against real servers."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from storage.answering import listening
from storage.certificates import Certificates, make_certificates
from storage.files import MIB, Moving, changing, fetched, output_of, stored
from storage.servers import S3Server, moto_s3, rclone_s3
from watchdog.errors import InputTooLarge, ObjectMissing, OutputUnreadable, StorageError
from watchdog.storage.s3 import S3


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone_s3(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="module")
def rclone_tls(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[S3Server]:
    with rclone_s3(tmp_path_factory.mktemp("rclone-tls"), certificates) as server:
        yield server


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with moto_s3() as server:
        yield server


@pytest.fixture(params=["rclone", "rclone_tls", "moto"])
def server(request: pytest.FixtureRequest) -> S3Server:
    server: S3Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture(autouse=True)
async def closed() -> AsyncIterator[None]:
    """Close all backends that a test has opened, at its end."""
    yield
    while _OPENED:
        await _OPENED.pop().close()


_OPENED: list[S3] = []


def opened(s3: S3) -> S3:
    _OPENED.append(s3)
    return s3


def storage(server: S3Server, timeout_s: float = 10.0, **fields: str) -> S3:
    ca_file = str(server.certificates.authority) if server.certificates else None
    return opened(S3(server.provider(**fields), timeout_s=timeout_s, ca_file=ca_file))


@pytest.mark.parametrize("size_bytes", [0, 1, 5 * MIB, 8 * MIB, 8 * MIB + 1, 23 * MIB + 7])
async def test_a_stored_object_can_be_fetched(server: S3Server, tmp_path: Path, size_bytes: int) -> None:
    data = os.urandom(size_bytes)
    s3 = storage(server)
    assert await stored(s3, tmp_path, f"bucket/there/{size_bytes}", data) == size_bytes
    assert server.client().get_object(Bucket="bucket", Key=f"there/{size_bytes}")["Body"].read() == data
    assert await fetched(s3, tmp_path, f"bucket/there/{size_bytes}") == data


ODD_KEYS = ["a b.txt", "a+b", "a%20b", "100%", "é/ü.txt", "日本", "a#b?c&d=e", "q\"uo'te", ".hidden", "a[1]{2}"]
ODD_KEYS += ["t~i*", "a\\b", "x" * 200]


@pytest.mark.parametrize("key", ODD_KEYS)
async def test_odd_keys(server: S3Server, tmp_path: Path, key: str) -> None:
    s3 = storage(server)
    await stored(s3, tmp_path, f"bucket/odd/{key}", key.encode())
    assert server.client().get_object(Bucket="bucket", Key=f"odd/{key}")["Body"].read() == key.encode()
    assert await fetched(s3, tmp_path, f"bucket/odd/{key}") == key.encode()


@pytest.mark.parametrize("key", ["a//b", "a/../b", "./a", "folder/"])
async def test_keys_that_are_not_paths(moto: S3Server, tmp_path: Path, key: str) -> None:
    """Amazon accepts all of them, and no key is confused with another one."""
    s3 = storage(moto)
    await stored(s3, tmp_path, f"bucket/{key}", key.encode())
    assert moto.client().get_object(Bucket="bucket", Key=key)["Body"].read() == key.encode()
    assert await fetched(s3, tmp_path, f"bucket/{key}") == key.encode()


@pytest.mark.parametrize("location", ["bucket/", "bucket", "/key"])
async def test_what_names_no_object(moto: S3Server, tmp_path: Path, location: str) -> None:
    with pytest.raises(StorageError, match="is not the name of an object"):
        await fetched(storage(moto), tmp_path, location)
    with pytest.raises(StorageError, match="is not the name of an object"):
        await stored(storage(moto), tmp_path, location, b"x")


async def test_what_is_there_is_overwritten(server: S3Server, tmp_path: Path) -> None:
    s3 = storage(server)
    for data in (b"first, longer", b"second"):
        await stored(s3, tmp_path, "bucket/twice", data)
    assert server.client().get_object(Bucket="bucket", Key="twice")["Body"].read() == b"second"


@pytest.mark.parametrize("location", ["bucket/missing", "nobucket/missing"])
async def test_what_is_missing(server: S3Server, tmp_path: Path, location: str) -> None:
    s3 = storage(server)
    with pytest.raises(
        ObjectMissing, match=rf"minio.default at http\S+ answers the GET of {location} with 404.*: there is no such"
    ) as caught:
        await fetched(s3, tmp_path, location)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size_bytes", [1, 9 * MIB])
async def test_a_missing_bucket_to_store_in(server: S3Server, tmp_path: Path, size_bytes: int) -> None:
    with pytest.raises(ObjectMissing, match="NoSuchBucket: there is no such bucket"):
        await storage(server).store(output_of(tmp_path, bytes(size_bytes)), "nobucket/x", moved=Moving())


@pytest.mark.parametrize("wrong", [{"secret": "wrong-secret-0"}, {"user": "WRONGACCESSKEY00"}])
async def test_wrong_credentials(server: S3Server, tmp_path: Path, wrong: dict[str, str]) -> None:
    s3 = storage(server, 10.0, **wrong)
    with pytest.raises(
        StorageError, match=r"refuses the GET of bucket/x \(403, \w+\): check the access key"
    ) as fetching:
        await fetched(s3, tmp_path, "bucket/x")
    with pytest.raises(StorageError, match=r"refuses the \w+ of bucket/x") as storing:
        await stored(s3, tmp_path, "bucket/x", bytes(9 * MIB))
    for caught in (fetching, storing):
        text = str(caught.value)
        assert not any(secret in text for secret in (server.secret_key, server.access_key, *wrong.values()))
        assert "\n" not in text


async def test_an_untrusted_certificate(rclone_tls: S3Server, tmp_path: Path) -> None:
    s3 = opened(S3(rclone_tls.provider(), timeout_s=2.0, ca_file=None))
    with pytest.raises(
        StorageError, match=r"certificate that is not trusted \(.+\): give the certificate of its authority as ca_file"
    ):
        await fetched(s3, tmp_path, "bucket/x")


async def test_verify_false(rclone_tls: S3Server, tmp_path: Path) -> None:
    s3 = opened(S3(rclone_tls.provider(verify=False), timeout_s=10.0, ca_file=None))
    await stored(s3, tmp_path, "bucket/unverified", b"hi")
    await fetched(s3, tmp_path, "bucket/unverified")


async def test_nobody_there(rclone: S3Server, tmp_path: Path) -> None:
    s3 = opened(S3(rclone.provider(endpoint="http://127.0.0.1:9"), timeout_s=1.0, ca_file=None))
    with pytest.raises(StorageError, match="cannot be reached for the GET of bucket/x: Connection refused"):
        await fetched(s3, tmp_path, "bucket/x")


MOVED = "<Error><Code>PermanentRedirect</Code><Message>Use the specified endpoint.</Message></Error>"
MALFORMED = "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-3</Region></Error>"


@pytest.mark.parametrize(
    ("status", "headers", "body"), [(301, {"x-amz-bucket-region": "eu-west-3"}, MOVED), (400, {}, MALFORMED)]
)
async def test_a_bucket_in_another_region(tmp_path: Path, status: int, headers: dict[str, str], body: str) -> None:
    """Amazon answers like this, and 301 has no URL."""

    async def answer(request: web.BaseRequest) -> web.Response:
        await request.content.read()
        return web.Response(status=status, headers=headers, text=body)

    async with listening(answer) as endpoint:
        s3 = storage(S3Server(endpoint, "key", "secret"))
        for attempt in (fetched(s3, tmp_path, "bucket/x"), stored(s3, tmp_path, "bucket/x", b"data")):
            with pytest.raises(
                StorageError, match="because the bucket is in the region 'eu-west-3': set region of the storage"
            ):
                await attempt


async def test_an_object_over_the_limit(rclone: S3Server, tmp_path: Path) -> None:
    s3 = storage(rclone)
    await stored(s3, tmp_path, "bucket/large", bytes(1000))
    with pytest.raises(InputTooLarge, match="over 999 bytes"):
        await fetched(s3, tmp_path, "bucket/large", 999)
    assert await fetched(s3, tmp_path, "bucket/large", 1000) == bytes(1000)


@pytest.mark.parametrize("change", ["grown", "shortened", "touched"])
@pytest.mark.parametrize("size_bytes", [1000, 20 * MIB])
async def test_a_file_that_changes_while_it_is_sent_is_not_stored(
    moto: S3Server, tmp_path: Path, change: str, size_bytes: int
) -> None:
    """With one request, the complete earlier file may be stored, but never a part of it."""
    output = output_of(tmp_path, bytes(size_bytes))
    with pytest.raises(OutputUnreadable, match="changed"):
        await storage(moto).store(output, f"bucket/changed-{size_bytes}-{change}", moved=changing(output, change))
    client = moto.client()
    if size_bytes > 8 * MIB:
        assert "Contents" not in client.list_objects_v2(Bucket="bucket", Prefix=f"changed-{size_bytes}-")
    assert "Uploads" not in client.list_multipart_uploads(Bucket="bucket")
