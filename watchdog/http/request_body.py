"""Keep the part of a request's body that has arrived, until the handler of the request reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# If the pieces of a body that wait for the handler take more memory, the server reads no more of the body. A caller may
# send chunks of one byte, so the memory that each piece takes beside its bytes counts, too.
_MOST_WAITING_BYTES = 128 * 1024
_PIECE_BYTES = 64


class MalformedBody(Exception):
    """The bytes of a body violate RFC 9112. Nothing after them can be trusted."""


class RequestBody:
    """The body of a request.

    Args:
        on_room: called when the handler has read so much that more bytes can be taken from the connection.
    """

    __slots__ = (
        "_error",
        "_is_discarded",
        "_on_room",
        "_pieces",
        "_waiter",
        "_waiting_bytes",
        "is_complete",
        "total_bytes",
    )

    def __init__(self, on_room: Callable[[], None]) -> None:
        self._on_room = on_room
        self._pieces: list[bytes] = []
        self._waiting_bytes = 0
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_discarded = False
        self.is_complete = False
        self.total_bytes = 0

    # ---- what the connection calls

    def feed(self, piece: bytes) -> None:
        self.total_bytes += len(piece)
        if self._is_discarded:
            return
        self._pieces.append(piece)
        self._waiting_bytes += len(piece) + _PIECE_BYTES
        self._wake()

    def end(self, error: Exception | None = None) -> None:
        """No byte follows. ``error``: why the body is not complete; None if it is."""
        if not self.is_complete and self._error is None:
            self._error = error
            self.is_complete = error is None
            self._wake()

    def discard(self) -> None:
        """Keep no more bytes, because nothing reads them."""
        self._is_discarded = True
        self._pieces.clear()
        self._waiting_bytes = 0

    @property
    def has_room(self) -> bool:
        """Whether more bytes may be taken from the connection."""
        return self._waiting_bytes <= _MOST_WAITING_BYTES

    # ---- what the handler calls

    def read_nowait(self) -> bytes:
        """Return all bytes that have arrived and were not read yet.

        Raises:
            MalformedBody, ConnectionError: the body is not complete, and all bytes before the error were read.
        """
        pieces = self._pieces
        if not pieces:
            if self._error is not None:
                raise self._error
            return b""
        piece = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        had_room, self._waiting_bytes = self.has_room, 0
        if not had_room:
            self._on_room()
        return piece

    async def read(self) -> bytes:
        """Wait for bytes and return them; b"" at the end of the body. Raises the same errors as :meth:`read_nowait`."""
        if not self._pieces and not self.is_complete and self._error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self.read_nowait()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
