"""A stand-in for OSCAR's manager: does to a synchronous call what ``grycap/oscar`` does to it on its way to a pod.

Its facts are those of ``pkg/handlers/run.go`` (who may call), ``GetProxyDirector`` in ``pkg/backends/knative.go`` (the
path is dropped, the query stays, ``Host`` is the service's), ``main.go`` (only POST, the bound on time) and of Go's
``httputil.ReverseProxy``, which it is made of (headers, and what becomes of a connection that ends too early). Tokens
of users, which their identity provider would have to confirm, are refused here.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import hmac
import os
import socket
import threading
from pathlib import Path
from typing import Self

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web
from multidict import CIMultiDict
from yarl import URL

USER, PASSWORD = "oscar", "oscar-password"
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
_CLONE_NEWNET = 0x40000000


class OscarManager:
    """Serves on ``port`` of the loopback interface, in a thread, until the context ends.

    Args:
        service, token: of the one service that there is.
        pod_port: where its pod listens, on the loopback interface of ``network``.
        network: the network namespace of the pod (``/proc/PID/ns/net``), which only root may enter.
        limit_s: how long a call may take in all.
    """

    def __init__(self, service: str, token: str, pod_port: int, *, network: Path, limit_s: float = 300) -> None:
        self._service = service
        self._token = token
        self._pod = f"http://127.0.0.1:{pod_port}"
        self._network = network
        self._limit_s = limit_s
        # Of the calls under way, in the order in which they came.
        self._bounds: list[asyncio.Timeout] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        # A socket stays in the network in which it was made: callers are here, the pod is in its own.
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(_PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(_PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE_S)
        self._loop.close()

    def let_the_oldest_reach_the_limit(self) -> None:
        """As if ``limit_s`` had just passed for it."""
        self._loop.call_soon_threadsafe(lambda: self._bounds[0].reschedule(self._loop.time()))

    def _run(self) -> None:
        descriptor = os.open(self._network, os.O_RDONLY | os.O_CLOEXEC)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(descriptor, _CLONE_NEWNET) != 0:  # for this thread alone
                raise OSError(ctypes.get_errno(), "the network of the pod cannot be entered")
        finally:
            os.close(descriptor)
        self._loop.run_forever()

    async def _start(self) -> None:
        self._client = ClientSession(
            connector=TCPConnector(limit=0, keepalive_timeout=90),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            timeout=ClientTimeout(total=None),
        )
        # A caller that goes away takes its request to the pod with it.
        server = web.Server(self._handle, access_log=None, handler_cancellation=True)
        self._runner = web.ServerRunner(server, shutdown_timeout=1)
        await self._runner.setup()
        await web.SockSite(self._runner, self._listener).start()

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._client.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        match request.method, request.path.split("/"):
            case "GET", ["", "system", "services", name]:
                return self._read_service(request, name)
            case "POST", ["", "run", name]:
                return await self._run_service(request, name)
        return web.Response(status=404, text="404 page not found")

    def _read_service(self, request: web.BaseRequest, name: str) -> web.Response:
        expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if not hmac.compare_digest(request.headers.get("Authorization", ""), expected):
            return web.Response(status=401)
        if name != self._service:
            return web.Response(status=404)
        return web.json_response({"name": name, "token": self._token})

    async def _run_service(self, request: web.BaseRequest, name: str) -> web.StreamResponse:
        if name != self._service:
            return web.Response(status=404)
        _, *tokens = request.headers.get("Authorization", "").split("Bearer ")
        if len(tokens) != 1 or tokens[0].strip() != self._token:
            return web.Response(status=401)
        try:
            async with asyncio.timeout(self._limit_s) as bound:
                self._bounds.append(bound)
                try:
                    return await self._forward(request)
                finally:
                    self._bounds.remove(bound)
        except TimeoutError:
            # Deadlines of the caller's connection for reading and writing end together: nothing more is sent.
            return self._cut(request)
        except ClientError:
            return web.Response(status=502)

    async def _forward(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = request.headers.copy()
        _drop_hop_headers(headers)
        headers["Host"] = f"{self._service}.oscar-svc"
        assert request.transport is not None
        forwarded_for = [*headers.popall("X-Forwarded-For", []), request.transport.get_extra_info("peername")[0]]
        headers["X-Forwarded-For"] = ", ".join(forwarded_for)
        headers.setdefault("Accept-Encoding", "gzip")  # Go's client adds it by itself
        query = f"?{request.raw_path.partition('?')[2]}" if "?" in request.raw_path else ""
        url = URL(f"{self._pod}/{query}", encoded=True)
        body = request.content.iter_any() if request.body_exists else None
        async with self._client.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        ) as answer:
            headers = answer.headers.copy()
            _drop_hop_headers(headers)
            response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
            await response.prepare(request)
            try:
                async for piece in answer.content.iter_any():
                    await response.write(piece)
            except ClientError:
                return self._cut(request)
            await response.write_eof()
            return response

    def _cut(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()


def _drop_hop_headers(headers: CIMultiDict[str]) -> None:
    named = [name.strip() for value in headers.getall("Connection", []) for name in value.split(",")]
    for name in (*_HOP_HEADERS, *named):
        headers.popall(name, None)
