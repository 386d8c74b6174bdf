"""Create and close all connections of one port."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from .connection import SHORT_LINGER_S, Connection, Handler
from .idle_connections import IdleConnections

if TYPE_CHECKING:
    from .cors import Cors

# At a stop, a new connection gets this time, because its first request may be on its way.
_FRESH_S = 0.1
# At a stop, a caller that has its whole answer gets this time to close its connection.
_CLOSE_S = 0.1
# Each of these two waits has at least this number of checks. Each check lets the event loop read the bytes that have
# arrived. So no caller is cut off if the machine pauses for seconds.
_FEWEST_CHECKS = 10


class HttpServer:
    """The connections of one port, with one handler for all requests.

    Args:
        handler: sends the answer to a request. If the caller disconnects, the handler is cancelled.
        read_timeout_s: the longest time until the headers of a request are complete; 0 means no limit.
        write_timeout_s: a caller that reads no byte of its answer for this time is disconnected; 0 means no limit.
        idle: the idle connections of all servers of this process.
        cors: adds the headers for web pages to each answer; None if no page of another origin may call.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        read_timeout_s: float,
        write_timeout_s: float,
        idle: IdleConnections,
        cors: Cors | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._handler = handler
        self._read_timeout_s = read_timeout_s
        self._write_timeout_s = write_timeout_s
        self._idle = idle
        self._cors = cors
        self._connections: set[Connection] = set()

    def __call__(self) -> Connection:
        """Return the protocol of a new connection."""
        return Connection(
            self._handler,
            idle=self._idle,
            connections=self._connections,
            read_timeout_s=self._read_timeout_s,
            write_timeout_s=self._write_timeout_s,
            cors=self._cors,
        )

    async def close_idle(self) -> None:
        """Close the connections that wait for their next request.

        A new connection gets a moment to send its first request.
        """
        until_s = self._loop.time() + _FRESH_S
        checks = 0
        while self._loop.time() < until_s or checks < _FEWEST_CHECKS:
            checks += 1
            for connection in list(self._connections):
                connection.close_if_idle()
            if not any(connection.is_fresh for connection in self._connections):
                return
            await asyncio.sleep(0.01)

    async def close_gracefully(self, limit_s: float) -> None:
        """Close all connections. A connection is not reset if its caller closes its side in time.

        Args:
            limit_s: the time for callers that have not read their whole answer yet; 0 means no limit.
        """
        started_s = self._loop.time()
        checks = 0
        while self._connections:
            checks += 1
            for connection in list(self._connections):
                connection.half_close()
            wait_s = _CLOSE_S
            if any(connection.is_lingering for connection in self._connections):
                wait_s = SHORT_LINGER_S
            if any(connection.is_blocked for connection in self._connections):
                wait_s = limit_s or math.inf
            if self._loop.time() > started_s + wait_s and checks >= _FEWEST_CHECKS:
                break
            await asyncio.sleep(0.005)
        for connection in list(self._connections):
            connection.close()

    async def shutdown(self, limit_s: float) -> None:
        """Wait at most ``limit_s`` for the handlers, cancel those that still run, and close all connections."""
        tasks = [connection.task for connection in self._connections if connection.task is not None]
        if tasks:
            _, running = await asyncio.wait(tasks, timeout=limit_s)
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running, timeout=limit_s)
        for connection in list(self._connections):
            connection.close()
