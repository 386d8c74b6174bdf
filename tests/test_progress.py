"""The progress bar, on a real terminal, with log events between."""

from __future__ import annotations

import os
import pty

from running_server import read_terminal

from watchdog.logs import sink as sink_module
from watchdog.logs.progress import ProgressBar


def test_the_bar_stays_below_the_log_and_is_removed_at_the_end() -> None:
    ours, theirs = pty.openpty()
    sink = sink_module.LogWriter(theirs)
    try:
        bar = ProgressBar(sink)
        bar.begin("storing", 2, 4 << 20)
        assert sink.flush(15)
        sink.put_own(b"an event\n")
        assert sink.flush(15)
        bar.end()
    finally:
        sink.close(15)
        os.close(theirs)
        shown = read_terminal(ours)
        os.close(ours)
    first, second, rest = shown.split(b"storing")
    assert first.endswith(b"\r\x1b[K")
    assert b"0 of 2 files  0.0 of 4.0 MiB" in second
    # The event is written where the bar was, and the bar below it.
    assert b"\r\x1b[Kan event\r\n" in second
    assert b"\n" not in rest
    assert rest.endswith(b"\r\x1b[K")


def test_what_the_bar_says() -> None:
    bar = ProgressBar(sink_module.LogWriter(-1))
    bar.begin("fetching", 1, None)
    bar.moved(3 << 20)
    assert bar._text(bar._began_s + 2) == "fetching  3.0 MiB  1.5 MiB/s"
    bar.begin("storing", 10, 8 << 20)
    bar.moved(4 << 20)
    bar.file_done()
    assert bar._text(bar._began_s) == "storing  [############............]  1 of 10 files  4.0 of 8.0 MiB"
    bar.begin("storing", 1, 0)
    assert bar._text(bar._began_s) == "storing  0.0 of 0.0 MiB"
