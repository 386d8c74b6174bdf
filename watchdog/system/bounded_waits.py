"""Waits with a time limit that can be shortened for all of them together, for example when the server stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class BoundedWaits:
    """Waits of one kind. ``limit_s``: the limit of each wait; None means no limit."""

    def __init__(self, limit_s: float | None = None) -> None:
        self._limit_s = limit_s
        self._bounds: set[asyncio.Timeout] = set()

    @contextlib.asynccontextmanager
    async def wait(self) -> AsyncIterator[asyncio.Timeout]:
        """Wait inside this context. The yielded bound has expired if the limit ended the wait.

        Raises:
            TimeoutError: the limit ended the wait.
        """
        async with asyncio.timeout(self._limit_s) as bound:
            self._bounds.add(bound)
            try:
                yield bound
            finally:
                self._bounds.discard(bound)

    def shorten(self, limit_s: float) -> None:
        """End all current waits after at most ``limit_s``. This is also the limit of later waits."""
        self._limit_s = limit_s
        until_s = asyncio.get_running_loop().time() + limit_s
        for bound in self._bounds:
            if not bound.expired():
                bound.reschedule(min(until_s, bound.when() or until_s))
