"""Pass the caller's trace context on, and mark the phases of a call, which may be recorded as spans.

::

    caller ── traceparent ──> Trace ──────> TRACEPARENT of the script, trace_id of the log
                                └─ spans ─> the SDK's queue ─> its thread ─> OTLP over HTTP ─> collector

These classes only pass on what the caller sent. The classes that also record spans are in ``otel_spans.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .trace_context import caller_context

if TYPE_CHECKING:
    from multidict import MultiMapping


class Tracing:
    """The maker of the traces of calls. This class sends no spans."""

    def call(self, method: str, path: str, headers: MultiMapping[str]) -> Trace:
        """Return the trace of a call that begins now. ``path``: without the query, which may have a token."""
        traceparent, tracestate = caller_context(headers)
        return Trace(traceparent, tracestate) if traceparent else NO_TRACE

    async def stop(self) -> None:
        """Send the remaining spans, for two seconds at most. No call may begin afterwards."""


class Phase:
    """A part of a call, as a context manager. If an error leaves the context, this error is the failure of the phase.

    This class records nothing.
    """

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def process_ended(self, exit_code: int | None, signal: str | None) -> None:
        """Note how the process of this phase ended."""


class Trace:
    """The trace of one call. This class records nothing, and passes the caller's context on unchanged.

    ``traceparent``, ``tracestate``: valid, or "". If spans are recorded, these are the values of the current phase.
    """

    __slots__ = ("traceparent", "tracestate")

    def __init__(self, traceparent: str = "", tracestate: str = "") -> None:
        self.traceparent = traceparent
        self.tracestate = tracestate

    @property
    def variables(self) -> dict[str, str]:
        """Return variables for the script's environment."""
        variables = {}
        if self.traceparent:
            variables["TRACEPARENT"] = self.traceparent
        if self.tracestate:
            variables["TRACESTATE"] = self.tracestate
        return variables

    @property
    def fields(self) -> dict[str, str]:
        """Return fields for log events."""
        if not self.traceparent:
            return {}
        return {"trace_id": self.traceparent.split("-")[1], "traceparent": self.traceparent}

    def phase(self, name: str) -> Phase:
        """Return a phase of the call. A phase ends before the next one begins."""
        return _NO_PHASE

    def note(self, fields: Mapping[str, object]) -> None:
        """Note the fields of the call's log event."""

    def failed(self, error: BaseException) -> None:
        """Note the error that decided the answer."""

    def end(self, code: int) -> None:
        """End the trace of a call that was answered with this status. 499 means that the caller disconnected."""


_NO_PHASE = Phase()
NO_TRACE = Trace()
