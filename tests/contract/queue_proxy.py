"""A replacement for Knative's queue-proxy, the container that passes every request to the container of the function.

The facts are from ``knative/serving``: ``pkg/queue/breaker.go`` and ``sharedmain/main.go`` (places, queue, idle
connections), ``pkg/http/handler/timeout.go`` (504 and the end of the connection to the function).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp import ClientError, web
from reverse_proxy import ReverseProxy, caller_of
from yarl import URL


class QueueProxy(ReverseProxy):
    """The queue-proxy of one pod.

    Args:
        function_port: the port of the function.
        concurrency: ``containerConcurrency``. Ten times as many requests may wait. All others are answered 503.
    """

    def __init__(self, function_port: int, *, concurrency: int = 1) -> None:
        super().__init__()
        self._function = f"http://127.0.0.1:{function_port}"
        self._concurrency = concurrency
        self._places = asyncio.Semaphore(concurrency)
        self.waiting = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.waiting >= 10 * self._concurrency:
            return web.Response(status=503, text="pending request queue full\n")
        try:
            async with self.bounded(None):
                return await self._in_turn(request)
        except TimeoutError:
            return web.Response(status=504, text="request timeout")
        except ClientError as error:
            return web.Response(status=502, text=f"{error!r}\n")

    async def _in_turn(self, request: web.BaseRequest) -> web.StreamResponse:
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        try:
            return await self._forward(request)
        finally:
            # The place is free even if the script still runs, so the next request is sent now.
            self._places.release()

    async def _forward(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = request.headers.copy()
        for name in ("Connection", "Transfer-Encoding"):
            headers.popall(name, None)
        headers["X-Forwarded-For"] = caller_of(request)[0]
        headers["Forwarded"] = f"for={caller_of(request)[0]}"
        body = _body(request) if request.body_exists else None
        return await self.forward(request, URL(self._function + request.raw_path, encoded=True), headers, body)


async def _body(request: web.BaseRequest) -> AsyncIterator[bytes]:
    """Yield the body. Ask the caller for it only when the function has asked for it."""
    if "Expect" in request.headers:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    async for piece in request.content.iter_any():
        yield piece
