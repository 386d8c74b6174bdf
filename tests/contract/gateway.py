"""A replacement for OpenFaaS's gateway. It changes a request in the same way as ``openfaas/faas``.

The facts are from ``gateway/handlers/forwarding_proxy.go`` and ``callid_middleware.go``. The gateway removes
``/function/NAME`` and hop-by-hop headers, and keeps the rest of the path and the query. It sends every body in chunks
without a length. The headers of the answer replace those of the gateway.
"""

from __future__ import annotations

import time
import uuid

from aiohttp import ClientError, web
from multidict import CIMultiDict
from reverse_proxy import ReverseProxy, caller_of, drop_hop_headers, query_of
from yarl import URL


class Gateway(ReverseProxy):
    """The gateway of one function.

    Args:
        function_port: the port of the function. The function may have any name.
    """

    def __init__(self, function_port: int) -> None:
        super().__init__()
        self._function = f"http://127.0.0.1:{function_port}"

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        own = CIMultiDict({"X-Start-Time": str(time.time_ns()), "X-Served-By": "openfaas-ce/stand-in"})
        headers = request.headers.copy()
        if "X-Call-Id" not in headers:
            headers["X-Call-Id"] = own["X-Call-Id"] = str(uuid.uuid4())
        headers["X-Start-Time"] = own["X-Start-Time"]
        drop_hop_headers(headers)
        # A body without a length is sent in chunks.
        for name in ("Host", "Content-Length"):
            headers.popall(name, None)
        headers.setdefault("X-Forwarded-Host", request.host)
        headers.setdefault("X-Forwarded-For", ":".join(map(str, caller_of(request))))
        # Go's client adds this header.
        headers.setdefault("User-Agent", "Go-http-client/1.1")
        headers.setdefault("Accept-Encoding", "gzip")

        _, _, path = request.raw_path.partition("?")[0].removeprefix("/function/").partition("/")
        url = URL(f"{self._function}/{path}{query_of(request)}", encoded=True)
        body = request.content.iter_any() if request.body_exists else None
        try:
            return await self.forward(request, url, headers, body, own)
        except ClientError:
            return web.Response(status=502, headers=own)
