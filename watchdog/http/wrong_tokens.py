"""Limit the rate at which callers learn that their token is wrong.

A call with the right token is never delayed. So no caller can lock out the callers that have the token. The limit only
makes guessing slower. A long token is needed to make guessing hopeless.
"""

from __future__ import annotations

_PER_SECOND = 10  # answers to wrong tokens
_AT_ONCE = 20  # answers before any delay
_MOST_WAITING = 20  # answers that are delayed at the same time
RETRY_AFTER_S = 2


class WrongTokens:
    """A leaky bucket: 20 wrong tokens are answered at once, and further ones at a rate of 10 per second.

    There is one bucket for all callers together, so memory does not grow with the number of callers.
    """

    def __init__(self) -> None:
        self._level = 0.0
        self._at_s = 0.0

    def wait_s(self, now_s: float) -> float | None:
        """Return the delay of the answer to a wrong token. Return None if 20 answers are already being delayed."""
        level = max(0.0, self._level - (now_s - self._at_s) * _PER_SECOND) + 1
        if level > _AT_ONCE + _MOST_WAITING:
            return None
        self._level, self._at_s = level, now_s
        return max(0.0, level - _AT_ONCE) / _PER_SECOND
