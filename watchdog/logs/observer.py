"""Watch a call while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Observer(Protocol):
    """The observer of one call. None of its methods waits, and none raises an error."""

    def queued(self, position: int) -> None:
        """The call waits for a place. ``position`` is 1 for the call that gets the next place."""

    def started(self, served_before: int | None) -> None:
        """The function runs. ``served_before``: the number of earlier calls of a warm function's worker, else None."""

    def log_lines(self, stream: str, levels: Sequence[int], texts: Sequence[str]) -> None:
        """The function has logged lines. An element of ``texts`` is a line, or a traceback of several lines."""

    def lines_dropped(self, count: int) -> None:
        """Lines of the function were not logged, because there was no room for them."""

    def progress(self, fraction: float, text: str) -> None:
        """The function has reported its progress. ``fraction``: from 0 to 1."""

    def ended(self) -> None:
        """The function has ended, and reports nothing more. A call with several runs has several ends."""
