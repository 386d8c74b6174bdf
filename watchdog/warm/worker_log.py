"""Log what a worker prints while it loads, or while it waits for a call."""

from __future__ import annotations

import asyncio
from typing import Literal

from ..logs.log_rate import LogRate
from ..logs.script_log import ScriptLog
from ..logs.sink import LogWriter
from ..workspace.spool import Tail

_Stream = Literal["stdout", "stderr"]


class WorkerLog:
    """The lines of one worker that belong to no call.

    Attributes:
        tail: the end of its stderr, for the message of a load that failed.
    """

    def __init__(self, sink: LogWriter, log_bytes_per_s: int) -> None:
        self._sink = sink
        self._rate = LogRate(log_bytes_per_s)
        self._logs: dict[_Stream, ScriptLog] = {}
        self.tail = Tail()

    def take_stdout(self, data: bytes) -> None:
        """Take the next bytes of stdout."""
        self._take("stdout", data)

    def take_stderr(self, data: bytes) -> None:
        """Take the next bytes of stderr."""
        self._take("stderr", data)
        self.tail.take(data)

    def end_lines(self) -> None:
        """Log unfinished lines and tracebacks now. A line that is printed later is a new one."""
        while self._logs:
            self._logs.popitem()[1].close()

    def _take(self, stream: _Stream, data: bytes) -> None:
        log = self._logs.get(stream)
        if log is None:
            later = asyncio.get_running_loop().call_later
            log = ScriptLog(self._sink, stream=stream, call_id=None, rate=self._rate, call_later=later)
            self._logs[stream] = log
        log.feed(data)
