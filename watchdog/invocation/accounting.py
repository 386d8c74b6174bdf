"""Record each call at its end: one log event, and the metrics."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

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

    @contextlib.contextmanager
    def of(self, call: Call, record: Record) -> Iterator[None]:
        """Log one event for the call, and count the call, when the context ends, with or without an error."""
        record.is_logged = True
        started_s = time.monotonic()
        try:
            yield
        except BaseException as error:
            if not (record.is_handed_over and isinstance(error, asyncio.CancelledError)):
                record.outcome, record.reason = outcome_of(error), str(error) or None
            if record.stopped_by is not None and isinstance(error, (asyncio.CancelledError, Draining)):
                record.outcome = "drained"
                record.reason = f"{record.stopped_by} came before the {self._noun} and its transfers had finished"
            raise
        finally:
            duration_s = record.duration_s
            fields = {
                "call_id": call.call_id,
                "outcome": record.outcome,
                "exit_code": record.exit_code,
                "signal": record.signal,
                "duration_s": None if duration_s is None else round(duration_s, 6),
                "total_s": round(time.monotonic() - started_s, 6),
                "queue_wait_s": None if record.queue_wait_s is None else round(record.queue_wait_s, 6),
                "input_bytes": record.input_bytes,
                "input_encoding": record.input_encoding,
                "output_bytes": record.output_bytes,
                "cpu_s": round(record.cpu_s, 6),
                "peak_rss_bytes": record.peak_rss_bytes,
                "reason": record.reason,
                **{f"ce_{name}": call.event.get(name) for name in _LOGGED_EVENT_ATTRIBUTES},
            }
            call.trace.note(fields)
            fields |= call.trace.fields
            self._level(record.outcome)("invocation ended", **{k: v for k, v in fields.items() if v is not None})
            self._metrics.invocation_ended(
                outcome=record.outcome,
                duration_s=duration_s,
                queue_wait_s=record.queue_wait_s,
                input_bytes=record.input_bytes,
                output_bytes=record.output_bytes,
                cpu_s=record.cpu_s,
                peak_rss_bytes=record.peak_rss_bytes,
            )

    def _level(self, outcome: str) -> Callable[..., object]:
        if outcome in _OUTCOMES_WITHOUT_FAULT:
            return log.info
        return log.warning if outcome in _OUTCOMES_FOR_A_WARNING else log.error
