"""Collect the events that this program's own modules log in the process of the test."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any
from unittest import mock

from watchdog.logs import logger
from watchdog.logs.sink import LogWriter


class _Collector(LogWriter):
    """A sink that keeps the events, and has no thread."""

    def __init__(self) -> None:
        super().__init__(-1, level=0)
        self.events: list[dict[str, Any]] = []

    def put_own(self, data: bytes) -> None:
        self.events.append(json.loads(data))


@contextlib.contextmanager
def logged_events() -> Iterator[list[dict[str, Any]]]:
    """Return a list of events. It grows with each event, until the context ends."""
    collector = _Collector()
    with mock.patch.object(logger, "_sink", collector):
        yield collector.events
