"""A stub of a Oneprovider's CDMI, after op-worker's public source.

It shows the requests of the backend. It does not prove that a Oneprovider would accept them.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import unquote

from aiohttp import web

from watchdog.settings.storage_providers import Provider

TOKEN = "token-of-tests"
SPACE = "plants"
_VERSION, _CONTAINER = "X-CDMI-Specification-Version", "application/cdmi-container"


@dataclass
class CdmiStub:
    """``files``, ``directories``: by path with the space. ``requests``: method and path of each.

    ``failures``: statuses or POSIX errors to answer before anything else. ``cut_at``: a body that is larger is cut off
    there.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    directories: set[str] = field(default_factory=lambda: {SPACE})
    requests: list[str] = field(default_factory=list)
    failures: list[int | str] = field(default_factory=list)
    cut_at: int | None = None
    endpoint: str = ""

    def provider(self, **fields: object) -> Provider:
        known = {"kind": "onedata", "id": "default", "endpoint": self.endpoint, "secret": TOKEN, "space": SPACE}
        return Provider(**{**known, **fields})  # type: ignore[arg-type]

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.raw_path}")
        assert request.raw_path.startswith("/cdmi/")
        path = unquote(request.raw_path.removeprefix("/cdmi/"))
        assert "//" not in path, "they would collapse"
        if request.headers.get("X-Auth-Token") != TOKEN:
            return web.json_response({"error": {"id": "unauthorized"}}, status=401)
        if self.failures:
            failure = self.failures.pop(0)
            return web.Response(status=failure) if isinstance(failure, int) else _posix_error(failure)
        if request.method == "PUT" and path.endswith("/"):
            return self._make(request, path.rstrip("/"))
        assert _VERSION not in request.headers, "the answer would be JSON"
        if request.method == "PUT":
            return await self._put(request, path)
        if path not in self.files:
            return _posix_error("enoent")
        if request.method == "GET":
            return web.Response(body=self.files[path])
        assert request.method == "DELETE"
        del self.files[path]
        return web.Response(status=204)

    def _make(self, request: web.BaseRequest, path: str) -> web.Response:
        assert request.headers[_VERSION] == "1.1.1"
        assert request.headers["Content-Type"] == _CONTAINER
        if path.rpartition("/")[0] not in self.directories:
            return _posix_error("enoent")
        self.directories.add(path)
        return web.json_response({}, status=201)

    async def _put(self, request: web.BaseRequest, path: str) -> web.Response:
        if path.rpartition("/")[0] not in self.directories:
            return _posix_error("enoent")
        is_new = path not in self.files
        self.files[path] = b""
        async for piece in request.content.iter_any():
            self.files[path] += piece
            if self.cut_at is not None and len(self.files[path]) > self.cut_at:
                assert request.transport is not None
                request.transport.abort()
                break
        return web.Response(status=201 if is_new else 204)


def _posix_error(name: str) -> web.Response:
    description = f"Operation failed with POSIX error: {name}."
    error = {"id": "posix", "details": {"errno": name}, "description": description}
    return web.json_response({"error": error}, status=400)


@contextlib.asynccontextmanager
async def cdmi_stub() -> AsyncIterator[CdmiStub]:
    stub = CdmiStub()
    runner = web.ServerRunner(web.Server(stub.handle), handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    (host, port), *_ = runner.addresses
    stub.endpoint = f"http://{host}:{port}"
    try:
        yield stub
    finally:
        await runner.cleanup()
