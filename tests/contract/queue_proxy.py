"""A stand-in for Knative's queue-proxy, the container through which every request reaches the function's.

Its facts are those of ``knative/serving``: ``pkg/queue/breaker.go`` and ``sharedmain/main.go`` (places, queue, idle
connections), ``pkg/http/handler/timeout.go`` (504 and the end of the connection to the function).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Self

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web

_PATIENCE_S = 15


class QueueProxy:
    """Serves on ``port`` of the loopback interface, in a thread, until the context ends.

    Args:
        function_port: where the function listens.
        concurrency: ``containerConcurrency``; ten times as many wait, the rest is answered 503.
    """

    def __init__(self, function_port: int, *, concurrency: int = 1) -> None:
        self._function = f"http://127.0.0.1:{function_port}"
        self._concurrency = concurrency
        self._places = asyncio.Semaphore(concurrency)
        # Of the requests under way, in the order in which they came.
        self._bounds: list[asyncio.Timeout] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self.waiting = 0
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(_PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(_PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE_S)
        self._loop.close()

    def let_the_oldest_time_out(self) -> None:
        """As if ``timeoutSeconds`` had just passed for it."""
        self._loop.call_soon_threadsafe(lambda: self._bounds[0].reschedule(self._loop.time()))

    async def _start(self) -> None:
        # As many idle connections as places, each for whoever comes next.
        self._client = ClientSession(
            connector=TCPConnector(limit=0, keepalive_timeout=90),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            timeout=ClientTimeout(total=None),
        )
        # A caller that goes away takes its request to the function with it.
        server = web.Server(self._handle, access_log=None, handler_cancellation=True)
        self._runner = web.ServerRunner(server, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = int(self._runner.addresses[0][1])

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._client.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.waiting >= 10 * self._concurrency:
            return web.Response(status=503, text="pending request queue full\n")
        try:
            async with asyncio.timeout(None) as bound:
                self._bounds.append(bound)
                try:
                    return await self._in_turn(request)
                finally:
                    self._bounds.remove(bound)
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
            # Whatever became of the function's script: the place is free, and the next request is on its way.
            self._places.release()

    async def _forward(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = request.headers.copy()
        for name in ("Connection", "Transfer-Encoding"):
            headers.popall(name, None)
        host = (request.transport or asyncio.Transport()).get_extra_info("peername")[0]
        headers["X-Forwarded-For"] = host
        headers["Forwarded"] = f"for={host}"
        body = _body(request) if request.body_exists else None
        url = self._function + request.raw_path
        async with self._client.request(request.method, url, headers=headers, data=body) as answer:
            response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=answer.headers)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response


async def _body(request: web.BaseRequest) -> AsyncIterator[bytes]:
    """The body, asked for once the function has asked for it."""
    if "Expect" in request.headers:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    async for piece in request.content.iter_any():
        yield piece
