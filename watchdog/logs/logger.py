"""The loggers of this program's own modules: ``log.info("listening", port=8080)``.

This is the part of structlog's interface that the program needs.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import Any

from .formats import JsonFormat
from .sink import LogWriter

_sink: LogWriter | None = None


def send_to(sink: LogWriter) -> None:
    """Send the events of all loggers to this sink from now on."""
    global _sink
    _sink = sink


class Logger:
    """The logger of one module. Its methods take the text of an event and the event's fields.

    ``exc_info``: an exception that becomes the field ``exception``.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, event: str, **fields: Any) -> None:
        self._log(logging.DEBUG, "debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._log(logging.INFO, "info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._log(logging.WARNING, "warning", event, fields)

    def error(self, event: str, *, exc_info: BaseException | None = None, **fields: Any) -> None:
        if exc_info is not None:
            fields["exception"] = "".join(traceback.format_exception(exc_info)).rstrip("\n")
        self._log(logging.ERROR, "error", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Log the exception that is handled now, as an ERROR."""
        self.error(event, exc_info=sys.exception(), **fields)

    def critical(self, event: str, **fields: Any) -> None:
        self._log(logging.CRITICAL, "critical", event, fields)

    def _log(self, number: int, level: str, event: str, fields: dict[str, Any]) -> None:
        sink = _sink
        if sink is None:
            # The log is not set up yet.
            os.write(2, JsonFormat().event(level, {"logger": self._name, "event": event, **fields}))
        elif number >= sink.level:
            sink.put_own(sink.form.event(level, {"logger": self._name, "event": event, **fields}))
