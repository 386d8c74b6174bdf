"""Record each call at its end: one log event, and the metrics."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Any

from ..errors import Draining
from ..logs.setup import get_logger
from ..telemetry.metrics import Metrics
from .call import Call, Record
from .outcome import SKIPPED, outcome_of

log = get_logger("invocation")
_LOGGED_EVENT_ATTRIBUTES = ("id", "source", "type")
_OUTCOMES_WITHOUT_FAULT = frozenset({"ok", SKIPPED})
# The caller or a stop of the server caused these outcomes, not the script.
_OUTCOMES_FOR_A_WARNING = frozenset(
    {"caller_gone", "caller_silent", "bad_input", "not_available", "overloaded", "drained"}
)


class Accounting:
    """Logs and counts calls.

    Args:
        noun: the word for the function in messages: "script" or "function".
    """

    def __init__(self, noun: str, metrics: Metrics) -> None:
        self._noun = noun
        self._metrics = metrics

    def of(self, call: Call, record: Record) -> _Account:
        """Log one event for the call, and count the call, when the context ends, with or without an error."""
        return _Account(self, call, record)

    def note_error(self, record: Record, error: BaseException) -> None:
        """Note in the record how an error ended its call."""
        if not (record.is_handed_over and isinstance(error, asyncio.CancelledError)):
            record.outcome, record.reason = outcome_of(error), str(error) or None
        if record.stopped_by is not None and isinstance(error, (asyncio.CancelledError, Draining)):
            record.outcome = "drained"
            record.reason = f"{record.stopped_by} came before the {self._noun} and its transfers had finished"

    def close(self, call: Call, record: Record, total_s: float) -> None:
        """Log the event of a call, and count the call."""
        duration_s, queue_wait_s = record.duration_s, record.queue_wait_s
        fields: dict[str, Any] = {
            "call_id": call.call_id,
            "outcome": record.outcome,
            "exit_code": record.exit_code,
            "signal": record.signal,
            "served_before": record.served_before,
            "duration_s": None if duration_s is None else round(duration_s, 6),
            "total_s": round(total_s, 6),
            "queue_wait_s": None if queue_wait_s is None else round(queue_wait_s, 6),
            "input_bytes": record.input_bytes,
            "input_encoding": record.input_encoding,
            "output_bytes": record.output_bytes,
            "cpu_s": round(record.cpu_s, 6),
            "peak_rss_bytes": record.peak_rss_bytes,
            "reason": record.reason,
        }
        if record.shown is not None:
            fields |= record.shown
        if call.event:
            fields |= {f"ce_{name}": call.event.get(name) for name in _LOGGED_EVENT_ATTRIBUTES}
        call.trace.note(fields)
        fields |= call.trace.fields
        fields = {name: value for name, value in fields.items() if value is not None}
        if record.outcome in _OUTCOMES_WITHOUT_FAULT:
            log.info("invocation ended", **fields)
        elif record.outcome in _OUTCOMES_FOR_A_WARNING:
            log.warning("invocation ended", **fields)
        else:
            log.error("invocation ended", **fields)
        self._metrics.invocation_ended(
            outcome=record.outcome,
            duration_s=duration_s,
            queue_wait_s=queue_wait_s,
            input_bytes=record.input_bytes,
            output_bytes=record.output_bytes,
            cpu_s=record.cpu_s,
            peak_rss_bytes=record.peak_rss_bytes,
        )


class _Account:
    """The context that :meth:`Accounting.of` returns. It measures the duration of a call."""

    __slots__ = ("_accounting", "_call", "_record", "_started_s")

    def __init__(self, accounting: Accounting, call: Call, record: Record) -> None:
        self._accounting = accounting
        self._call = call
        self._record = record

    def __enter__(self) -> None:
        self._record.is_logged = True
        self._started_s = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._accounting.note_error(self._record, error)
        self._accounting.close(self._call, self._record, time.monotonic() - self._started_s)
