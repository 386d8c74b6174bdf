"""Use S3, MinIO, Ceph and others with the same protocol: signed requests (AWS Signature Version 4).

A large file is uploaded in parts. Nobody sees them before the upload is completed. If an upload fails or is cancelled,
it is aborted, because its parts would stay, and cost money, for ever. This is not possible if the server never answered
the start of the upload, because then the id of the upload is not known.

The client is our own. No other client that was tried does all of this: abort an upload that is cancelled during its
completion, notice that a server stalls during an upload, and ignore the ``AWS_*`` variables, which belong to the
function.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import hmac
import os
import re
import time
from collections.abc import Mapping
from html import escape, unescape
from urllib.parse import quote, unquote

import msgspec
from yarl import URL

from ..errors import ObjectMissing, StorageError
from ..settings.storage_providers import Provider
from ..workspace.outputs import Output, open_output
from .base import Moved, finished
from .http_client import HttpClient
from .http_request import Answered

_MIB = 1 << 20
# A file up to this size is sent in one request, and a larger file in parts of at least this size. S3 refuses parts
# below 5 MiB.
_PART_BYTES = 8 * _MIB
_MOST_PARTS = 10_000
_OK = frozenset({200})
_ABORTED = frozenset({200, 204})
_DEFAULT_REGION = "us-east-1"
_PAYLOAD = "x-amz-content-sha256"
_UNSIGNED = "UNSIGNED-PAYLOAD"
_EMPTY = hashlib.sha256(b"").hexdigest()
_HASH_BYTES = 1 * _MIB
_OF_VERSION = "versionId="


class S3:
    """A :class:`Storage` on one S3 server."""

    def __init__(self, provider: Provider, *, timeout_s: float, ca_file: str | None) -> None:
        self._is_amazon = not provider.endpoint
        region = provider.region or _DEFAULT_REGION
        if self._is_amazon:
            domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
            provider = msgspec.structs.replace(provider, endpoint=f"https://s3.{region}.{domain}")
        # TLS protects bodies. Without TLS the signature covers their hash.
        self._signs_bodies = not provider.endpoint.startswith("https://")
        self._client = HttpClient(provider, _Signature(provider, region), timeout_s=timeout_s, ca_file=ca_file)

    async def fetch(self, location: str, fd: int, *, version: str = "", most_bytes: int, moved: Moved) -> int:
        _require_key(location)
        query = _OF_VERSION + quote(version, safe="") if version else ""
        return await self._client.download(location, fd, most_bytes=most_bytes, moved=moved, query=query)

    async def store(self, output: Output, location: str, *, moved: Moved) -> None:
        _require_key(location)
        fd = open_output(output)
        try:
            if output.size_bytes <= _PART_BYTES:
                headers = await self._payload(fd, 0, output.size_bytes)
                await self._client.upload(location, output, fd, headers=headers, moved=moved)
            else:
                await self._store_in_parts(output, fd, location, moved)
        finally:
            os.close(fd)

    async def close(self) -> None:
        await self._client.close()

    async def _store_in_parts(self, output: Output, fd: int, location: str, moved: Moved) -> None:
        began_s = time.monotonic()
        begun = asyncio.ensure_future(self._client.ask("POST", location, query="uploads=", accepted=_OK))
        try:
            answer = await asyncio.shield(begun)
        except asyncio.CancelledError:
            # Only the server's answer shows whether there is an upload to abort.
            await finished(self._abort_once_begun(begun, location))
            raise
        upload = _text_of(answer.body, "UploadId")
        if not upload:
            raise StorageError(f"the server accepted the upload of {location}, but sent no UploadId")
        query = f"uploadId={quote(upload, safe='')}"
        try:
            tags = await self._send_parts(output, fd, location, query, moved)
            await self._complete(output, location, query, tags, began_s)
        except BaseException:
            await self._client.remove(location, query)
            raise

    async def _abort_once_begun(self, begun: asyncio.Future[Answered], location: str) -> None:
        if upload := _text_of((await begun).body, "UploadId"):
            query = f"uploadId={quote(upload, safe='')}"
            # Not `remove`, which has its own time limit: a cancellation would not end it.
            await self._client.ask("DELETE", location, query=query, accepted=_ABORTED)

    async def _send_parts(self, output: Output, fd: int, location: str, query: str, moved: Moved) -> list[str]:
        part_bytes = max(_PART_BYTES, -(-output.size_bytes // _MOST_PARTS))
        tags = []
        for number, offset in enumerate(range(0, output.size_bytes, part_bytes), 1):
            size_bytes = min(part_bytes, output.size_bytes - offset)
            answer = await self._client.upload(
                location,
                output,
                fd,
                query=f"partNumber={number}&{query}",
                headers=await self._payload(fd, offset, size_bytes),
                offset=offset,
                size_bytes=size_bytes,
                moved=moved,
            )
            tags.append(answer.headers.get("ETag", ""))
        return tags

    async def _complete(self, output: Output, location: str, query: str, tags: list[str], began_s: float) -> None:
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(tag)}</ETag></Part>"
            for number, tag in enumerate(tags, 1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        headers = {_PAYLOAD: hashlib.sha256(body).hexdigest(), "Content-Type": "application/xml"}
        await self._client.publish(
            "POST", location, location, output, began_s, query=query, headers=headers, body=body, accepted=_OK
        )

    async def _payload(self, fd: int, offset: int, size_bytes: int) -> dict[str, str]:
        if not self._signs_bodies:
            return {_PAYLOAD: _UNSIGNED}

        def digest() -> str:
            taken = hashlib.sha256()
            at, end = offset, offset + size_bytes
            while at < end and (piece := os.pread(fd, min(_HASH_BYTES, end - at), at)):
                taken.update(piece)
                at += len(piece)
            return taken.hexdigest()

        return {_PAYLOAD: digest() if size_bytes <= _HASH_BYTES else await asyncio.to_thread(digest)}


def _require_key(location: str) -> None:
    bucket, _, key = location.partition("/")
    if not bucket or not key:
        raise StorageError(f"{location!r} is not the name of an object: give a bucket, a slash and a key")


class _Signature:
    """The dialect of S3. Source: "Signature Version 4 signing process" in Amazon's S3 API reference."""

    def __init__(self, provider: Provider, region: str) -> None:
        self._provider = provider
        self._region = region

    def headers(self, method: str, url: URL, headers: Mapping[str, str]) -> Mapping[str, str]:
        now = datetime.datetime.now(datetime.UTC)
        time, date = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        payload = headers.get(_PAYLOAD, _EMPTY)
        host = url.host_port_subcomponent or ""
        signed = {"host": host, _PAYLOAD: payload, "x-amz-date": time}
        names = ";".join(signed)
        lines = "".join(f"{name}:{value}\n" for name, value in signed.items())
        # The queries of this module are already sorted and encoded as the canonical form requires.
        canonical = "\n".join([method, url.raw_path, url.raw_query_string, lines, names, payload])
        scope = f"{date}/{self._region}/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", time, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        key = f"AWS4{self._provider.secret}".encode()
        for part in (date, self._region, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        authorization = (
            f"AWS4-HMAC-SHA256 Credential={self._provider.user}/{scope},SignedHeaders={names},Signature={signature}"
        )
        return {"Host": host, _PAYLOAD: payload, "x-amz-date": time, "Authorization": authorization}

    def error(self, status: int, headers: Mapping[str, str], body: bytes, what: str, query: str) -> StorageError | None:
        """Return the error that a document of S3 describes.

        The status of the answer may be 200, because S3 may begin an answer before it has finished the work.
        """
        code, message = _text_of(body, "Code"), _text_of(body, "Message")
        region = headers.get("x-amz-bucket-region", "") or _text_of(body, "Region")
        if region and status in (301, 400) and region != self._region:
            return StorageError(
                f"{self._provider} refuses the {what} ({status}), because the bucket is in the region {region[:40]!r}: "
                "set region of the storage provider"
            )
        if status < 400 and not (b"<Error>" in body and code):
            return None
        reason = ", ".join(filter(None, [str(status), code]))
        is_of_version = query.startswith(_OF_VERSION)
        if is_of_version:
            what = f"{what}, version {unquote(query.removeprefix(_OF_VERSION))[:100]!r},"
            code = _AS_MISSING_VERSION.get((status, code), code)
        if code in _MISSING or (status == 404 and not code):
            return ObjectMissing(
                f"{self._provider} answers the {what} with {reason}: {_MISSING.get(code, _ANY_MISSING)}"
            )
        if status in (401, 403):
            hint = "; reading a version of an object needs the permission s3:GetObjectVersion" if is_of_version else ""
            return StorageError(
                f"{self._provider} refuses the {what} ({reason}): check the access key, the secret key, their "
                f"permissions, and this machine's clock{hint}"
            )
        more = f": {message[:200]}" if message else ""
        return StorageError(f"{self._provider} answers the {what} with {reason}{more}")


_MISSING = {
    "NoSuchBucket": "there is no such bucket",
    "NoSuchKey": "there is no such object",
    "NoSuchVersion": "this version of the object does not exist any more",
    "DeleteMarker": "this version is a delete marker: the object was removed",
    "NoSuchUpload": "the multipart upload does not exist any more",
}
# Amazon's answers to the id of a delete marker, and to an impossible id.
_AS_MISSING_VERSION = {(405, "MethodNotAllowed"): "DeleteMarker", (400, "InvalidArgument"): "NoSuchVersion"}
_ANY_MISSING = "there is no such object, or no such bucket"


def _text_of(document: bytes, element: str) -> str:
    """Return the text of the first element with this name, with unprintable characters escaped; "" if there is none."""
    found = re.search(f"<{element}>([^<]*)</{element}>".encode(), document)
    text = unescape(found[1].decode("utf-8", "replace")).strip() if found else ""
    return text if text.isprintable() else ascii(text)
