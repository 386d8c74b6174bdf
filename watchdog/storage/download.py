"""Download an object to a file, and resume the download after a lost connection."""

from __future__ import annotations

import asyncio
import os

import aiohttp

from ..errors import InputTooLarge, StorageError
from ..system.nameless_file import write_all
from ..system.pattern import pattern
from ..system.threads import to_its_end
from .base import Moved
from .http_request import Requests
from .retry import Progress, Transient

_PIECE_BYTES = 1 << 20
_CONTENT_RANGE = pattern(r"bytes (\d+)-\d+/(\d+|\*)")


class Download:
    """The download of one object to a file, in one or more attempts."""

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
            self._start_again()
        url = self._requests.url(self._path, self._query)
        async with self._requests.send("GET", url, self._path, progress, headers=headers) as response:
            if response.status == 416:
                self._start_again()
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
                StorageError(
                    f"{self._requests.provider} sent {self._done_bytes} of the {size_bytes} announced bytes of "
                    f"{self._path}"
                )
            )
        return self._done_bytes

    def _size(self, response: aiohttp.ClientResponse, asked_for_rest: bool) -> int | None:
        """Return the size of the whole object; None if the server does not report it.

        If the answer is the whole object, empty the file first. Raise ``Transient`` if the answer is neither the whole
        object nor the missing part.
        """
        content_range = response.headers.get("Content-Range", "")
        if response.status == 206:
            part = _CONTENT_RANGE.fullmatch(content_range)
            # Many servers ignore If-Range (Ceph), so the rest may belong to another version of the object.
            is_same = response.headers.get("ETag") == self._validator
            if is_same and part is not None and int(part[1]) == self._done_bytes:
                size_bytes = self._whole_bytes if part[2] == "*" else int(part[2])
                if self._whole_bytes in (None, size_bytes):
                    return size_bytes
        elif not asked_for_rest or (not content_range and response.content_length == self._whole_bytes):
            self._start_again()
            etag = response.headers.get("ETag", "")
            # An equal weak ETag does not prove that the bytes are equal (RFC 9110, 8.8.1).
            self._validator = "" if etag.startswith("W/") else etag
            self._whole_bytes = response.content_length
            return self._whole_bytes
        # Some servers send the rest with status 200, as if it were the whole object (rclone's S3).
        self._has_ranges = False
        raise Transient(StorageError(f"{self._requests.provider} did not send the requested part of {self._path}"))

    def _start_again(self) -> None:
        if self._done_bytes:
            self._moved(-self._done_bytes)
            self._done_bytes = 0
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)

    def _too_large(self) -> InputTooLarge:
        return InputTooLarge(f"the object {self._path} is over {self._most_bytes} bytes (max_input_size)")
