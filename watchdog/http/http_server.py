"""Create and close all connections of one port."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from .connection import SHORT_LINGER_S, Connection, make_request
from .idle_connections import IdleConnections

_NO_LIMIT = 1 << 31  # turns off the limits of aiohttp's parser, because ``Connection`` limits the sum
# At a stop, a new connection gets this time, because its first request may be on its way.
_FRESH_S = 0.1
# At a stop, a caller that has its whole answer gets this time to close its connection.
_CLOSE_S = 0.1
# Each of these two waits has at least this number of checks. Each check lets the event loop read the bytes that have
# arrived. So no caller is cut off if the machine pauses for seconds.
_FEWEST_CHECKS = 10
# If a caller is answered before its body is complete (401, 413, 429), the server reads and discards the rest for this
# time. A reset could make the caller lose the answer.
_LINGER_S = 30.0
# Proxies close their idle connections much earlier (Knative's queue-proxy: after 90 s). If the server closes a
# connection while a POST is on its way, the proxy does not send this POST again.
_KEEP_ALIVE_S = 3600.0


class HttpServer(web.Server):
    """A server with one handler for all requests. If the caller disconnects, the handler is cancelled.

    Args:
        read_timeout_s: the longest time until the headers of a request are complete; 0 means no limit.
        write_timeout_s: a caller that reads no byte of its answer for this time is disconnected; 0 means no limit.
        idle: the idle connections of all servers of this process.
        options: options of aiohttp's ``RequestHandler``. They replace the options that this class sets.
    """

    def __init__(
        self,
        handler: Any,
        *,
        read_timeout_s: float,
        write_timeout_s: float,
        idle: IdleConnections | None = None,
        **options: Any,
    ) -> None:
        own_options = {
            "request_factory": make_request,
            "handler_cancellation": True,
            "lingering_time": _LINGER_S,
            "keepalive_timeout": _KEEP_ALIVE_S,
            "access_log": None,
            # `input/inflate.py` decodes bodies. It also limits their decoded size and detects a truncated gzip stream.
            "auto_decompress": False,
            "max_line_size": _NO_LIMIT,
            "max_field_size": _NO_LIMIT,
            "max_headers": _NO_LIMIT,
        }
        super().__init__(handler, **{**own_options, **options})
        self._read_timeout_s = read_timeout_s
        self._write_timeout_s = write_timeout_s
        self.idle = IdleConnections() if idle is None else idle

    def __call__(self) -> RequestHandler:
        return Connection(
            self,
            idle=self.idle,
            read_timeout_s=self._read_timeout_s,
            write_timeout_s=self._write_timeout_s,
            loop=self._loop,
            **self._kwargs,
        )

    async def close_idle(self) -> None:
        """Close the connections that wait for their next request.

        A new connection gets a moment to send its first request.
        """
        until_s = self._loop.time() + _FRESH_S
        checks = 0
        while self._loop.time() < until_s or checks < _FEWEST_CHECKS:
            checks += 1
            for connection in self._open_connections():
                connection.close_if_idle()
            if not any(connection.is_fresh for connection in self._open_connections()):
                return
            await asyncio.sleep(0.01)

    async def close_gracefully(self, limit_s: float) -> None:
        """Close all connections. A connection is not reset if its caller closes its side in time.

        Args:
            limit_s: the time for callers that have not read their whole answer yet; 0 means no limit.
        """
        started_s = self._loop.time()
        checks = 0
        while connections := self._open_connections():
            checks += 1
            for connection in connections:
                connection.half_close()
            wait_s = _CLOSE_S
            if any(connection.is_lingering for connection in connections):
                wait_s = SHORT_LINGER_S
            if any(connection.has_unsent_bytes for connection in connections):
                wait_s = limit_s or math.inf
            if self._loop.time() > started_s + wait_s and checks >= _FEWEST_CHECKS:
                break
            await asyncio.sleep(0.005)
        for connection in self._open_connections():
            # aiohttp's own shutdown would wait for the callers' next requests.
            connection.force_close()

    def _open_connections(self) -> list[Connection]:
        return [connection for connection in self.connections if isinstance(connection, Connection)]
