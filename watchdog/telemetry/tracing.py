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
