"""What the stand-ins for the platforms' proxies share: a proxy on the loopback interface, in a thread of its own.

The real ones are made of Go's ``httputil.ReverseProxy`` or of its ``http.Client``: bodies pass as they come and as they
are, no redirect is followed, and a caller that goes away takes its request to the function with it.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Mapping
from typing import Self

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web
from multidict import CIMultiDict
from yarl import URL

HOP_HEADERS = (
    "Connection",
    "Proxy-Connection",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
)
_PATIENCE_S = 15


class ReverseProxy(abc.ABC):
    """Serves on ``port`` of the loopback interface until the context ends. Who extends it answers in ``handle``."""

    def __init__(self) -> None:
        # Of the requests under way that are bounded, in the order in which they came.
        self._bounds: list[asyncio.Timeout] = []
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.run)
        # A socket stays in the network in which it was made, wherever the thread goes.
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self.loop).result(_PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self.loop).result(_PATIENCE_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_PATIENCE_S)
        self.loop.close()

    @contextlib.asynccontextmanager
    async def bounded(self, limit_s: float | None) -> AsyncIterator[None]:
        """What takes longer than this (None: as long as it likes), or is let reach its limit, ends in TimeoutError."""
        async with asyncio.timeout(limit_s) as bound:
            self._bounds.append(bound)
            try:
                yield
            finally:
                self._bounds.remove(bound)

    def let_the_oldest_reach_its_limit(self) -> None:
        """As if its time had just passed."""
        self.loop.call_soon_threadsafe(lambda: self._bounds[0].reschedule(self.loop.time()))

    def run(self) -> None:
        """The thread."""
        self.loop.run_forever()

    @abc.abstractmethod
    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request."""

    async def forward(
        self,
        request: web.BaseRequest,
        url: URL,
        headers: CIMultiDict[str],
        body: AsyncIterator[bytes] | None,
        own_headers: Mapping[str, str] | None = None,
    ) -> web.StreamResponse:
        """Send a request on and its answer back, piece by piece.

        Args:
            own_headers: of the answer, where the function's has none of that name.

        Raises:
            ClientError: the function cannot be reached. An answer that ends too early does so for the caller as well.
        """
        async with self._client.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        ) as answer:
            headers = answer.headers.copy()
            drop_hop_headers(headers)
            for name, value in (own_headers or {}).items():
                headers.setdefault(name, value)
            response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
            await response.prepare(request)
            try:
                async for piece in answer.content.iter_any():
                    await response.write(piece)
            except ClientError:
                return cut(request)
            await response.write_eof()
            return response

    async def _start(self) -> None:
        # As many idle connections as there were requests at once, each for whoever comes next.
        self._client = ClientSession(
            connector=TCPConnector(limit=0, keepalive_timeout=90),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            timeout=ClientTimeout(total=None),
        )
        server = web.Server(self.handle, access_log=None, handler_cancellation=True)
        self._runner = web.ServerRunner(server, shutdown_timeout=1)
        await self._runner.setup()
        await web.SockSite(self._runner, self._listener).start()

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._client.close()


def drop_hop_headers(headers: CIMultiDict[str]) -> None:
    """Take out what concerns one connection only, those named by ``Connection`` included."""
    named = [name.strip() for value in headers.getall("Connection", []) for name in value.split(",")]
    for name in (*HOP_HEADERS, *named):
        headers.popall(name, None)


def cut(request: web.BaseRequest) -> web.Response:
    """End the caller's connection without another word."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def caller_of(request: web.BaseRequest) -> tuple[str, int]:
    """The address and the port of who sent it."""
    assert request.transport is not None
    host, port = request.transport.get_extra_info("peername")[:2]
    return host, port


def query_of(request: web.BaseRequest) -> str:
    """The query as it was sent, with its ``?``, or nothing."""
    _, mark, query = request.raw_path.partition("?")
    return mark + query
