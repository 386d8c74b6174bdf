"""Warm functions beside cold ones: time of a call, many callers, a model, memory of the server, and a limited CPU."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import load
from contenders import ENVIRONMENT, PATIENCE_S, ROOT, SCRIPT, Job, Server, Watchdog, server_python
from control_group import NoControlGroup, limited_to
from limited_cpu import CPUS, mean_times
from load import Caller
from measuring import MANY, Bench, Found, Row, Tally, alternated, bound
from small_calls import TMPFS, NoTmpfs, in_memory

# The small job in Python, with the helper.
_WORKER = """\
import os, sys
sys.path.append(os.path.dirname(os.environ["WATCHDOG_WARM_PY"]))
from watchdog_warm import serve

@serve
def copy(input_path, output_dir):
    with open(input_path, "rb") as source, open(output_dir + "/out", "wb") as target:
        target.write(source.read())
"""
# The small job in a shell. The process of a shell is small.
_LOOP = """#!/bin/sh
echo "ready sh" >&4
while IFS= read -r call <&3; do
    eval "export $call"
    cat "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/out"
    echo "done $?" >&4
done
"""
_DIGITS = ROOT / "examples" / "image-classification"


def warm_small(bench: Bench) -> Found:
    """Measure the median time of a warm call by a single caller, with all files in memory."""
    tally = Tally()
    what = "a warm call, one caller, files on tmpfs"
    calls = bench.scale.calls
    try:
        with in_memory(bench) as there, _warm_and_cold(there, 1) as servers:
            script, place = servers["cold"].directory / "script.sh", there.place()
            callers = {name: Caller(server) for name, server in servers.items()}

            def median_ms(name: str) -> float:
                seen = load.floor(script, place, calls, 1) if name == "floor" else callers[name].calls(calls)
                return tally.value(name, seen, statistics.median(seen.times_s) * 1e3)

            for caller in callers.values():  # before the measurement, because the first calls do more work
                caller.calls(min(calls, 50))
            contenders = {name: bound(median_ms, name) for name in ("floor", *servers)}
            values = alternated(contenders, bench.rounds or bench.scale.rounds_of_calls)
            for caller in callers.values():
                caller.close()
    except NoTmpfs as reason:
        return Found([Row("warm_small", what, "ms", {}, 1.5, missing={TMPFS: str(reason)})])
    row = Row("warm_small", what, "ms", values, 1.5, not_right=dict(tally))
    against_floor = replace(row, what="a warm call against the bare cold script", limit=0.75, against="floor")
    return Found([row, against_floor, replace(row, what="a warm call against a cold call", limit=1.0, against="cold")])


def warm_callers(bench: Bench) -> Found:
    """Measure the calls a second of eight callers and two workers, with all files in memory."""
    tally = Tally()
    what = "warm calls, eight callers, two workers, files on tmpfs"
    try:
        with in_memory(bench) as there, _warm_and_cold(there, 2) as servers:
            script, place = servers["cold"].directory / "script.sh", there.place()

            def per_s(name: str) -> float:
                if name == "floor":
                    seen = load.floor(script, place, bench.scale.floor_runs, MANY)
                else:
                    seen = load.many(servers[name], MANY, bench.scale.seconds)
                return tally.value(name, seen, seen.per_s)

            for server in servers.values():
                load.many(server, MANY, 1)
            contenders = {name: bound(per_s, name) for name in ("floor", *servers)}
            values = alternated(contenders, bench.rounds or bench.scale.rounds)
    except NoTmpfs as reason:
        return Found([Row("warm_callers", what, "calls/s", {}, 2.0, "floor", True, missing={TMPFS: str(reason)})])
    return Found([Row("warm_callers", what, "calls/s", values, 2.0, "floor", True, dict(tally))])


def warm_deepaas(bench: Bench) -> Found:
    """Measure calls of the example image-classification: cold, warm in Python, and warm with deepaas-run and curl."""
    tally = Tally()
    row = Row("warm_deepaas", "calls of a DEEPaaS model, one caller", "calls/s", {}, 100.0, "cold", True)
    if not (_DIGITS / ".venv" / "set-up").exists():
        row.missing["image-classification"] = "run examples/image-classification/setup.sh first"
        return Found([row])
    path = f"{_DIGITS / '.venv' / 'bin'}:{ENVIRONMENT['PATH']}"
    picture = (_DIGITS / "digit.png").read_bytes()
    job = Job("/?output=raw", picture, _prediction(bench.place(), path), "image/png")
    warm = {"PATH": path, "WATCHDOG_WARM": "1"}
    with contextlib.ExitStack() as stack:
        servers = {**stack.enter_context(bench.watchdogs((_DIGITS / "warm.py").read_text(), environ=warm))}
        others = {"deepaas-run and curl": ("warm.sh", warm), "cold": ("script.sh", {"PATH": path})}
        for name, (script, environ) in others.items():
            text = (_DIGITS / script).read_text()
            servers[name] = stack.enter_context(_started(bench, script=text, environ=environ))

        def per_s(name: str) -> float:
            calls = max(1, bench.scale.calls // 50) if name == "cold" else bench.scale.calls
            with contextlib.closing(Caller(servers[name], job)) as caller:
                seen = caller.calls(calls)
            return tally.value(name, seen, seen.per_s)

        for server in servers.values():  # until the models are loaded
            with contextlib.closing(Caller(server, job)) as caller:
                caller.calls(1)
        row.values = alternated({name: bound(per_s, name) for name in servers}, bench.rounds or bench.scale.rounds)
    row.not_right = dict(tally)
    times = {name: f"{1e3 / statistics.median(values):,.1f} ms" for name, values in row.values.items()}
    row.notes.append("mean time of a call: " + ", ".join(f"{name} {time}" for name, time in times.items()))
    return Found([row])


def warm_memory(bench: Bench) -> Found:
    """Measure the memory that each worker adds to the server, after many calls."""
    tally = Tally()

    def rss_mib(name: str, script: str, workers: int) -> float:
        environ = {"WATCHDOG_WARM": str(workers)}
        with _started(bench, source=bench.sources[name], script=script, max_inflight=MANY, environ=environ) as server:
            seen = load.many(server, MANY, bench.scale.seconds)
            return tally.value(name, seen, server.memory_mib("VmRSS"))

    def of_a_worker(name: str) -> float:
        return (rss_mib(name, _LOOP, MANY) - rss_mib(name, SCRIPT, 0)) / MANY

    values = alternated({name: bound(of_a_worker, name) for name in bench.sources}, bench.rounds or bench.scale.rounds)
    what = f"memory of the server for each of {MANY} workers"
    return Found([Row("warm_memory", what, "MiB", values, 1.0, not_right=dict(tally))])


def warm_limited(bench: Bench) -> Found:
    """Measure the mean time of warm calls back to back. All servers and their scripts are in one control group."""
    tally = Tally()
    what = f"warm calls back to back at {CPUS} CPU, mean"
    try:
        with limited_to(CPUS) as prefix, _warm_and_cold(bench, 1, prefix) as servers:
            values = mean_times(bench, servers, tally)
    except NoControlGroup as reason:
        return Found([Row("warm_limited", what, "ms", {}, 0.5, "cold", missing={"control group": str(reason)})])
    return Found([Row("warm_limited", what, "ms", values, 0.5, "cold", not_right=dict(tally))])


def warm_function(workers: int) -> dict[str, Any]:
    """Return the arguments of ``Watchdog`` for a server that does the small job with workers."""
    return {"script": f"#!{server_python()}\n{_WORKER}", "environ": {"WATCHDOG_WARM": str(workers)}}


@contextlib.contextmanager
def _warm_and_cold(bench: Bench, workers: int, prefix: Sequence[str] = ()) -> Iterator[dict[str, Server]]:
    """Start servers for the small job: a warm one of each source, and one that starts a script for each call."""
    with (
        bench.watchdogs(**warm_function(workers), prefix=prefix) as warm,
        _started(bench, script=SCRIPT, max_inflight=MANY, prefix=prefix) as cold,
    ):
        yield {**warm, "cold": cold}


@contextlib.contextmanager
def _started(
    bench: Bench,
    *,
    script: str,
    source: Path = ROOT,
    max_inflight: int | None = None,
    prefix: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Iterator[Watchdog]:
    """Start a server. When the context ends, stop it and remove its directory."""
    server = Watchdog(
        bench.place(), source=source, script=script, max_inflight=max_inflight, prefix=prefix, environ=environ
    )
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.directory)


def _prediction(place: Path, path: str) -> bytes:
    """Return the right answer: what the example's program writes without any server."""
    place.mkdir()
    command = ["deepaas-predict", "-i", str(_DIGITS / "digit.png"), "-o", str(place)]
    environ = ENVIRONMENT | {"PATH": path}
    subprocess.run(command, env=environ, cwd=place, capture_output=True, timeout=PATIENCE_S, check=True)
    answer = (place / "out_digit.json").read_bytes()
    shutil.rmtree(place)
    return answer
