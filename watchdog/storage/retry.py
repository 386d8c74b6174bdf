"""Repeat the attempts of one transfer, and measure their progress."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..errors import StorageError

_T = TypeVar("_T")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
# The lowest rate of a transfer, on average over ``timeout_s``. Callers have the same lowest rate (min_data_rate).
_LEAST_BYTES_PER_S = 240


class Transient(Exception):
    """A failure that possibly does not happen again at the next attempt.

    ``after_s``: the pause that the server asks for; ``is_silence``: the server sent nothing for too long.
    """

    def __init__(self, error: StorageError, after_s: float = 0.0, *, is_silence: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.after_s = after_s
        self.is_silence = is_silence


async def with_retries(attempt: Callable[[Progress], Awaitable[_T]], timeout_s: float) -> _T:
    """Repeat an attempt that raises ``Transient``, until attempts have failed for ``timeout_s`` without progress.

    So the client gives up a silent server after twice ``timeout_s``.
    """
    progress = Progress()
    pause_s, failing_since_s = _FIRST_PAUSE_S, 0.0
    while True:
        try:
            return await attempt(progress)
        except Transient as failure:
            now_s = time.monotonic()
            if progress.is_enough(now_s) or not failing_since_s:
                pause_s, failing_since_s = _FIRST_PAUSE_S, now_s
            wait_s = max(pause_s * random.uniform(0.5, 1.0), failure.after_s)
            if now_s + wait_s - failing_since_s > timeout_s:
                failure.error.is_given_up = True
                raise failure.error from None
        await asyncio.sleep(wait_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


class Progress:
    """The progress of one transfer over all its attempts.

    ``window_bytes``: the bytes that have moved since the deadline of this attempt was last set.
    """

    def __init__(self) -> None:
        self.window_bytes = 0
        self._reached_bytes = 0
        self._gained_bytes, self._gained_since_s = 0, time.monotonic()
        self._bound: asyncio.Timeout | None = None
        self._timeout_s = 0.0
        self._has_begun = False

    def bounded_by(self, bound: asyncio.Timeout, timeout_s: float) -> None:
        self._bound, self._timeout_s = bound, timeout_s
        self._has_begun = False
        self.window_bytes = 0

    def alive(self) -> None:
        """Move the deadline, because the server has shown that it works."""
        self.window_bytes = 0
        if self._bound is not None and not self._bound.expired():
            self._bound.reschedule(asyncio.get_running_loop().time() + self._timeout_s)

    def reached(self, count: int, step_bytes: int) -> None:
        """Note that the first ``count`` bytes have moved. The last ``step_bytes`` of them moved in this step.

        If the rate is high enough, move the deadline.
        """
        if not self._has_begun or self.window_bytes + step_bytes >= _LEAST_BYTES_PER_S * self._timeout_s:
            self._has_begun = True
            self.alive()
        else:
            self.window_bytes += step_bytes
        self._gained_bytes += max(count - self._reached_bytes, 0)
        self._reached_bytes = max(count, self._reached_bytes)

    def is_enough(self, now_s: float) -> bool:
        """Return whether the transfer was fast enough since the last call that returned True.

        Bytes that an earlier attempt had already moved do not count.
        """
        wanted_bytes = _LEAST_BYTES_PER_S * (now_s - self._gained_since_s)
        if not self._gained_bytes or self._gained_bytes < wanted_bytes:
            return False
        self._gained_bytes, self._gained_since_s = 0, now_s
        return True
