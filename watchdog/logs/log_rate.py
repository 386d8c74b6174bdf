"""Limit the bytes that one call logs in a second, so that a script does not fill the disk of a node.

Both streams of a call share one :class:`LogRate`. A second begins with the first line that is logged in it. When the
bytes of this second are used up, lines are dropped and counted until it ends. The count is logged with the next line
that is not dropped, or when the stream ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class LogRate:
    """The room that a call has in the log.

    Args:
        bytes_per_s: the largest number of bytes of log in a second, with the time, level and call id of each line. 0
            means no limit.
        clock: returns seconds that never decrease.
    """

    def __init__(self, bytes_per_s: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.bytes_per_s = bytes_per_s
        self._clock = clock
        self._second_ends_s = 0.0
        self._left_bytes = 0
        self._dropped_lines = 0
        self._dropped_bytes = 0

    def has_room(self) -> bool:
        """Return whether lines may be logged now. If there is any room, all lines of a write are logged."""
        if not self.bytes_per_s or self._left_bytes > 0:
            return True
        now_s = self._clock()
        if now_s < self._second_ends_s:
            return False
        self._second_ends_s = now_s + 1.0
        self._left_bytes = self.bytes_per_s
        return True

    def spend(self, count: int) -> None:
        """Count bytes that are logged."""
        self._left_bytes -= count

    def drop(self, lines: int, count: int) -> None:
        """Count lines that are not logged. ``count``: their bytes, as the script wrote them."""
        self._dropped_lines += lines
        self._dropped_bytes += count

    def dropped(self) -> tuple[int, int]:
        """Return how many lines and bytes were dropped since the last call of this method."""
        dropped = self._dropped_lines, self._dropped_bytes
        self._dropped_lines = self._dropped_bytes = 0
        return dropped
