"""Show a progress bar on a terminal, below the log."""

from __future__ import annotations

import time

from .sink import LogWriter

_REDRAW_S = 0.1
_BAR_COLUMNS = 24


class ProgressBar:
    """The progress of a transfer: ``storing  [#####...........]  3 of 10 files  45.2 of 120.0 MiB  12.1 MiB/s``."""

    def __init__(self, sink: LogWriter) -> None:
        self._sink = sink
        self._verb = ""
        self._files = self._files_done = 0
        self._size_bytes: int | None = None
        self._moved_bytes = 0
        self._began_s = self._drawn_s = 0.0

    def begin(self, verb: str, files: int, size_bytes: int | None) -> None:
        self._verb, self._files, self._size_bytes = verb, files, size_bytes
        self._files_done = self._moved_bytes = 0
        self._began_s, self._drawn_s = time.monotonic(), 0.0
        self._draw()

    def moved(self, count: int) -> None:
        self._moved_bytes += count
        self._draw()

    def file_done(self) -> None:
        self._files_done += 1
        self._draw()

    def end(self) -> None:
        self._sink.show_status("")

    def _draw(self) -> None:
        now_s = time.monotonic()
        if now_s - self._drawn_s < _REDRAW_S:
            return
        self._drawn_s = now_s
        self._sink.show_status(self._text(now_s))

    def _text(self, now_s: float) -> str:
        parts = [self._verb]
        if self._size_bytes:
            parts.append(_bar(self._moved_bytes / self._size_bytes))
        if self._files > 1:
            parts.append(f"{self._files_done} of {self._files} files")
        total = f" of {_mib(self._size_bytes)}" if self._size_bytes is not None else ""
        parts.append(f"{_mib(self._moved_bytes)}{total} MiB")
        if now_s - self._began_s >= 1:
            parts.append(f"{_mib(int(self._moved_bytes / (now_s - self._began_s)))} MiB/s")
        return "  ".join(parts)


def progress_text(fraction: float, text: str) -> str:
    """Return the progress that a script reports: ``[############............]  50%  text``.

    Args:
        fraction: a number below 0 counts as 0, and a number above 1 as 1.
    """
    fraction = min(max(fraction, 0.0), 1.0)  # a service could send 1e9, which would fill the memory
    return f"{_bar(fraction)}  {fraction:.0%}  {text}".rstrip()


def _bar(fraction: float) -> str:
    filled = min(_BAR_COLUMNS, int(_BAR_COLUMNS * fraction))
    return f"[{'#' * filled}{'.' * (_BAR_COLUMNS - filled)}]"


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.1f}"
