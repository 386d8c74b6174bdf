"""A replacement for OSCAR's manager. It changes a synchronous call in the same way as ``grycap/oscar``.

The facts are from ``pkg/handlers/run.go`` (the callers that may call), ``GetProxyDirector`` in
``pkg/backends/knative.go`` (the manager removes the path, keeps the query, and sets ``Host`` to the service),
``main.go`` (only POST, the time limit) and Go's ``httputil.ReverseProxy``, which the manager uses (headers, and
connections that end too early). Tokens of users are refused here, because an identity provider would have to confirm
them.
"""

from __future__ import annotations

import base64
import ctypes
import hmac
import os
from pathlib import Path

from aiohttp import ClientError, web
from reverse_proxy import ReverseProxy, caller_of, cut, drop_hop_headers, query_of
from yarl import URL

USER, PASSWORD = "oscar", "oscar-password"
_CLONE_NEWNET = 0x40000000


class OscarManager(ReverseProxy):
    """The manager of one service.

    Args:
        service, token: the name of the service, and the token that callers must send.
        pod_port: the port of the pod, on the loopback interface of ``network``.
        network: the network namespace of the pod (``/proc/PID/ns/net``), which only root may enter.
        limit_s: the longest time of a whole call.
    """

    def __init__(self, service: str, token: str, pod_port: int, *, network: Path, limit_s: float = 300) -> None:
        super().__init__()
        self._service = service
        self._token = token
        self._pod = f"http://127.0.0.1:{pod_port}"
        self._network = network
        self._limit_s = limit_s

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run(self) -> None:
        # The callers are in the network of the test. The pod has its own network.
        descriptor = os.open(self._network, os.O_RDONLY | os.O_CLOEXEC)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(descriptor, _CLONE_NEWNET) != 0:  # only for this thread
                raise OSError(ctypes.get_errno(), "the network of the pod cannot be entered")
        finally:
            os.close(descriptor)
        super().run()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
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
            async with self.bounded(self._limit_s):
                return await self._forward(request)
        except TimeoutError:
            # The time limits for reading from and writing to the caller end together, so nothing more is sent.
            return cut(request)
        except ClientError:
            return web.Response(status=502)

    async def _forward(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = request.headers.copy()
        drop_hop_headers(headers)
        headers["Host"] = f"{self._service}.oscar-svc"
        headers["X-Forwarded-For"] = ", ".join([*headers.popall("X-Forwarded-For", []), caller_of(request)[0]])
        headers.setdefault("Accept-Encoding", "gzip")  # Go's client adds this header
        url = URL(f"{self._pod}/{query_of(request)}", encoded=True)
        body = request.content.iter_any() if request.body_exists else None
        return await self.forward(request, url, headers, body)
