"""Limit the rate at which callers learn that their token is wrong.

The right token is never delayed, so nobody can lock out its holder. So this limit makes guessing slower, but not
impossible. Only a long token makes it hopeless.
"""

from __future__ import annotations

_IN_A_SECOND = 10
_AT_ONCE = 20
_MOST_WAITING = 20
RETRY_AFTER_S = 2


class WrongTokens:
    """Twenty wrong tokens are answered at once, more of them one after the other, ten in a second.

    This is a leaky bucket for all callers together, so memory does not grow with their number.
    """

    def __init__(self) -> None:
        self._level = 0.0
        self._at_s = 0.0

    def wait_s(self, now_s: float) -> float | None:
        """Return how long the answer to a wrong token has to wait; None if twenty answers wait already."""
        level = max(0.0, self._level - (now_s - self._at_s) * _IN_A_SECOND) + 1
        if level > _AT_ONCE + _MOST_WAITING:
            return None
        self._level, self._at_s = level, now_s
        return max(0.0, level - _AT_ONCE) / _IN_A_SECOND
