"""Record spans with the OpenTelemetry SDK, which sends them.

This module is imported only if the environment names a collector.

A call is a span of kind SERVER, and each of its phases is a child of that span. The script's ``TRACEPARENT`` has the
span of the phase that runs the script. The names of attributes are those of OpenTelemetry's semantic conventions for
HTTP servers, FaaS, processes and CloudEvents. If the conventions have no name for an attribute, its name is
``watchdog.`` and then its name in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)
from opentelemetry.trace.span import TraceState

from .. import __version__
from .otel_log import LONGEST_TEXT, log_of_sdk, report_seldom
from .trace_context import TRACEPARENT, caller_context
from .tracing import Phase, Trace, Tracing

if TYPE_CHECKING:
    from multidict import MultiMapping

_log = logging.getLogger("tracing")

_SAMPLED = 0x01
_RANDOM_TRACE_ID = 0x02  # a flag that level 2 of W3C Trace Context defines
_STOP_S = 2.0
_ATTRIBUTES = {
    "call_id": "faas.invocation_id",
    "exit_code": "process.exit.code",
    "ce_id": "cloudevents.event_id",
    "ce_source": "cloudevents.event_source",
    "ce_type": "cloudevents.event_type",
}
_NO_ATTRIBUTES = frozenset({"trace_id", "traceparent"})  # a span has these values already


class Recording(Tracing):
    """A ``Tracing`` whose spans the SDK sends in batches, from a thread of the SDK."""

    def __init__(self, service_name: str) -> None:
        report_seldom()
        resource = Resource.create()
        given = resource.attributes
        if str(given.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: service_name}))
        if SERVICE_VERSION not in given:
            resource = resource.merge(Resource({SERVICE_VERSION: __version__}))
        # The SDK's handler for the end of the process would wait for a collector that hangs.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("oscar-watchdog", __version__)

    def call(self, method: str, path: str, headers: MultiMapping[str]) -> Trace:
        try:
            return self._recorded(method, path, headers)
        except Exception as error:
            _report(error)
            return super().call(method, path, headers)

    def _recorded(self, method: str, path: str, headers: MultiMapping[str]) -> Trace:
        # Only the headers name a parent. A span that another part of the program has made current does not count.
        context = Context()
        if caller := _span_of(*caller_context(headers)):
            context = set_span_in_context(caller, context)
        attributes = {
            "http.request.method": method,
            "url.scheme": "http",
            "url.path": _clean(path),
        }
        if user_agent := headers.get("User-Agent"):
            attributes["user_agent.original"] = _clean(user_agent)
        return _RecordedTrace(
            self._tracer, self._tracer.start_span(method, context, SpanKind.SERVER, attributes=attributes)
        )

    async def stop(self) -> None:
        loop = asyncio.get_running_loop()
        stopped = loop.create_future()

        def shut_down() -> None:
            with contextlib.suppress(Exception):
                self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop is closed, so stop() does not wait any more
                loop.call_soon_threadsafe(stopped.set_result, None)

        try:
            # Do not use a thread of the event loop: the process would wait for the end of this thread.
            threading.Thread(target=shut_down, name="tracing-stop", daemon=True).start()
        except RuntimeError:  # no thread can be started now
            return
        done, _ = await asyncio.wait({stopped}, timeout=_STOP_S)
        if not done:
            _log.warning("spans of the last calls are lost: the collector did not accept them in %g s", _STOP_S)


class _RecordedTrace(Trace):
    __slots__ = ("_error", "_noted", "_span", "_tracer")

    def __init__(self, tracer: Tracer, span: Span) -> None:
        super().__init__()
        self._tracer = tracer
        self._span = span
        self._noted: Mapping[str, object] = {}
        self._error: BaseException | None = None
        self.point_at(span)

    def point_at(self, span: Span | None) -> None:
        """Give this span to the script and the log as the current one. None means the span of the call."""
        context = (span or self._span).get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        self.tracestate = context.trace_state.to_header()

    def phase(self, name: str) -> Phase:
        return _RecordedPhase(self, name)

    def child(self, name: str) -> Span | None:
        try:
            return self._tracer.start_span(name, set_span_in_context(self._span, Context()))
        except Exception as error:
            _report(error)
            return None

    def note(self, fields: Mapping[str, object]) -> None:
        self._noted = fields
        for name, value in fields.items():
            if value is not None and name not in _NO_ATTRIBUTES:
                self._span.set_attribute(_ATTRIBUTES.get(name, f"watchdog.{name}"), _value(value))

    def failed(self, error: BaseException) -> None:
        self._error = error

    def end(self, code: int) -> None:
        self._span.set_attribute("http.response.status_code", code)
        if code >= 500:
            outcome = self._noted.get("outcome")
            kind = type(self._error).__name__ if self._error is not None else str(code)
            reason = self._noted.get("reason") or self._error or ""
            _set_error(self._span, kind if outcome in (None, "ok") else str(outcome), str(reason))
        self._span.end()


class _RecordedPhase(Phase):
    __slots__ = ("_name", "_span", "_trace")

    def __init__(self, trace: _RecordedTrace, name: str) -> None:
        self._trace = trace
        self._name = name
        self._span: Span | None = None

    def __enter__(self) -> Self:
        self._span = self._trace.child(self._name)
        self._trace.point_at(self._span)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._trace.point_at(None)
        if self._span is not None:
            # A cancelled phase has not failed: the caller disconnected, and the call's span shows that.
            if isinstance(error, Exception):
                _set_error(self._span, type(error).__name__, str(error))
            self._span.end()

    def process_ended(self, exit_code: int | None, signal: str | None) -> None:
        if self._span is None:
            return
        if exit_code is not None:
            self._span.set_attribute(_ATTRIBUTES["exit_code"], exit_code)
        if signal is not None:
            self._span.set_attribute("watchdog.signal", signal)
        if exit_code or signal is not None:
            _set_error(self._span, signal or f"exit code {exit_code}", "")


def _span_of(traceparent: str, tracestate: str) -> Span | None:
    """Return the caller's span, for use as a parent; None if there is no such span. Both arguments are valid, or ""."""
    if (match := TRACEPARENT.fullmatch(traceparent)) is None:
        return None
    _, trace_id, span_id, flags = match.groups()
    state = TraceState.from_header([tracestate]) if tracestate else None
    known_flags = TraceFlags(int(flags, 16) & (_SAMPLED | _RANDOM_TRACE_ID))
    return NonRecordingSpan(SpanContext(int(trace_id, 16), int(span_id, 16), True, known_flags, state))


def _set_error(span: Span, kind: str, text: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, _clean(text) or None))


def _value(value: object) -> str | bool | int | float:
    return value if isinstance(value, bool | int | float) else _clean(str(value))


def _clean(text: str) -> str:
    """Return a text of bounded length that is valid UTF-8. Otherwise the SDK could not send the whole batch."""
    return text[:LONGEST_TEXT].encode("utf-8", "backslashreplace").decode()


def _report(error: Exception) -> None:
    """Log that the SDK or the user's own sampler could not start a span. The call goes on without the span."""
    log_of_sdk.warning("a span cannot be started: %r", error)
