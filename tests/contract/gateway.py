"""A stand-in for OpenFaaS's gateway: does to a request what ``openfaas/faas`` does to it on its way to a function.

Its facts are those of ``gateway/handlers/forwarding_proxy.go`` and ``callid_middleware.go``: ``/function/NAME`` is cut
off, path and query stay, hop-by-hop headers go, every body goes on in chunks without a length, and the answer's
headers take the place of the gateway's own.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from typing import Self

from aiohttp import ClientError, ClientSession, ClientTimeout, web
from multidict import CIMultiDict
from yarl import URL

_HOP_HEADERS = (
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


class Gateway:
    """Serves on ``port`` of the loopback interface, in a thread, until the context ends.

    Args:
        function_port: where the one function listens, whatever name it is called by.
    """

    def __init__(self, function_port: int) -> None:
        self._function = f"http://127.0.0.1:{function_port}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
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

    async def _start(self) -> None:
        # As sent and as answered: the gateway neither decodes a body nor follows a redirect.
        self._client = ClientSession(
            auto_decompress=False,
            skip_auto_headers=("Accept", "Content-Type"),
            timeout=ClientTimeout(total=4 * _PATIENCE_S),
        )
        # A caller that goes away takes its request to the function with it.
        server = web.Server(self._handle, access_log=None, handler_cancellation=True)
        self._runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = int(self._runner.addresses[0][1])

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._client.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        own = CIMultiDict({"X-Start-Time": str(time.time_ns()), "X-Served-By": "openfaas-ce/stand-in"})
        headers = request.headers.copy()
        if "X-Call-Id" not in headers:
            headers["X-Call-Id"] = own["X-Call-Id"] = str(uuid.uuid4())
        headers["X-Start-Time"] = own["X-Start-Time"]
        for name in (*_HOP_HEADERS, "Host", "Content-Length"):
            headers.popall(name, None)
        headers.setdefault("X-Forwarded-Host", request.host)
        host, port = (request.transport or asyncio.Transport()).get_extra_info("peername")[:2]
        headers.setdefault("X-Forwarded-For", f"{host}:{port}")
        # What Go's client adds by itself.
        headers.setdefault("User-Agent", "Go-http-client/1.1")
        headers.setdefault("Accept-Encoding", "gzip")

        _, _, rest = request.raw_path.removeprefix("/function/").partition("/")
        query = f"?{request.raw_path.partition('?')[2]}" if "?" in request.raw_path else ""
        url = URL(f"{self._function}/{rest.partition('?')[0]}{query}", encoded=True)
        body = request.content.iter_any() if request.body_exists else None
        try:
            async with self._client.request(
                request.method, url, headers=headers, data=body, allow_redirects=False
            ) as answer:
                for name in answer.headers:
                    own.popall(name, None)
                own.extend((name, value) for name, value in answer.headers.items() if name not in _HOP_HEADERS)
                response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=own)
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
                await response.write_eof()
                return response
        except ClientError:
            return web.Response(status=502, headers=own)
