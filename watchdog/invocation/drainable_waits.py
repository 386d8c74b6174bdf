"""Waits that end when the server stops. The calls that wait are then rejected."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from ..errors import Draining
from ..system.bounded_waits import BoundedWaits


class DrainableWaits:
    """Waits of one kind that can all be ended together.

    Attributes:
        refusal: returns the error of a call whose wait is ended.
        are_ended: no wait may begin any more.
    """

    def __init__(self, refusal: Callable[[], Draining]) -> None:
        self.refusal = refusal
        self._waits = BoundedWaits()
        self.are_ended = False

    def end(self) -> None:
        """End all waits, and do not let any other wait begin."""
        self.are_ended = True
        self._waits.shorten(0.0)

    @contextlib.asynccontextmanager
    async def wait(self) -> AsyncIterator[None]:
        """Wait inside this context.

        Raises:
            Draining: :meth:`end` was called before or during the wait.
        """
        if self.are_ended:
            raise self.refusal()
        try:
            async with self._waits.wait() as bound:
                yield
        except TimeoutError:
            if bound.expired():
                raise self.refusal() from None
            raise
