"""Use WebDAV, and dCache through it.

Servers differ. nginx answers PUT below a missing directory with 500, others with 404 or 409. On most servers HEAD does
not show whether a directory exists. Two clients that make the same directory at the same time get 403 or 500. On some
servers a part of a file stays after a PUT that was cut off. So this module looks for directories with PROPFIND, makes
them one by one, and sends a file under another name before it moves it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from base64 import b64encode

from ..errors import ObjectMissing, StorageError
from ..settings.storage_providers import Provider
from ..workspace.outputs import Output, open_output
from .base import Moved
from .dialect import WithHeaders
from .http_client import HttpClient
from .known_directories import KnownDirectories

_FOUND = frozenset({200, 207})
_MADE = frozenset({200, 201, 405})
_MOVED = frozenset({200, 201, 204})
_NO_DIRECTORY = frozenset({500})  # nginx's answer if the directory is missing; a retry would fail, too


class WebDav:
    """A :class:`Storage` on one WebDAV server."""

    def __init__(self, provider: Provider, *, timeout_s: float, ca_file: str | None) -> None:
        headers = {}
        if provider.user or provider.secret:
            headers["Authorization"] = "Basic " + b64encode(f"{provider.user}:{provider.secret}".encode()).decode()
        self._client = HttpClient(provider, WithHeaders(headers), timeout_s=timeout_s, ca_file=ca_file)
        self._directories = KnownDirectories()
        # The directories that are being made. A result is the error that prevents it.
        self._making: dict[str, asyncio.Future[StorageError | None]] = {}

    async def fetch(self, location: str, fd: int, *, version: str = "", most_bytes: int, moved: Moved) -> int:
        return await self._client.download(location, fd, most_bytes=most_bytes, moved=moved)

    async def store(self, output: Output, location: str, *, moved: Moved) -> None:
        directory = location.rpartition("/")[0]
        fd = open_output(output)
        try:
            was_known = directory in self._directories
            await self._make(directory)
            began_s = time.monotonic()
            # Do not make this name from the file's name, which may already have the greatest length.
            part = "/".join(filter(None, [directory, f".watchdog-{secrets.token_hex(8)}.part"]))
            try:
                try:
                    final = _NO_DIRECTORY if was_known else frozenset()
                    await self._client.upload(part, output, fd, moved=moved, final=final)
                except StorageError as error:
                    if not was_known or error.is_given_up:
                        raise
                    # The directory may have been removed meanwhile. Servers report that with different errors.
                    self._directories.clear()
                    await self._make(directory)
                    await self._client.upload(part, output, fd, moved=moved)
                headers = {"Destination": str(self._client.url(location)), "Overwrite": "T"}
                await self._client.publish("MOVE", part, location, output, began_s, headers=headers, accepted=_MOVED)
            except BaseException:
                await self._client.remove(part)
                raise
        finally:
            os.close(fd)

    async def close(self) -> None:
        await self._client.close()

    async def _make(self, directory: str) -> None:
        """Make a directory and its parents, if they do not exist. One transfer does this, and the others wait for it.

        If it fails, it fails for all of them: otherwise each would wait for a dead server, one after the other.
        """
        while directory and directory not in self._directories:
            if (making := self._making.get(directory)) is not None:
                if (error := await asyncio.shield(making)) is not None:
                    raise error
                continue  # it is made now, or the transfer that made it was cancelled
            error = None
            making = self._making[directory] = asyncio.get_running_loop().create_future()
            try:
                await self._make_here(directory)
                self._directories.add(directory)
                return
            except StorageError as failure:
                error = failure
                raise
            finally:
                del self._making[directory]
                making.set_result(error)

    async def _make_here(self, directory: str) -> None:
        if await self._is_there(directory):
            return
        await self._make(directory.rpartition("/")[0])
        try:
            await self._client.ask("MKCOL", directory + "/", accepted=_MADE)
        except StorageError:
            # Another program may have made it at the same moment.
            if not await self._is_there(directory):
                raise

    async def _is_there(self, directory: str) -> bool:
        try:
            await self._client.ask("PROPFIND", directory + "/", headers={"Depth": "0"}, accepted=_FOUND)
        except ObjectMissing:
            return False
        return True
