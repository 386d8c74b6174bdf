"""Close idle connections when few descriptors are free, or when the headers of idle connections take much memory.

An idle connection has no request. Every client that reaches the port can open connections and leave them idle. So idle
connections may have at most half of the descriptors (``ulimit -n``). If there are more, each new connection closes the
connection that has been idle for the longest time. A quarter of the descriptors is kept for running calls, with the
pipes and files of their scripts. If no idle connection is left to close, callers that read slowly are disconnected.

An idle connection also holds memory: the first line and headers of its last request, or of an incomplete one. In
memory, a header of four bytes takes a hundred times as many bytes. So the sum of this memory is bounded. If it
exceeds the bound, the connection with the most memory is closed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from ..system import proc

# A new connection is not closed during this time, because its first request may be on its way.
_FRESH_S = 0.1
# Number of idle connections. Each takes about 20 KiB of memory. Proxies keep at most as many (nginx: 32 per worker,
# Envoy: 1024 per server).
_MOST_IDLE = 1024
# Memory of the first lines and headers of all idle connections. 5 to 15 KiB for one connection is usual, so this is
# enough for all of them.
_MOST_HEAD_MEMORY_BYTES = 24 << 20


class Connection(Protocol):
    def close_if_unused(self, *, also_unread: bool = False) -> bool:
        """Close the connection, unless a request has arrived. Return whether the connection was closed."""


class IdleConnections:
    """The idle connections of one process, in the order in which they became idle.

    Args:
        give_up: called if there are too few idle connections to close; it disconnects a caller that reads slowly.
    """

    def __init__(self, give_up: Callable[[], object] = lambda: None) -> None:
        self._give_up = give_up
        self._since_s: dict[Connection, float] = {}
        self._head_memory: dict[Connection, int] = {}
        self._head_memory_bytes = 0  # the sum for all connections
        self._open = 0  # number of connections, idle or not
        self._other_descriptors = 0  # number of descriptors that are not connections; 0 before the first connection
        self._to_close = 0
        self._timer: asyncio.TimerHandle | None = None
        self.closed = 0

    def __len__(self) -> int:
        return len(self._since_s)

    def add(self, connection: Connection) -> None:
        """Add a connection that has just become idle."""
        self._since_s.pop(connection, None)
        self._since_s[connection] = time.monotonic()

    def note_end(self, connection: Connection) -> None:
        """Remove a connection that has ended. Call this for each connection that :meth:`note_new` was called for."""
        self.discard(connection)
        self._open -= 1

    def discard(self, connection: Connection) -> None:
        """Remove a connection that has got a request."""
        self._since_s.pop(connection, None)
        self._head_memory_bytes -= self._head_memory.pop(connection, 0)

    def note_head_memory(self, connection: Connection, head_memory_bytes: int) -> None:
        """Note the memory of a connection's first line and headers. If the sum is too large, close connections."""
        if connection not in self._since_s:
            return
        self._head_memory_bytes += head_memory_bytes - self._head_memory.get(connection, 0)
        self._head_memory[connection] = head_memory_bytes
        while self._head_memory_bytes > _MOST_HEAD_MEMORY_BYTES:
            heaviest = max(self._head_memory, key=self._head_memory.__getitem__)
            self.closed += heaviest.close_if_unused(also_unread=True)
            self.discard(heaviest)

    def note_new(self, descriptor: int) -> None:
        """Close connections if there are too many now. Call this for each new connection.

        Args:
            descriptor: the descriptor of the new connection. The system gives the lowest free number, so at least so
                many descriptors are in use. If an older connection has ended, this number may be very low. So the
                connections are counted, too.
        """
        self._open += 1
        limit = proc.descriptor_limit()
        most = limit * 3 // 4
        # Workers may have more than half of the descriptors. Connections may have a quarter nevertheless.
        self._other_descriptors = self._other_descriptors or min(descriptor, limit // 2)
        too_many = self._other_descriptors + self._open - most
        if too_many > 0 or descriptor >= most or len(self._since_s) >= min(limit // 2, _MOST_IDLE):
            self.close_oldest(max(too_many, 1))

    def close_oldest(self, count: int = 1) -> None:
        """Close the connections that have been idle for the longest time. New connections are closed a moment later.

        If fewer than ``count`` connections are idle, callers that read slowly are disconnected in addition.
        """
        for _ in range(count - len(self._since_s)):
            self._give_up()
        # Connections that are about to be closed still count as open. So ``count`` is not added to them.
        self._to_close = min(max(self._to_close + 1, count), len(self._since_s))
        if self._timer is None:
            self._close()

    def out_of_descriptors(self) -> None:
        """Free a quarter of the descriptors. Call this if there was no descriptor for a new connection."""
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
