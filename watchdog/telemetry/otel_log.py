"""Reduce what the OpenTelemetry SDK logs to one WARNING a minute, without secrets."""

from __future__ import annotations

import logging
import re
import time

# The largest number of characters of a log event, or of an attribute of a span.
LONGEST_TEXT = 1024
_log = logging.getLogger("tracing")
_SDK_LOGGERS = ("opentelemetry", "urllib3")
_REPORT_INTERVAL_S = 60.0

log_of_sdk = logging.getLogger(_SDK_LOGGERS[0])


def report_seldom() -> None:
    """Reduce the messages of the SDK and its HTTP client to one WARNING a minute, without tracebacks."""
    handler = _Seldom()
    for name in _SDK_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False


class _Seldom(logging.Handler):
    """A handler that logs at most one message a minute.

    If the collector cannot be reached, the SDK logs an error for each batch, sometimes with a traceback.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._next_s = 0.0
        self._silenced = 0

    def emit(self, record: logging.LogRecord) -> None:
        now_s = time.monotonic()
        if now_s < self._next_s:
            self._silenced += 1
            return
        self._next_s = now_s + _REPORT_INTERVAL_S
        try:
            text = record.getMessage()
        except Exception:  # the format string does not fit its arguments
            text = str(record.msg)
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {record.exc_info[1]!r}"
        more = f" (and {self._silenced} such messages before)" if self._silenced else ""
        self._silenced = 0
        _log.warning("spans may be lost: %s%s", without_secrets(text)[:LONGEST_TEXT], more)


def without_secrets(text: str) -> str:
    """Return the text without the secrets that the URL of an endpoint may have: a password, or a token in the query."""
    return re.sub(r"\?[^\s'\",)]+", "?…", re.sub(r"//[^/\s@'\"]+@", "//…@", text))
