"""Upload a file, or a part of it. Each attempt sends it from its beginning."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping

from ..workspace.outputs import Output, raise_if_changed
from .base import Moved
from .http_request import Answered, Requests
from .retry import Progress

_PIECE_BYTES = 1 << 20
# Bytes that are sent at a time. Small steps show the progress on a slow link.
_STEP_BYTES = 64 * 1024
_STORED = frozenset({200, 201, 202, 204})


class Upload:
    """The upload of one file, or of a part of it. ``final``: statuses that are not retried."""

    def __init__(
        self,
        requests: Requests,
        path: str,
        query: str,
        output: Output,
        fd: int,
        moved: Moved,
        *,
        headers: Mapping[str, str],
        offset: int,
        size_bytes: int,
        final: frozenset[int],
    ) -> None:
        self._requests = requests
        self._path = path
        self._url = requests.url(path, query)
        self._output = output
        self._fd = fd
        self._moved = moved
        self._headers = {**headers, "Content-Length": str(size_bytes)}
        self._offset = offset
        self._size_bytes = size_bytes
        self._final = final
        self._sent_bytes = 0

    async def attempt(self, progress: Progress, *, asks_first: bool) -> Answered:
        """Send the file once. ``asks_first``: send the body only after the server's 100 Continue.

        Raises:
            OutputUnreadable: the file changed meanwhile.
            Transient, StorageError: for the same reasons as in :meth:`Requests.send` and :meth:`Requests.accepted`.
        """

        async def body() -> AsyncIterator[bytes]:
            self._begin_again()  # a redirect sends the body once more
            while self._sent_bytes < self._size_bytes:
                left_bytes = self._size_bytes - self._sent_bytes
                at = self._offset + self._sent_bytes
                piece = await asyncio.to_thread(os.pread, self._fd, min(_PIECE_BYTES, left_bytes), at)
                if not piece:  # the file became shorter, so the server must not wait for the rest
                    raise ConnectionAbortedError
                for start in range(0, len(piece), _STEP_BYTES):
                    step = piece[start : start + _STEP_BYTES]
                    yield step
                    self._sent_bytes += len(step)
                    progress.reached(self._sent_bytes, len(step))
                    self._moved(len(step))

        self._sent_bytes = 0
        try:
            async with self._requests.send(
                "PUT",
                self._url,
                self._path,
                progress,
                headers=self._headers,
                body=body if self._size_bytes else b"",
                asks_first=asks_first,
            ) as response:
                return await self._requests.accepted(response, f"PUT of {self._path}", _STORED, self._final)
        except BaseException as error:
            self._moved(-self._sent_bytes)
            # A file that changed may be the cause of an error. A cancellation must stay a cancellation.
            if isinstance(error, Exception):
                raise_if_changed(self._fd, self._output)
            raise

    @property
    def has_sent(self) -> bool:
        """Return whether the last attempt has sent a part of the body."""
        return self._sent_bytes > 0

    def _begin_again(self) -> None:
        self._moved(-self._sent_bytes)
        self._sent_bytes = 0
