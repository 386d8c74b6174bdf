"""The start of a server: its time with the whole machine and at 0.2 CPU, and its processor time."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from contenders import Unavailable, Watchdog, free_port, server_python
from control_group import NoControlGroup, limited_to, wait_for_share
from installations import base_name, installations
from limited_cpu import CPUS
from measuring import Bench, Found, Row, alternated, seconds_of


def start(bench: Bench) -> Found:
    """Measure the time from the start of the program to the first 200 on /_/health."""
    python = {"python -c pass": lambda: seconds_of([server_python(), "-c", "pass"], None)}
    first = Row("start", "from exec to the first 200", "s", {}, 0.30)
    return _measured(bench, first, lambda program: _until_healthy_s(bench, program), bench.scale.starts, beside=python)


def limited_start(bench: Bench) -> Found:
    """Measure the time as :func:`start` does, in a control group."""
    first = Row("limited_start", f"from exec to the first 200 at {CPUS} CPU", "s", {}, 0.60)

    def begin(program: Path, prefix: Sequence[str]) -> float:
        wait_for_share()
        return _until_healthy_s(bench, program, prefix)

    try:
        with limited_to(CPUS) as prefix:
            return _measured(bench, first, lambda program: begin(program, prefix), bench.rounds or bench.scale.rounds)
    except NoControlGroup as reason:
        first.missing["control group"] = str(reason)
        return Found([first])


def start_cpu(bench: Bench) -> Found:
    """Measure the processor time of the server and its guardian until the server logs that it listens."""

    def begin(program: Path) -> float:
        place = bench.place()
        server = Watchdog(place, source=program)
        try:
            return server.cpu_s(with_children=True)
        finally:
            server.stop()
            shutil.rmtree(place)

    first = Row("start_cpu", "processor time of a start", "s", {}, 0.5, base_name(bench))
    return _measured(bench, first, begin, bench.rounds or bench.scale.rounds, with_base=True)


def _measured(
    bench: Bench,
    first: Row,
    begin: Callable[[Path], float],
    rounds: int,
    *,
    with_base: bool = False,
    beside: Mapping[str, Callable[[], float]] | None = None,
) -> Found:
    """Return a row for each installation, with the measure and target of ``first``.

    Files are cached, and byte code is compiled.
    """
    rows = []
    for installed in installations(bench, with_base=with_base):
        contenders = {}
        for name, program in installed.programs.items():
            try:
                begin(program)
            except Unavailable as reason:
                if name == "watchdog":
                    raise
                installed.missing[name] = str(reason)
            else:
                contenders[name] = partial(begin, program)
        values = alternated({**contenders, **(beside or {})}, rounds) if contenders else {}
        what = f"{first.what}, {installed.how}"
        rows.append(
            Row(first.measure, what, first.unit, values, first.limit, first.against, missing=dict(installed.missing))
        )
    return Found(rows)


def _until_healthy_s(bench: Bench, program: Path, prefix: Sequence[str] = ()) -> float:
    place, port = bench.place(), free_port()
    began = time.perf_counter()
    server = Watchdog(place, source=program, port=port, wait=False, prefix=prefix)
    try:
        server.until_healthy()
        return time.perf_counter() - began
    finally:
        server.stop()
        shutil.rmtree(place)
