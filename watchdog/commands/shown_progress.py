"""Show on stderr the progress that a script reports, for `watchdog run`."""

from __future__ import annotations

from collections.abc import Sequence

from ..logs.progress import progress_text
from ..logs.setup import get_logger
from ..logs.sink import LogWriter
from ..system.throttle import Throttle

log = get_logger("invocation")
# The time between two reports of progress. A script may report each of a million steps.
_REDRAW_S = 0.1
_LOG_PAUSE_S = 1.0
_FLUSH_S = 2.0


class ShownProgress:
    """The :class:`Observer` of a local run. The newest progress is always shown.

    Args:
        has_line: show it in a line below the log, because stderr is a terminal. Otherwise log it as events.
    """

    def __init__(self, sink: LogWriter, call_id: str, *, has_line: bool) -> None:
        self._sink = sink
        self._call_id = call_id
        self._has_line = has_line
        self._is_line_shown = False
        self._newest: tuple[float, str] | None = None  # not shown yet
        self._throttle = Throttle(self._show, _REDRAW_S if has_line else _LOG_PAUSE_S)

    def queued(self, position: int) -> None: ...
    def started(self, served_before: int | None) -> None: ...
    def log_lines(self, stream: str, levels: Sequence[int], texts: Sequence[str]) -> None: ...
    def lines_dropped(self, count: int) -> None: ...

    def progress(self, fraction: float, text: str) -> None:
        self._newest = (fraction, text)
        self._throttle.request()

    def ended(self) -> None:
        """Remove the line, because the output may go to the same terminal. Without a line, log the newest progress."""
        self._throttle.cancel()
        if self._is_line_shown:
            self._is_line_shown = False
            self._sink.show_status("")
            self._sink.flush(_FLUSH_S)
        elif not self._has_line:
            self._show()

    def _show(self) -> None:
        if self._newest is None:
            return
        fraction, text = self._newest
        self._newest = None
        if self._has_line:
            self._is_line_shown = True
            self._sink.show_status(progress_text(fraction, text))
        else:
            log.info("progress", call_id=self._call_id, fraction=fraction, text=text)
