"""Set up the log: events of this program, and output lines of scripts as events with a level.

::

    log.info(...)  ───┐
    logging, warnings ├─> one JSON object or one line of text ─> LogWriter: bounded buffer ─> thread ─> stderr
    ScriptLog.feed ───┘

The server never waits for the reader of stderr. If the reader stalls, the pipe fills, and then the buffer. From then
on script lines are dropped and counted. When there is room again, one WARNING event has their number. The lines
of one call are also dropped and counted if they are over ``max_log_rate``.

A script's lines do not pass through a logger. All lines of one read are split and encoded together, in about a
microsecond for each line, because this happens on the event loop.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from .formats import JsonFormat, LogFormat
from .level import LEVEL_NAMES
from .logger import Logger, send_to
from .sink import LogWriter


def configure(*, level: str, format: str, stream_fd: int = 2) -> LogWriter:  # noqa: A002
    """Send this program's events, those of :mod:`logging` and Python's warnings to one new sink.

    Args:
        level: ``NOTSET``, ``DEBUG``, ``INFO``, ``WARNING``, ``ERROR`` or ``CRITICAL``; events below it are dropped.
        format: ``json``, ``console``, or ``auto``: console if the descriptor is a terminal.
        stream_fd: the descriptor to write to; it is never closed.

    Raises:
        ValueError: the level or the format is not one of these. Values from settings have been checked before.
    """
    number = {"NOTSET": 0} | {name.upper(): number for number, name in LEVEL_NAMES.items()}
    if level not in number:
        raise ValueError(f"the log level is {level!r}; expected one of {', '.join(number)}")
    if format not in ("auto", "json", "console"):
        raise ValueError(f"the log format is {format!r}; expected auto, json or console")
    is_terminal = os.isatty(stream_fd)
    form: LogFormat = JsonFormat()
    if format == "console" or (format == "auto" and is_terminal):
        from .console import ConsoleFormat

        has_colors = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        form = ConsoleFormat(colors=has_colors)
    sink = LogWriter(stream_fd, form, level=number[level])

    send_to(sink)
    root = logging.getLogger()
    root.handlers[:] = [_Handler(sink)]
    root.setLevel(number[level])
    logging.captureWarnings(True)
    return sink


def get_logger(name: str) -> Logger:
    """Return the logger of one module: ``log.info("listening", port=8080)``. Works also before ``configure``."""
    return Logger(name)


class _Handler(logging.Handler):
    """Sends events of :mod:`logging` (asyncio, aiohttp, warnings) to the sink, in the form of this program's events."""

    def __init__(self, sink: LogWriter) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:  # the caller's format string does not fit its arguments
            text = f"{record.msg!r} {record.args!r}"
        fields: dict[str, Any] = {"event": text.strip(), "logger": record.name}
        if record.exc_info and record.exc_info[0]:
            fields["exception"] = logging.Formatter().formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = record.stack_info
        level = max((number for number in LEVEL_NAMES if number <= record.levelno), default=logging.DEBUG)
        self._sink.put_own(self._sink.form.event(LEVEL_NAMES[level], fields))
