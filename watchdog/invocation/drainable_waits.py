"""Waits that end when the server stops. The calls that wait are then rejected."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from ..errors import Draining


class DrainableWaits:
    """Waits of one kind that can all be ended together. ``are_ended``: no wait may begin any more.

    Args:
        refusal: returns the error of a call whose wait is ended.
    """

    def __init__(self, refusal: Callable[[], Draining]) -> None:
        self._refusal = refusal
        self._bounds: set[asyncio.Timeout] = set()
        self.are_ended = False

    def end(self) -> None:
        """End all waits, and do not let any other wait begin."""
        self.are_ended = True
        now_s = asyncio.get_running_loop().time()
        for bound in self._bounds:
            if not bound.expired():
                bound.reschedule(now_s)

    @contextlib.asynccontextmanager
    async def wait(self) -> AsyncIterator[None]:
        """Wait inside this context.

        Raises:
            Draining: :meth:`end` was called before or during the wait.
        """
        if self.are_ended:
            raise self._refusal()
        bound = asyncio.timeout(None)
        try:
            async with bound:
                self._bounds.add(bound)
                yield
        except TimeoutError:
            if bound.expired():
                raise self._refusal() from None
            raise
        finally:
            self._bounds.discard(bound)
