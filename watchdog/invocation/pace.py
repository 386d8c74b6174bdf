"""Measure how fast callers send their bodies and read their answers, and find the slowest caller.

The server measures only the time in which it waits for the caller. So a slow disk, or a script that reads slowly, does
not make a caller look slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable

# The minimum rate applies to waits of at least this length, because one lost packet may cost a second. Kestrel has the
# same value (MinRequestBodyDataRate).
_SHORTEST_WINDOW_S = 5.0
# A caller that is at least as fast as a slow mobile connection (128 kbit/s) is never given up for another call.
_FAST_BYTES_PER_S = 16 * 1024


class Pace:
    """How fast one caller sends its body or reads its answer.

    Args:
        position: returns the number of bytes that the caller has sent or read so far.
        silence_s: the longest wait without a byte; 0 means no limit, and no minimum rate either.
        least_rate: the minimum rate in bytes per second, on average over the wait; 0 means no minimum.
        judged_after_s: the server waits for at least this time before it judges the caller slow.
    """

    def __init__(
        self, position: Callable[[], int], *, silence_s: float, least_rate: int, judged_after_s: float
    ) -> None:
        self._position = position
        self._silence_s = silence_s
        self._window_s = max(silence_s, _SHORTEST_WINDOW_S) if silence_s and least_rate else math.inf
        self._quota_bytes = least_rate * self._window_s if self._window_s < math.inf else 0
        self._judged_after_s = judged_after_s
        self._loop = asyncio.get_running_loop()
        self._waited_s = 0.0  # the length of all waits before the current one
        self._waits_since_s: float | None = None
        self._bound: asyncio.Timeout | None = None
        # Pairs of waited seconds and moved bytes: at the start of the current window, and at the last two samples.
        self._window = self._older = self._newer = (0.0, 0)
        self.is_given_up = False
        # Whether the end of the current wait is set by the minimum rate, not by silence_s.
        self.is_too_slow = False

    @contextlib.asynccontextmanager
    async def waiting(self, among: Paces, *, is_watched: bool = False) -> AsyncIterator[asyncio.Timeout]:
        """Wait for the caller inside this context. During the wait, ``among`` contains this caller.

        Args:
            is_watched: bytes move during the wait. The code in the context checks :attr:`left_s` from time to time, and
                moves the deadline of the yielded timeout.

        Raises:
            TimeoutError: the caller was silent, too slow (:attr:`is_too_slow`) or given up (:attr:`is_given_up`).
        """
        limit_s = min(self._silence_s or math.inf, math.inf if is_watched else self.left_s)
        self.is_too_slow = limit_s < self._silence_s
        try:
            async with asyncio.timeout(None if limit_s == math.inf else limit_s) as bound:
                self._bound, self._waits_since_s = bound, self._loop.time()
                among.add(self)
                yield bound
            if self.is_given_up:  # race: `give_up` was called just when the wait ended by itself
                raise TimeoutError
        finally:
            among.discard(self)
            self._sample()
            self._waited_s, self._waits_since_s, self._bound = self._now_s, None, None

    @property
    def left_s(self) -> float:
        """The seconds that the server may still wait. By then, enough bytes for the minimum rate must have moved."""
        self._sample()
        return max(self._window[0] + self._window_s - self._now_s, 0.0)

    @property
    def rate(self) -> float:
        """The bytes per second of the last one or two seconds."""
        self._sample()
        waited_s, position = self._older
        return (self._position() - position) / max(self._now_s - waited_s, self._judged_after_s)

    @property
    def moved_bytes(self) -> int:
        """The number of bytes that moved in the window that ends now."""
        return self._position() - self._window[1]

    @property
    def waited_s(self) -> float:
        """The seconds for which the server waited in the window that ends now."""
        return self._now_s - self._window[0]

    @property
    def may_be_given_up(self) -> bool:
        return not self.is_given_up and self._now_s >= self._judged_after_s and self.rate < _FAST_BYTES_PER_S

    def give_up(self) -> None:
        """End the current wait, because another call needs the resources that this caller occupies."""
        self.is_given_up = True
        self.end()

    def end(self) -> None:
        """End the current wait, as if its time were over."""
        if self._bound is not None and not self._bound.expired():
            self._bound.reschedule(self._loop.time())

    @property
    def _now_s(self) -> float:
        """The seconds for which the server has waited for the caller, in all waits."""
        if self._waits_since_s is None:
            return self._waited_s
        return self._waited_s + self._loop.time() - self._waits_since_s

    def _sample(self) -> None:
        now = self._now_s, self._position()
        if now[1] - self._window[1] >= self._quota_bytes:
            self._window = now
        if now[0] - self._newer[0] >= 1.0:
            self._older, self._newer = self._newer, now


class Paces(set[Pace]):
    """The callers that the server waits for now."""

    def slowest(self) -> Pace | None:
        """Return the slowest caller that may be given up for another call, or None."""
        return min((pace for pace in self if pace.may_be_given_up), key=lambda pace: pace.rate, default=None)
