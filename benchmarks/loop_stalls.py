"""The longest time for which one callback blocked the event loop."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import load
from contenders import SCRIPT, Server, Watchdog
from growing_work import call_for_files, make_files, timed_call
from load import Caller, Content, Prober, at_once
from measuring import KEEP, MANY, Bench, Found, Row, Tally, write


def stall(bench: Bench) -> Found:
    """Measure the longest time for which one callback blocked the event loop, under each kind of load."""
    tally = Tally()
    worst: dict[str, list[float]] = {}
    details: dict[str, Any] = {}
    for name, source in bench.sources.items():
        details[name] = {kind: _stalls(bench, source, kind, tally, name) for kind in _LOADS}
        worst[name] = [max(seen["held_ms"] for seen in details[name].values())]
    row = Row("stall", "longest stall of the event loop, under any load", "ms", worst, 20.0, not_right=dict(tally))
    worst_kind = max(details["watchdog"], key=lambda kind: float(details["watchdog"][kind]["held_ms"]))
    row.notes.append(f"with {worst_kind}: {details['watchdog'][worst_kind]['what']['held']}")
    if not all(seen["has_schedstat"] for seen in details["watchdog"].values()):
        row.notes.append("this kernel does not report how long a thread waited for a core, so the figure includes this")
    return Found([row], details=details)


def _stalls(bench: Bench, source: Path, kind: str, tally: Tally, name: str) -> dict[str, Any]:
    place = bench.place()
    place.mkdir()
    report = place / "stall.json"
    launcher = (str(Path(__file__).resolve().parent / "stall.py"), str(report))
    script, apply = _LOADS[kind]
    make_files(place / "files", bench.scale.output_counts[-1])
    write(place / "source", Content(bench.scale.throughput_bytes).raw())
    server = Watchdog(
        place / "server",
        source=source,
        script=script.format(place=place),
        max_inflight=MANY,
        flags=("--max-queue=1000",),
        launcher=launcher,
    )
    try:
        with Prober(server) as prober:
            tally[name] += apply(bench, server)
    finally:
        server.stop()
    seen: dict[str, Any] = json.loads(report.read_text())
    shutil.rmtree(place)
    tally[name] += int(prober.found.get("wrong", 1))
    return seen | {"probe_worst_ms": prober.found.get("worst_ms")}


def _apply_one(bench: Bench, server: Server) -> int:
    with contextlib.closing(Caller(server)) as caller:
        return caller.calls(4 * bench.scale.calls).not_right


def _apply_many(bench: Bench, server: Server) -> int:
    return load.many(server, MANY, bench.scale.seconds).not_right


def _apply_crowd(bench: Bench, server: Server) -> int:
    return load.many(server, bench.scale.callers[-1], bench.scale.seconds).not_right


def _apply_large(bench: Bench, server: Server) -> int:
    return at_once(server, 1, Content(bench.scale.throughput_bytes))


def _apply_out(bench: Bench, server: Server) -> int:
    content = Content(bench.scale.throughput_bytes)
    return not load.exchange(server, None, itertools.chain(content.base64(), [b"\n"]))[1]


def _apply_eight_large(bench: Bench, server: Server) -> int:
    return at_once(server, MANY, Content(bench.scale.each_bytes))


def _apply_files(bench: Bench, server: Server) -> int:
    return not call_for_files(server, bench.scale.output_counts[-1])[2]


def _apply_lines(bench: Bench, server: Server) -> int:
    _, _, status, answer = timed_call(server, {"X-Count": str(bench.scale.lines[-1])})
    return (status, answer) != (200, b"")


_LOADS: dict[str, tuple[str, Callable[[Bench, Server], int]]] = {
    "one caller": (SCRIPT, _apply_one),
    "eight callers": (SCRIPT, _apply_many),
    "a crowd of callers": (SCRIPT, _apply_crowd),
    "a large file in and out": (KEEP, _apply_large),
    "a large file out": ('ln {place}/source "$TMP_OUTPUT_DIR/out"\n', _apply_out),
    "eight large files at once": (KEEP, _apply_eight_large),
    "many output files": ('cp -r {place}/files/. "$TMP_OUTPUT_DIR"\n', _apply_files),
    "many log lines": ('seq "$Http_X_Count" >&2\n', _apply_lines),
}
