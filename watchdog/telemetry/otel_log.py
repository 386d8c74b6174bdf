"""What the OpenTelemetry SDK logs, as one WARNING a minute and without secrets."""

from __future__ import annotations

import logging
import re
import time

# Characters of a log event, or of an attribute of a span.
LONGEST_TEXT = 1024
_log = logging.getLogger("tracing")
_SDK_SAYS = ("opentelemetry", "urllib3")
_SAY_INTERVAL_S = 60.0

log_of_sdk = logging.getLogger(_SDK_SAYS[0])


def report_seldom() -> None:
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
        _log.warning("spans may be lost: %s%s", without_secrets(text)[:LONGEST_TEXT], more)


def without_secrets(text: str) -> str:
    """Without what an endpoint's URL may hold: a password, a token in the query."""
    return re.sub(r"\?[^\s'\",)]+", "?…", re.sub(r"//[^/\s@'\"]+@", "//…@", text))
