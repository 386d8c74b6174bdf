"""Use Onedata, through the CDMI interface of a Oneprovider.

This module follows op-worker's public source. It was never run against a real Onedata. Requests that read or write
bytes do not have CDMI's version header, because with that header Onedata would answer JSON. Onedata reports POSIX
errors with status 400 and an id in a JSON body.

CDMI has no reliable way to rename a file, so a file is sent under its own name. A program that reads it during the
upload sees only a part. If an upload fails or is cancelled after its first byte, the file is removed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

import msgspec

from ..errors import ObjectMissing, StorageError
from ..settings.storage_providers import Provider
from ..workspace.outputs import Output, open_output
from .base import Moved
from .dialect import WithHeaders
from .http_client import HttpClient
from .known_directories import KnownDirectories

_CONTAINER = {"X-CDMI-Specification-Version": "1.1.1", "Content-Type": "application/cdmi-container"}
_MADE = frozenset({200, 201, 202, 204})


class Onedata:
    """A :class:`Storage` on one Oneprovider. The first part of a location is the space."""

    def __init__(self, provider: Provider, *, timeout_s: float, ca_file: str | None) -> None:
        self._client = HttpClient(provider, _Cdmi(provider), timeout_s=timeout_s, ca_file=ca_file)
        self._directories = KnownDirectories()

    async def fetch(self, location: str, fd: int, *, version: str = "", most_bytes: int, moved: Moved) -> int:
        return await self._client.download("cdmi/" + location, fd, most_bytes=most_bytes, moved=moved)

    async def store(self, output: Output, location: str, *, moved: Moved) -> None:
        fd = open_output(output)
        has_sent = False

        def sent(count: int) -> None:
            nonlocal has_sent
            has_sent = has_sent or count > 0
            moved(count)

        try:
            try:
                await self._upload(output, location, fd, sent)
            except ObjectMissing:
                # A directory may have been removed meanwhile.
                self._directories.clear()
                await self._upload(output, location, fd, sent)
        except BaseException:
            # If the server refused the file before its first byte, there may be an older file, which is still whole.
            if has_sent:
                await self._client.remove("cdmi/" + location)
            raise
        finally:
            os.close(fd)

    async def _upload(self, output: Output, location: str, fd: int, moved: Moved) -> None:
        await self._make_parents(location)
        await self._client.upload("cdmi/" + location, output, fd, moved=moved)

    async def close(self) -> None:
        await self._client.close()

    async def _make_parents(self, location: str) -> None:
        """Make the directories of a location below its space. The request for a directory that exists has no effect."""
        space, *folders = location.split("/")[:-1]
        directory = space
        for folder in folders:
            directory = f"{directory}/{folder}"
            if directory not in self._directories:
                await self._client.ask("PUT", f"cdmi/{directory}/", headers=_CONTAINER, accepted=_MADE)
                self._directories.add(directory)


class _Cdmi(WithHeaders):
    """The dialect of Onedata. A POSIX error is ``{"error": {"id": "posix", "details": {"errno": "enoent"}}}``."""

    def __init__(self, provider: Provider) -> None:
        super().__init__({"X-Auth-Token": provider.secret})
        self._provider = provider

    def error(self, status: int, headers: Mapping[str, str], body: bytes, what: str, query: str) -> StorageError | None:
        if status != 400:
            return None
        try:
            found = msgspec.json.decode(body, type=_Answer).error
        except msgspec.MsgspecError:
            return None
        name = found.details.errno or found.id
        number = getattr(errno, name.upper(), None)
        reason = f"{name[:100]!r}" + (f": {os.strerror(number)}" if isinstance(number, int) else "")
        kind = ObjectMissing if number == errno.ENOENT else StorageError
        return kind(f"{self._provider} answers the {what} with 400, {reason}")


class _Details(msgspec.Struct):
    errno: str = ""


class _Error(msgspec.Struct):
    id: str
    details: _Details = msgspec.field(default_factory=_Details)


class _Answer(msgspec.Struct):
    error: _Error
