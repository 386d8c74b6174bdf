"""Measure how fast callers send their bodies and read their answers, and find the slowest.

Only the time in which the server waits for the caller counts. So a script that reads slowly, or a slow disk, makes no
caller look slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable

# A minimum rate is not asked of shorter times: one lost packet may cost a second. Kestrel waits as long
# (MinRequestBodyDataRate).
_SHORTEST_WINDOW_S = 5.0
# A caller that is at least as fast as a slow mobile connection (128 kbit/s) is never given up to make room.
_FAST_BYTES_PER_S = 16 * 1024


class Pace:
    """How fast one caller sends its body or takes its answer.

    Args:
        position: returns how many bytes the caller has sent or taken so far.
        silence_s: the longest wait in which nothing moves; 0 is no limit, and turns the minimum rate off as well.
        least_rate: bytes for each second, on average over the wait for them; 0 is no minimum.
        judged_after_s: a caller that the server has waited for less than this is never the slowest.
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
        self._waited_s = 0.0  # before the present wait
        self._waits_since_s: float | None = None
        self._bound: asyncio.Timeout | None = None
        # Waited seconds and bytes where the present window began, and at the last two looks.
        self._window = self._older = self._newer = (0.0, 0)
        self.is_given_up = False
        # Set while the server waits: this wait ends because of the minimum rate, not because of a silence.
        self.is_too_slow = False

    @contextlib.asynccontextmanager
    async def waiting(self, among: Paces, *, is_looked_at: bool = False) -> AsyncIterator[asyncio.Timeout]:
        """Wait for the caller inside this context; it is one of ``among`` meanwhile.

        Args:
            is_looked_at: bytes move during the wait, and whoever waits looks at :attr:`left_s` and moves the bound.

        Raises:
            TimeoutError: the caller was silent, too slow (:attr:`is_too_slow`) or given up (:attr:`is_given_up`).
        """
        limit_s = min(self._silence_s or math.inf, math.inf if is_looked_at else self.left_s)
        self.is_too_slow = limit_s < self._silence_s
        try:
            async with asyncio.timeout(None if limit_s == math.inf else limit_s) as bound:
                self._bound, self._waits_since_s = bound, self._loop.time()
                among.add(self)
                yield bound
            if self.is_given_up:  # in the very moment in which the wait ended by itself
                raise TimeoutError
        finally:
            among.discard(self)
            self._look()
            self._waited_s, self._waits_since_s, self._bound = self._now_s, None, None

    @property
    def left_s(self) -> float:
        """How long the server may wait on, until enough bytes for the minimum rate must have moved."""
        self._look()
        return max(self._window[0] + self._window_s - self._now_s, 0.0)

    @property
    def rate(self) -> float:
        """Bytes for each second in the last second or two."""
        self._look()
        waited_s, position = self._older
        return (self._position() - position) / max(self._now_s - waited_s, self._judged_after_s)

    @property
    def moved_bytes(self) -> int:
        """How many bytes moved in the window that ends now."""
        return self._position() - self._window[1]

    @property
    def waited_s(self) -> float:
        """For how long the server waited in the window that ends now."""
        return self._now_s - self._window[0]

    @property
    def may_be_given_up(self) -> bool:
        return not self.is_given_up and self._now_s >= self._judged_after_s and self.rate < _FAST_BYTES_PER_S

    def give_up(self) -> None:
        """End the present wait."""
        self.is_given_up = True
        self.end()

    def end(self) -> None:
        """End the present wait, as if its time were over."""
        if self._bound is not None and not self._bound.expired():
            self._bound.reschedule(self._loop.time())

    @property
    def _now_s(self) -> float:
        """For how long the server has waited for the caller in all."""
        if self._waits_since_s is None:
            return self._waited_s
        return self._waited_s + self._loop.time() - self._waits_since_s

    def _look(self) -> None:
        now = self._now_s, self._position()
        if now[1] - self._window[1] >= self._quota_bytes:
            self._window = now
        if now[0] - self._newer[0] >= 1.0:
            self._older, self._newer = self._newer, now


class Paces(set[Pace]):
    """The callers that the server waits for now."""

    def slowest(self) -> Pace | None:
        """Return the slowest caller that may be given up to make room, or None."""
        return min((pace for pace in self if pace.may_be_given_up), key=lambda pace: pace.rate, default=None)
