"""The common part of the proxies that replace those of the platforms: a proxy on the loopback interface, in a thread.

The real proxies use Go's ``httputil.ReverseProxy`` or ``http.Client``. They pass on each piece of a body unchanged as
soon as it arrives, and they do not follow redirects. If a caller disconnects, they cancel its request to the function.
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
    """Serves on ``port`` of the loopback interface until the context ends. A subclass answers in ``handle``."""

    def __init__(self) -> None:
        # The time limits of the current requests, in the order of their arrival.
        self._bounds: list[asyncio.Timeout] = []
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.run)
        # A socket stays in the network namespace in which it was made, even if the thread enters another one.
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
        """Raise TimeoutError if the context takes longer than ``limit_s`` (None means no limit).

        :meth:`let_the_oldest_reach_its_limit` has the same effect.
        """
        async with asyncio.timeout(limit_s) as bound:
            self._bounds.append(bound)
            try:
                yield
            finally:
                self._bounds.remove(bound)

    def let_the_oldest_reach_its_limit(self) -> None:
        """End the oldest wait as if its time had passed."""
        self.loop.call_soon_threadsafe(lambda: self._bounds[0].reschedule(self.loop.time()))

    def run(self) -> None:
        """Run the event loop in the thread."""
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
        """Send a request to the function and its answer to the caller, piece by piece.

        If the answer of the function ends too early, the answer to the caller also ends early.

        Args:
            own_headers: headers that are added to an answer without a header of this name.

        Raises:
            ClientError: the function cannot be reached.
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
        # There is no limit for idle connections. Any later request may use one of them.
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
    """Remove the headers that concern only one connection, and those that ``Connection`` names."""
    named = [name.strip() for value in headers.getall("Connection", []) for name in value.split(",")]
    for name in (*HOP_HEADERS, *named):
        headers.popall(name, None)


def cut(request: web.BaseRequest) -> web.Response:
    """Reset the connection of the caller."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def caller_of(request: web.BaseRequest) -> tuple[str, int]:
    """Return the address and the port of the caller."""
    assert request.transport is not None
    host, port = request.transport.get_extra_info("peername")[:2]
    return host, port


def query_of(request: web.BaseRequest) -> str:
    """Return the query as it was sent, with its ``?``; an empty text if there is none."""
    _, mark, query = request.raw_path.partition("?")
    return mark + query
