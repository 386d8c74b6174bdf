"""The paths of the server: probes, description, page, metrics. A request to any other path calls the function.

All paths below ``/_/`` belong to the server. So a mistyped ``/_/helth`` never calls the function.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import Unauthorized
from ..input.detect import ENCODINGS
from ..invocation.admission import DRAINING_RETRY_AFTER_S, Admission
from ..invocation.call import Record
from ..invocation.invocation import Invocations
from ..output.accept import AnswerForm
from ..settings.declarations import LOCAL_PROBE
from ..settings.load import Configuration
from ..system import threads
from ..telemetry.metrics import Metrics
from .authorization import Authorization
from .calls import Calls
from .health import Health
from .http_message import Request, Response
from .problems import STATUS_OF_ERROR, malformed, no_such_path, not_allowed, problem
from .request import METHODS, OWN_PATHS, READING_METHODS, is_probe, is_probe_of_kubernetes, without_base_path
from .response import Sender

if TYPE_CHECKING:
    from .cors import Cors

# Browsers and crawlers ask for these paths themselves, whatever the server is. Only GET and HEAD are special here.
_FOR_BROWSERS = frozenset({"/favicon.ico", "/robots.txt"})


class Routes:
    """Passes each request to the part of the server that answers it.

    Args:
        base_path: the prefix that the server removes from the path of each request.
        cors: the permission for web pages of other origins; None if there is none.
    """

    def __init__(
        self,
        configuration: Configuration,
        *,
        base_path: str,
        calls: Calls,
        invocations: Invocations,
        admission: Admission,
        metrics: Metrics,
        health: Health,
        authorization: Authorization,
        sender: Sender,
        cors: Cors | None,
    ) -> None:
        self._configuration = configuration
        self._base_path = base_path
        self._calls = calls
        self._invocations = invocations
        self._admission = admission
        self._metrics = metrics
        self._health = health
        self._authorization = authorization
        self._sender = sender
        self._cors = cors
        self._has_page = configuration.settings.page
        self._page: Response | None = None
        self._own: dict[str, Callable[[Request], Coroutine[Any, Any, None]]] = {
            "/_/health": self._send_health,
            "/_/ready": self._send_ready,
            "/_/openapi.json": self._send_description,
        }
        if self._has_page:
            self._own["/_/try"] = self._send_page
        self.metrics_port: int | None = None

    def answer(self, request: Request) -> Coroutine[Any, Any, None]:
        """Return the coroutine that answers a request.

        This function is not itself a coroutine, because one more coroutine would slow down each call.
        """
        if request.refused is not None:
            return self._sender.send(request, malformed(request.refused))
        path = without_base_path(self._base_path, request.path)
        if self._cors is not None and self._cors.allows_preflight(request):
            return self._sender.send(request, Response(204))  # the connection adds the headers
        if path.startswith(OWN_PATHS):
            return self._answer_own(request, path)
        if path in _FOR_BROWSERS and request.method in READING_METHODS:
            return self._sender.send(request, _for_browsers(path))
        if is_probe(request):
            return self._send_health(request)
        if request.method == "GET" and self._has_page and path == "/" and "Sec-Fetch-Mode" in request.headers:
            from . import page

            if page.is_navigation(request):
                return self._sender.send(request, page.redirect(self._base_path))
        if request.method not in METHODS:
            return self._sender.send(request, not_allowed(request, METHODS))
        return self._calls.answer(request)

    def _answer_own(self, request: Request, path: str) -> Coroutine[Any, Any, None]:
        """Return the coroutine that answers a request to a path of the server itself."""
        if (answer := self._own.get(path)) is not None:
            return answer(request)
        if is_probe_of_kubernetes(request):
            return self._send_health(request)
        return self._sender.send(request, no_such_path(request, path, [*self._own]))

    def _send_health(self, request: Request) -> Coroutine[Any, Any, None]:
        return self._sender.send(request, self._probe(request, is_ready=False))

    def _send_ready(self, request: Request) -> Coroutine[Any, Any, None]:
        return self._sender.send(request, self._probe(request, is_ready=True))

    def _send_page(self, request: Request) -> Coroutine[Any, Any, None]:
        return self._sender.send(request, self._page_for(request))

    async def answer_metrics(self, request: Request) -> None:
        """Answer a request to the port for metrics."""
        await self._sender.send(request, await self._exposition(request))

    async def _exposition(self, request: Request) -> Response:
        if request.refused is not None:
            return malformed(request.refused)
        if request.path != "/metrics":
            return Response.of_text(404, "metrics are at /metrics\n")
        if (refusal := await self._refusal_of_reader(request)) is not None:
            return refusal
        exposition = self._metrics.exposition
        body, content_type = await asyncio.get_running_loop().run_in_executor(threads.METRICS, exposition)
        return Response(200, [("Content-Type", content_type)], body)

    def _probe(self, request: Request, *, is_ready: bool) -> Response:
        if request.method not in READING_METHODS:
            return not_allowed(request, READING_METHODS)
        if request.headers.get("User-Agent") != LOCAL_PROBE:
            self._health.note_probe()
        status, text = self._health.status()
        if is_ready and status == 200:
            admission = self._admission
            if script_problem := self._invocations.function.problem:
                status, text = 503, script_problem
            elif not admission.has_free_place:
                status, text = 429, "no place is free"
            elif admission.is_full:
                status, text = 429, "no room for another call"
        headers = [("Retry-After", str(DRAINING_RETRY_AFTER_S))] if status == 503 else []
        return Response.of_text(status, text, headers)

    def _page_for(self, request: Request) -> Response:
        """Return the try-it page."""
        if request.method not in READING_METHODS:
            return not_allowed(request, READING_METHODS)
        if self._page is None:
            from .page import page

            self._page = page(self._configuration)
        return self._page

    async def _send_description(self, request: Request) -> None:
        refusal = await self._refusal_of_reader(request)
        await self._sender.send(request, self._description() if refusal is None else refusal)

    async def _refusal_of_reader(self, request: Request) -> Response | None:
        """Return the error if a request for the description or the metrics is rejected, else None."""
        if request.method not in READING_METHODS:
            return not_allowed(request, READING_METHODS)
        try:
            await self._authorization.check_reader(request)
        except Unauthorized as error:
            return problem(request, os.urandom(16).hex(), Record(), error, is_draining=self._health.is_draining)
        return None

    def _description(self) -> Response:
        """Return the description of the server in OpenAPI."""
        from .openapi.document import document
        from .openapi.interface import LIMITS, Interface

        settings = self._configuration.settings
        has_token = settings.auth_token is not None
        description = document(
            Interface(
                service_name=self._configuration.service_name,
                is_classic=settings.fprocess is not None,
                is_warm=bool(settings.warm),
                has_token=has_token,
                is_token_for_all=settings.auth_all,
                has_storage=self._invocations.stores or self._invocations.takes_events,
                methods=METHODS,
                errors=[
                    (status, title)
                    for kind, status, title in STATUS_OF_ERROR
                    if has_token or not issubclass(kind, Unauthorized)
                ],
                encodings=ENCODINGS,
                forms=[form.value for form in AnswerForm],
                content_type=settings.content_type,
                metrics_port=self.metrics_port,
                limits={name: getattr(settings, name) for name in LIMITS},
            )
        )
        return Response(200, [("Content-Type", "application/json")], msgspec.json.encode(description))


def _for_browsers(path: str) -> Response:
    """Return the answer to a request that no user has made. The function does not run."""
    if path == "/robots.txt":
        return Response.of_text(200, "User-agent: *\nDisallow: /\n")  # each visit of a crawler would be a call
    return Response(204, [("Cache-Control", "max-age=86400")])
