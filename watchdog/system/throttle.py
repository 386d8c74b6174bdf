"""Do something at most once in each pause, even if it is requested much more often."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Throttle:
    """Calls ``act`` at the first request, and then at most once in ``pause_s`` seconds.

    If there are requests during a pause, there is one call at its end. So ``act`` always sees the newest state.
    """

    def __init__(self, act: Callable[[], None], pause_s: float) -> None:
        self._act = act
        self._pause_s = pause_s
        self._pause: asyncio.TimerHandle | None = None
        self._is_requested = False

    def request(self) -> None:
        """Call ``act`` now, or at the end of the pause."""
        self._is_requested = True
        if self._pause is None:
            self._act_if_requested()

    def cancel(self) -> None:
        """Forget the request that waits, and end the pause."""
        self._is_requested = False
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _act_if_requested(self) -> None:
        self._pause = None
        if self._is_requested:
            self._is_requested = False
            self._act()
            self._pause = asyncio.get_running_loop().call_later(self._pause_s, self._act_if_requested)
