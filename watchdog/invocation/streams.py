"""Take what one run prints: into the log, for the answer, for the messages of errors, and for an observer."""

from __future__ import annotations

import asyncio
from typing import Literal

from ..logs.log_rate import LogRate
from ..logs.observer import Observer
from ..logs.progress_line import ProgressLines
from ..logs.script_log import ScriptLog
from ..logs.sink import LogWriter
from ..output.media_type import PLAIN_TYPE
from ..output.printed import Printed
from ..process.pipes import Consumer
from ..workspace.spool import Spool, Tail


class Streams:
    """The stdout and the stderr of one run.

    Most scripts print nothing. So the objects that read a stream are made at its first byte.

    Args:
        sink: receives the lines of the log.
        log_bytes_per_s: the limit of the log; see :class:`LogRate`.
        spool: receives the bytes of stdout.
        is_data: stdout is the body of the answer. It may have gigabytes, and is not logged.
        observer: watches the run.

    Attributes:
        take_progress: takes the bytes that the run writes to fd 4; None if nothing watches the run.
    """

    def __init__(
        self,
        sink: LogWriter,
        call_id: str,
        log_bytes_per_s: int,
        spool: Spool,
        *,
        is_data: bool,
        observer: Observer | None = None,
    ) -> None:
        self._sink = sink
        self._call_id = call_id
        self._log_bytes_per_s = log_bytes_per_s
        self._spool = spool
        self._is_data = is_data
        self._observer = observer
        self.take_progress: Consumer | None = None if observer is None else ProgressLines(observer.progress).take
        self._rate: LogRate | None = None
        self._printed: Printed | None = None
        self._stdout_log: ScriptLog | None = None
        self._stderr_log: ScriptLog | None = None
        self._stdout_tail: Tail | None = None
        self._stderr_tail: Tail | None = None

    def take_stdout(self, data: bytes) -> asyncio.Future[None] | None:
        """Take the next bytes of stdout. If this returns a future, call it again only when the future is done."""
        if self._stdout_tail is None or self._stdout_log is None or self._printed is None:
            self._stdout_tail, self._printed = Tail(), Printed()
            self._stdout_log = self._new_log("stdout")
        if self._is_data:
            pass
        elif self._printed.take(data):
            self._stdout_log.leave_out(data)
        else:
            self._stdout_log.feed(data)
        self._stdout_tail.take(data)
        return self._spool.take(data)

    def take_stderr(self, data: bytes) -> None:
        """Take the next bytes of stderr."""
        if self._stderr_tail is None or self._stderr_log is None:
            self._stderr_tail = Tail()
            self._stderr_log = self._new_log("stderr")
        self._stderr_log.feed(data)
        self._stderr_tail.take(data)

    def close(self) -> None:
        """Log the unfinished last line of each stream, because the run has ended."""
        for log in (self._stdout_log, self._stderr_log):
            if log is not None:
                log.close()
        if self._observer is not None:
            self._observer.ended()

    @property
    def stdout_tail(self) -> str:
        """The end of stdout, as text."""
        return "" if self._stdout_tail is None else self._stdout_tail.text()

    @property
    def stderr_tail(self) -> str:
        """The end of stderr, as text."""
        return "" if self._stderr_tail is None else self._stderr_tail.text()

    @property
    def printed_type(self) -> str:
        """The media type of stdout."""
        return PLAIN_TYPE if self._printed is None else self._printed.media_type

    def _new_log(self, stream: Literal["stdout", "stderr"]) -> ScriptLog:
        self._rate = self._rate or LogRate(self._log_bytes_per_s)
        later = asyncio.get_running_loop().call_later
        return ScriptLog(
            self._sink,
            stream=stream,
            call_id=self._call_id,
            rate=self._rate,
            observer=self._observer,
            call_later=later,
        )
