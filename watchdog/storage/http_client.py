"""Send requests to storages: repeat failed requests, resume transfers, and bound the time.

aiohttp is the client. These modules follow redirects themselves. They use no cookies, and no proxy or ``.netrc`` of
the environment. Names are encoded only in ``http_request.py``.

::

    http_client.py   the verbs: ask, remove, download, upload
    download.py      }
    upload.py        } one transfer, which may take several attempts
    retry.py         which failed attempts are repeated, and for how long
    http_request.py  one request, its redirects and its answer
    dialect.py       what differs between storages: authorization, errors
    connections.py   sockets and certificates
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from yarl import URL

from ..errors import ObjectMissing, StorageError
from ..settings.storage_providers import Provider
from ..workspace.outputs import Output, raise_if_changed
from ..workspace.space import raise_if_no_space
from .base import Moved, finished
from .dialect import Dialect
from .download import Download
from .http_request import Answered, Requests
from .retry import Progress, Transient, with_retries
from .upload import Upload

# A larger body is sent only after the server's 100 Continue, because dCache redirects clients to another server.
_ASK_FIRST_BYTES = 1 << 20
_THERE = frozenset({200})
_REMOVED = frozenset({200, 202, 204})
_REMOVE_PAUSES_S = (0.1, 0.3, 0.6)
# The compared times are in whole seconds, and may come from different machines of the storage.
_SLACK_S = 2.0


class HttpClient:
    """Requests to one provider.

    Args:
        timeout_s: the longest silence of the server, and how long failed requests are repeated without progress. Less
            than 240 bytes a second do not count as progress.
    """

    def __init__(self, provider: Provider, dialect: Dialect, *, timeout_s: float, ca_file: str | None) -> None:
        self._requests = Requests(provider, dialect, timeout_s=timeout_s, ca_file=ca_file)
        self._timeout_s = timeout_s
        # False once the server has failed to send 100 Continue: the client does not wait for it again.
        self._sends_continue = True

    def url(self, path: str, query: str = "") -> URL:
        """Return the URL of a path; see :meth:`Requests.url`."""
        return self._requests.url(path, query)

    async def close(self) -> None:
        await self._requests.close()

    async def ask(
        self,
        method: str,
        path: str,
        *,
        accepted: frozenset[int],
        query: str = "",
        headers: Mapping[str, str] = {},
        body: bytes = b"",
    ) -> Answered:
        """Send a small request until the server accepts it, and return the answer with at most 64 KiB of its body.

        Raises:
            ObjectMissing: the status is 404 or 410 and not in ``accepted``, or the body describes a missing object.
            StorageError: another status is not in ``accepted``, or the server fails or is silent for too long.
        """
        url = self._requests.url(path, query)

        async def attempt(progress: Progress) -> Answered:
            return await self._once(progress, method, url, path, accepted, headers, body)

        return await with_retries(attempt, self._timeout_s)

    async def publish(
        self,
        method: str,
        path: str,
        stored: str,
        output: Output,
        began_s: float,
        *,
        accepted: frozenset[int],
        query: str = "",
        headers: Mapping[str, str] = {},
        body: bytes = b"",
    ) -> None:
        """Send the last request of an upload, which lets readers of ``stored`` see the object.

        If the upload does not exist any more, an earlier attempt may have stored the object, and its answer was lost.
        While the upload exists, the object at ``stored`` is another one, even if it has the same size.

        Args:
            path: the part that a MOVE renames, or ``stored``.
            began_s: when the upload began, by the monotonic clock.
        """
        url, url_of_stored = self._requests.url(path, query), self._requests.url(stored)
        is_repeated = False

        async def is_stored(progress: Progress) -> bool:
            try:
                there = (await self._once(progress, "HEAD", url_of_stored, stored, _THERE)).headers
            except StorageError:  # it is missing, or the credentials do not allow to read it
                return False
            # Apache sends no length for an empty file. An older object may have the same size.
            is_whole = there.get("Content-Length", "0") == str(output.size_bytes)
            return is_whole and _age_s(there) <= time.monotonic() - began_s + _SLACK_S

        async def attempt(progress: Progress) -> None:
            nonlocal is_repeated
            try:
                # On some servers (rclone), the MOVE of a part that is gone removes the object.
                if is_repeated and path != stored:
                    await self._raise_if_missing(progress, url, path)
                is_repeated = True
                await self._once(progress, method, url, path, accepted, headers, body)
            except ObjectMissing:
                if not await is_stored(progress):
                    raise

        await with_retries(attempt, self._timeout_s)

    async def _raise_if_missing(self, progress: Progress, url: URL, path: str) -> None:
        try:
            await self._once(progress, "HEAD", url, path, _THERE)
        except ObjectMissing:
            raise
        except StorageError:  # the credentials do not allow to read it
            pass

    async def _once(
        self,
        progress: Progress,
        method: str,
        url: URL,
        path: str,
        accepted: frozenset[int],
        headers: Mapping[str, str] = {},
        body: bytes = b"",
    ) -> Answered:
        async with self._requests.send(method, url, path, progress, headers=headers, body=body or None) as response:
            return await self._requests.accepted(response, f"{method} of {path}", accepted)

    async def remove(self, path: str, query: str = "") -> None:
        """Remove what is left of a transfer that failed or was cancelled, if the server still answers."""

        async def remove() -> None:
            for pause_s in _REMOVE_PAUSES_S:
                with contextlib.suppress(ObjectMissing):
                    await self.ask("DELETE", path, query=query, accepted=_REMOVED)
                    return
                # The server may still be making a file of the bytes that it got before the connection ended.
                await asyncio.sleep(pause_s)

        await finished(remove())

    async def download(self, path: str, fd: int, *, most_bytes: int, moved: Moved, query: str = "") -> int:
        """Write the body of a GET to an empty file, and resume after a lost connection. Return the size in bytes.

        Raises the same errors as :meth:`Storage.fetch`.
        """
        try:
            return await with_retries(
                Download(self._requests, path, query, fd, most_bytes, moved).attempt, self._timeout_s
            )
        except OSError as error:
            raise_if_no_space(error, f"the object {path}")
            raise

    async def upload(
        self,
        path: str,
        output: Output,
        fd: int,
        *,
        moved: Moved,
        query: str = "",
        headers: Mapping[str, str] = {},
        offset: int = 0,
        size_bytes: int | None = None,
        final: frozenset[int] = frozenset(),
    ) -> Answered:
        """PUT a file, or a part of it. Each attempt sends all bytes again. ``final``: statuses that are not retried.

        Raises the same errors as :meth:`Storage.store`. If the file changed, the server may have stored the changed
        file.
        """
        whole_bytes = output.size_bytes if size_bytes is None else size_bytes
        transfer = Upload(
            self._requests,
            path,
            query,
            output,
            fd,
            moved,
            headers=headers,
            offset=offset,
            size_bytes=whole_bytes,
            final=final,
        )

        async def attempt(progress: Progress) -> Answered:
            asks_first = whole_bytes > _ASK_FIRST_BYTES and self._sends_continue
            try:
                return await transfer.attempt(progress, asks_first=asks_first)
            except Transient as failure:
                if failure.is_silence and asks_first and not transfer.has_sent:
                    self._sends_continue = False
                raise

        answer = await with_retries(attempt, self._timeout_s)
        raise_if_changed(fd, output)
        return answer


def _age_s(headers: Mapping[str, str]) -> float:
    """Return how long ago an object changed, by the clock of its server; infinity if the server does not report it."""
    try:
        age = parsedate_to_datetime(headers.get("Date", "")) - parsedate_to_datetime(headers.get("Last-Modified", ""))
    except (TypeError, ValueError):  # a time without a zone, or not a time
        return math.inf
    return age.total_seconds()
