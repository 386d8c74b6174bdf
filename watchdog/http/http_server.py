"""All connections of one port: how they are made, and how they end."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from .connection import LAST_WORDS_S, Connection, make_request
from .idle_connections import IdleConnections

_NO_LIMIT = 1 << 31  # limits of aiohttp's parser: ``Connection`` limits the sum
# A new connection may have its first request on its way.
_FRESH_S = 0.1
# After the last answer, for a caller's own end, or for the rest of a body that is refused.
_GOODBYE_S = 0.1
# On a machine that stands still at times, seconds say little: a turn of the loop reads what has come.
_FEWEST_LOOKS = 10
# A caller that is answered early (401, 413, 429) may send the rest for so long: a reset could take the answer from it.
_LINGER_S = 30.0
# Much longer than any proxy keeps an idle connection (Knative's queue-proxy: 90 s): a POST that meets its end on its
# way is not sent again.
_KEEP_ALIVE_S = 3600.0


class HttpServer(web.Server):
    """A server of one handler. A caller that disconnects cancels it.

    Args:
        read_timeout_s: the longest time for a request's headers; 0 is no limit.
        write_timeout_s: the longest time for which a caller takes nothing; 0 is no limit.
        idle: the connections of all servers of this process that have no request.
        options: of aiohttp's ``RequestHandler``, in the place of those chosen here.
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
            # `input/inflate.py` decodes: it bounds a bomb and notices a gzip stream that is cut off.
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
        """Close the connections that wait for a next request; those new ones whose first is on its way get a moment."""
        until_s = self._loop.time() + _FRESH_S
        looks = 0
        while self._loop.time() < until_s or looks < _FEWEST_LOOKS:
            looks += 1
            for connection in self._ours():
                connection.close_if_idle()
            if not any(connection.is_fresh for connection in self._ours()):
                return
            await asyncio.sleep(0.01)

    async def say_goodbye(self, limit_s: float) -> None:
        """Close all connections, each in a way that does not reset it, as far as the callers do their part in time.

        Args:
            limit_s: for callers that have not taken all of their answer yet; 0 is no limit.
        """
        started_s = self._loop.time()
        looks = 0
        while ours := self._ours():
            looks += 1
            for connection in ours:
                connection.half_close()
            patience_s = _GOODBYE_S
            if any(connection.is_lingering for connection in ours):
                patience_s = LAST_WORDS_S
            if any(connection.has_unsent_bytes for connection in ours):
                patience_s = limit_s or math.inf
            if self._loop.time() > started_s + patience_s and looks >= _FEWEST_LOOKS:
                break
            await asyncio.sleep(0.005)
        for connection in self._ours():
            # aiohttp's own shutdown would wait for the callers' next requests.
            connection.force_close()

    def _ours(self) -> list[Connection]:
        return [connection for connection in self.connections if isinstance(connection, Connection)]
