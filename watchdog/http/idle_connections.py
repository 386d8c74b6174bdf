"""Choose which connections without a request are closed when few descriptors are free.

Anybody who reaches the port can open connections and leave them idle. So idle connections may have half of the
descriptors (``ulimit -n``) at most: beyond that, each new connection closes the one that has been idle for the longest
time. A quarter of the descriptors is kept for the calls that have begun, with the pipes and files of their scripts.

Idle connections also hold memory: the first line and headers of a whole or unfinished request. A header of four bytes
takes a hundred times as much memory. So the sum is bounded. Beyond it, the connection that holds the most is closed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from ..system import proc

# A new connection may have its first request on its way.
_FRESH_S = 0.1
# Each takes about 20 KiB of memory. More than proxies keep (nginx: 32 of each worker; Envoy: 1024 to each server).
_MOST_IDLE = 1024
# Of first lines and headers. Usual ones take 5 to 15 KiB, so this is enough for all that may be idle.
_MOST_HEAD_MEMORY_BYTES = 24 << 20


class Connection(Protocol):
    def close_if_unused(self, *, also_unread: bool = False) -> bool:
        """Close it, unless a request has come meanwhile; return whether it was closed."""


class IdleConnections:
    """The connections of one process that have no request, the one first that has been idle for the longest time.

    Args:
        give_up: called when no idle connection is left to be closed; gives up a slow caller of another kind.
    """

    def __init__(self, give_up: Callable[[], object] = lambda: None) -> None:
        self._give_up = give_up
        self._since_s: dict[Connection, float] = {}
        self._head_memory: dict[Connection, int] = {}
        self._head_memory_bytes = 0  # of all
        self._to_close = 0
        self._timer: asyncio.TimerHandle | None = None
        self.closed = 0

    def __len__(self) -> int:
        return len(self._since_s)

    def add(self, connection: Connection) -> None:
        """Count a connection that is idle from now on."""
        self._since_s.pop(connection, None)
        self._since_s[connection] = time.monotonic()

    def discard(self, connection: Connection) -> None:
        """Forget a connection that has a request now, or has ended."""
        self._since_s.pop(connection, None)
        self._head_memory_bytes -= self._head_memory.pop(connection, 0)

    def weigh(self, connection: Connection, head_memory_bytes: int) -> None:
        """Note how much memory the first line and headers of a connection take; if all take too much, close some."""
        if connection not in self._since_s:
            return
        self._head_memory_bytes += head_memory_bytes - self._head_memory.get(connection, 0)
        self._head_memory[connection] = head_memory_bytes
        while self._head_memory_bytes > _MOST_HEAD_MEMORY_BYTES:
            heaviest = max(self._head_memory, key=self._head_memory.__getitem__)
            self.closed += heaviest.close_if_unused(also_unread=True)
            self.discard(heaviest)

    def look_at(self, descriptor: int) -> None:
        """Close the oldest connection if a new one, with this descriptor, is one too many.

        The system gives the lowest number that is free. So all numbers below it are in use.
        """
        limit = proc.descriptor_limit()
        if len(self._since_s) >= min(limit // 2, _MOST_IDLE) or descriptor >= limit * 3 // 4:
            self.close_oldest()

    def close_oldest(self, count: int = 1) -> None:
        """Close the connections that have been idle for the longest time, as soon as they are not fresh any more."""
        if not self._since_s:
            for _ in range(count):
                self._give_up()
            return
        self._to_close = min(self._to_close + count, len(self._since_s))
        if self._timer is None:
            self._close()

    def out_of_descriptors(self) -> None:
        """Free a quarter of the descriptors, after there was none for a new connection."""
        self.close_oldest(proc.descriptor_limit() // 4)

    def _close(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        while self._to_close and self._since_s:
            connection, since_s = next(iter(self._since_s.items()))
            fresh_for_s = since_s + _FRESH_S - time.monotonic()
            if fresh_for_s > 0:
                self._timer = loop.call_later(fresh_for_s, self._close)
                return
            if connection.close_if_unused():
                self.discard(connection)
                self._to_close -= 1
                self.closed += 1
            else:
                self.add(connection)
        self._to_close = 0
