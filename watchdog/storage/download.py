"""A download: written to a file, resumed where it was cut."""

from __future__ import annotations

import asyncio
import os
import re

import aiohttp

from ..errors import InputTooLarge, StorageError
from ..system.nameless_file import write_all
from ..system.threads import to_its_end
from .base import Moved
from .http_request import Requests
from .retry import Progress, Transient

_PIECE_BYTES = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Download:
    """One object on its way to a file."""

    def __init__(self, requests: Requests, path: str, query: str, fd: int, most_bytes: int, moved: Moved) -> None:
        self._requests = requests
        self._path = path
        self._query = query
        self._fd = fd
        self._most_bytes = most_bytes
        self._moved = moved
        self._done_bytes = 0
        self._validator = ""
        self._whole_bytes: int | None = None
        self._has_ranges = True

    async def attempt(self, progress: Progress) -> int:
        headers = {}
        asks_for_rest = bool(self._done_bytes and self._validator and self._has_ranges)
        if asks_for_rest:
            headers = {"Range": f"bytes={self._done_bytes}-", "If-Range": self._validator}
        else:
            self._begin_anew()
        url = self._requests.url(self._path, self._query)
        async with self._requests.send("GET", url, self._path, progress, headers=headers) as response:
            if response.status == 416:
                self._begin_anew()
                raise Transient(StorageError(f"the object {self._path} changed while it was fetched"))
            if response.status not in (200, 206):
                await self._requests.accepted(response, f"GET of {self._path}", frozenset())
            size_bytes = self._size(response, asks_for_rest)
            if self._most_bytes and (size_bytes or 0) > self._most_bytes:
                raise self._too_large()
            async for piece in response.content.iter_chunked(_PIECE_BYTES):
                if self._most_bytes and self._done_bytes + len(piece) > self._most_bytes:
                    raise self._too_large()
                await to_its_end(asyncio.get_running_loop().run_in_executor(None, write_all, self._fd, piece))
                self._done_bytes += len(piece)
                self._moved(len(piece))
                progress.reached(self._done_bytes, len(piece))
        if size_bytes is not None and self._done_bytes != size_bytes:
            raise Transient(
                StorageError(f"{self._path} came with {self._done_bytes} bytes of the {size_bytes} that were announced")
            )
        return self._done_bytes

    def _size(self, response: aiohttp.ClientResponse, asked_for_rest: bool) -> int | None:
        """The size of the whole object, if the server tells it; where it does not go on, all begins anew."""
        told = response.headers.get("Content-Range", "")
        if response.status == 206:
            part = _CONTENT_RANGE.fullmatch(told)
            # Many ignore If-Range (Ceph): the rest may be that of another object.
            is_same = response.headers.get("ETag") == self._validator
            if is_same and part is not None and int(part[1]) == self._done_bytes:
                return None if part[2] == "*" else int(part[2])
        elif not asked_for_rest or (not told and response.content_length == self._whole_bytes):
            self._begin_anew()
            etag = response.headers.get("ETag", "")
            # A weak one says that the object means the same, not that its bytes are the same (RFC 9110, 8.8.1).
            self._validator = "" if etag.startswith("W/") else etag
            self._whole_bytes = response.content_length
            return self._whole_bytes
        # Some send the rest as if it were the whole (rclone's S3, with 200).
        self._has_ranges = False
        raise Transient(StorageError(f"{self._requests.provider} sent another part of {self._path} than asked for"))

    def _begin_anew(self) -> None:
        if self._done_bytes:
            self._moved(-self._done_bytes)
            self._done_bytes = 0
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)

    def _too_large(self) -> InputTooLarge:
        return InputTooLarge(f"the object {self._path} is over {self._most_bytes} bytes (max_input_size)")
