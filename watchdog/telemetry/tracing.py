"""Check the caller's trace context, and make spans for an OpenTelemetry collector.

::

    caller ── traceparent ──> Trace ──────> TRACEPARENT of the script, trace_id of the log
                                └─ spans ─> the SDK's queue ─> its thread ─> OTLP over HTTP ─> collector

Without ``OTEL_EXPORTER_OTLP_ENDPOINT`` nothing of OpenTelemetry is imported, and a trace only passes on what the caller
sent. With it, a call is a span of kind SERVER, and each of its phases is a child of that span. The script's
``TRACEPARENT`` names the span of the phase that runs the script. The SDK samples and sends spans; its own ``OTEL_*``
variables configure it.

The checks follow W3C Trace Context, sections 3.2 (``traceparent``) and 3.3 (``tracestate``). Attributes have the names
of OpenTelemetry's semantic conventions for HTTP servers, FaaS, processes and CloudEvents. Other attributes are named
``watchdog.`` and their name in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .. import __version__

if TYPE_CHECKING:
    from multidict import MultiMapping
    from opentelemetry.trace import Span, Tracer

_log = logging.getLogger("tracing")

# Version 00 has four fields and no more, a later one may have more; ff is none (section 3.2.2, 4.3 on later ones).
_TRACEPARENT = re.compile(
    r"(?:(00)|(?!00|ff)[0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?(1)|(?:-[!-~]*)?)"
)
_TRACESTATE_MEMBER = re.compile(
    r"(?:[a-z0-9][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    r"=[ -+\--<>-~]{0,255}[!-+\--<>-~]"
)
_MOST_TRACESTATE_MEMBERS = 32
_SAMPLED = 0x01
_RANDOM_TRACE_ID = 0x02  # level 2 of the standard
_SDK_SAYS = ("opentelemetry", "urllib3")
_SAY_INTERVAL_S = 60.0
_STOP_S = 2.0
_LONGEST_TEXT = 1024
_ATTRIBUTES = {
    "call_id": "faas.invocation_id",
    "exit_code": "process.exit.code",
    "ce_id": "cloudevents.event_id",
    "ce_source": "cloudevents.event_source",
    "ce_type": "cloudevents.event_type",
}
_NO_ATTRIBUTES = frozenset({"trace_id", "traceparent"})  # the span has them anyway


def start(environ: Mapping[str, str], service_name: str) -> Tracing:
    """Get ready to send spans, if the environment says where to; else, or if that cannot be, to send none.

    Never raises: why there are none although an endpoint is set is told in one WARNING.

    Args:
        environ: this process's environment, which the SDK reads too.
        service_name: what spans are told to come from, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES says so.
    """
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    is_disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not endpoint or is_disabled or environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return Tracing()
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol and protocol.strip() != "http/protobuf":
        _log.warning(
            "traces are off: OTEL_EXPORTER_OTLP_PROTOCOL is %s, and spans are sent as http/protobuf only; "
            "set it so, and the endpoint to the collector's port for it, which is 4318 as a rule",
            protocol,
        )
        return Tracing()
    try:
        return _Recording(service_name)
    except ImportError as error:
        _log.warning(
            "traces are off: OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed (%s); "
            "install it with pip install 'oscar-watchdog[otel]', or unset the endpoint",
            error,
        )
    except Exception as error:  # a bad value of one of the SDK's own variables, a certificate that is not there
        _log.warning("traces are off: the OpenTelemetry SDK does not start: %s", _without_secrets(str(error)))
    return Tracing()


class Tracing:
    """Makes the traces of calls. This one sends no spans."""

    def call(self, method: str, path: str, headers: MultiMapping[str]) -> Trace:
        """The trace of a call that begins now; ``path``: without the query, which may hold a token."""
        traceparent, tracestate = caller_context(headers)
        return Trace(traceparent, tracestate) if traceparent else NO_TRACE

    async def stop(self) -> None:
        """Send what is left of the spans, for two seconds at most. No call may come afterwards."""


class Phase:
    """A part of a call, as a context manager: what it raises is why the phase failed. This one is not recorded."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def process_ended(self, exit_code: int | None, signal: str | None) -> None:
        """How the process ended that was this phase."""


class Trace:
    """The trace of one call. This one is not recorded: the caller's context is handed on as it came.

    ``traceparent``, ``tracestate``: valid, or ""; of the current phase, if spans are recorded.
    """

    __slots__ = ("traceparent", "tracestate")

    def __init__(self, traceparent: str = "", tracestate: str = "") -> None:
        self.traceparent = traceparent
        self.tracestate = tracestate

    @property
    def variables(self) -> dict[str, str]:
        """For the script's environment."""
        variables = {"TRACEPARENT": self.traceparent, "TRACESTATE": self.tracestate}
        return {name: value for name, value in variables.items() if value}

    @property
    def fields(self) -> dict[str, str]:
        """For log events."""
        if not self.traceparent:
            return {}
        return {"trace_id": self.traceparent.split("-")[1], "traceparent": self.traceparent}

    def phase(self, name: str) -> Phase:
        """A phase of the call; one after another, never one in another."""
        return _NO_PHASE

    def note(self, fields: Mapping[str, object]) -> None:
        """Fields of the event that the log has of the call."""

    def failed(self, error: BaseException) -> None:
        """Why the call is answered as it is."""

    def end(self, code: int) -> None:
        """The call is answered with this status; 499 stands for a caller that went away."""


_NO_PHASE = Phase()
NO_TRACE = Trace()


def caller_context(headers: MultiMapping[str]) -> tuple[str, str]:
    """The caller's ``traceparent`` and ``tracestate``; both "" without a valid ``traceparent``."""
    parents = headers.getall("traceparent", ())
    # Of two, none can be trusted.
    if len(parents) != 1 or not _TRACEPARENT.fullmatch(parents[0]):
        return "", ""
    return parents[0], _tracestate(headers.getall("tracestate", ()))


def _tracestate(values: Sequence[str]) -> str:
    """Several headers are one list; a list with anything wrong in it counts as none."""
    members = [member for value in values for each in value.split(",") if (member := each.strip(" \t"))]
    keys = {member.partition("=")[0] for member in members}
    if len(members) > _MOST_TRACESTATE_MEMBERS or len(keys) != len(members):
        return ""
    return ",".join(members) if all(map(_TRACESTATE_MEMBER.fullmatch, members)) else ""


# ---- Recorded by the OpenTelemetry SDK ----


class _Recording(Tracing):
    """Makes traces whose spans the SDK sends, in batches, from a thread of its own."""

    def __init__(self, service_name: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        _say_seldom()
        resource = Resource.create()
        given = resource.attributes
        if str(given.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: service_name}))
        if SERVICE_VERSION not in given:
            resource = resource.merge(Resource({SERVICE_VERSION: __version__}))
        # Its own handler for the end of the process would wait for a collector that hangs.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("oscar-watchdog", __version__)

    def call(self, method: str, path: str, headers: MultiMapping[str]) -> Trace:
        try:
            return self._recorded(method, path, headers)
        except Exception as error:
            _tell_of(error)
            return super().call(method, path, headers)

    def _recorded(self, method: str, path: str, headers: MultiMapping[str]) -> Trace:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, set_span_in_context

        # Never the context of the task: aiohttp serves many calls in the task of one connection.
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
            with contextlib.suppress(RuntimeError):  # nobody waits any more: the loop is closed
                loop.call_soon_threadsafe(stopped.set_result, None)

        try:
            # Not the loop's own threads, for whose end the process waits.
            threading.Thread(target=shut_down, name="tracing-stop", daemon=True).start()
        except RuntimeError:  # no thread can be started now
            return
        done, _ = await asyncio.wait({stopped}, timeout=_STOP_S)
        if not done:
            _log.warning("spans of the last calls are lost: the collector did not take them in %g s", _STOP_S)


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
        """What is told to others is this span, or the call's."""
        context = (span or self._span).get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        self.tracestate = context.trace_state.to_header()

    def phase(self, name: str) -> Phase:
        return _RecordedPhase(self, name)

    def child(self, name: str) -> Span | None:
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        try:
            return self._tracer.start_span(name, set_span_in_context(self._span, Context()))
        except Exception as error:
            _tell_of(error)
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
            # Cancelled is not failed: the caller went away, as the call's span tells.
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
    """The caller's span, for a parent; both are valid, or ""."""
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
    from opentelemetry.trace.span import TraceState

    if (match := _TRACEPARENT.fullmatch(traceparent)) is None:
        return None
    _, trace_id, span_id, flags = match.groups()
    state = TraceState.from_header([tracestate]) if tracestate else None
    known_flags = TraceFlags(int(flags, 16) & (_SAMPLED | _RANDOM_TRACE_ID))
    return NonRecordingSpan(SpanContext(int(trace_id, 16), int(span_id, 16), True, known_flags, state))


def _set_error(span: Span, kind: str, text: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, _clean(text) or None))


def _value(value: object) -> str | bool | int | float:
    return value if isinstance(value, bool | int | float) else _clean(str(value))


def _clean(text: str) -> str:
    """Bounded, and UTF-8: bytes of a caller that are not would keep the SDK from sending the whole batch."""
    return text[:_LONGEST_TEXT].encode("utf-8", "backslashreplace").decode()


def _tell_of(error: Exception) -> None:
    """A span is not begun, by the SDK or by a sampler that is the user's own: no reason for a call to fail."""
    logging.getLogger(_SDK_SAYS[0]).warning("a span cannot be begun: %r", error)


def _say_seldom() -> None:
    """Let what the SDK and its HTTP client log through as one WARNING a minute, without any traceback."""
    handler = _Seldom()
    for name in _SDK_SAYS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False


class _Seldom(logging.Handler):
    """A collector that is away is an error of each batch, with a traceback at times."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._next_s = 0.0
        self._silenced = 0

    def emit(self, record: logging.LogRecord) -> None:
        now_s = time.monotonic()
        if now_s < self._next_s:
            self._silenced += 1
            return
        self._next_s = now_s + _SAY_INTERVAL_S
        try:
            text = record.getMessage()
        except Exception:  # the format string does not fit its arguments
            text = str(record.msg)
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {record.exc_info[1]!r}"
        more = f" (and {self._silenced} such messages before)" if self._silenced else ""
        self._silenced = 0
        _log.warning("spans may be lost: %s%s", _without_secrets(text)[:_LONGEST_TEXT], more)


def _without_secrets(text: str) -> str:
    """Without what an endpoint's URL may hold: a password, a token in the query."""
    return re.sub(r"\?[^\s'\",)]+", "?…", re.sub(r"//[^/\s@'\"]+@", "//…@", text))
