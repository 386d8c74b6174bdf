"""Small calls of one caller and of eight callers, compared with the bare script and other servers."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import load
from load import Caller
from measuring import MANY, Bench, Found, Row, Tally, alternated, bound, file_system, only_if

TMPFS = "tmpfs"
_SHARED_MEMORY = Path("/dev/shm")


class NoTmpfs(Exception):
    """Files cannot be on a tmpfs in this run; the message says why."""


def one_caller(bench: Bench) -> Found:
    """Measure the median time of a call by a single caller."""
    tally = Tally()
    calls, place = bench.scale.calls, bench.place()
    with bench.contenders() as (servers, missing):
        script = servers["watchdog"].directory / "script.sh"
        callers = {name: Caller(server) for name, server in servers.items()}

        def call(name: str) -> float:
            seen = callers[name].calls(calls)
            return tally.value(name, seen, statistics.median(seen.times_s) * 1e3)

        def floor() -> float:
            seen = load.floor(script, place, calls, 1)
            return tally.value("floor", seen, statistics.median(seen.times_s) * 1e3)

        for caller in callers.values():  # before the measurement, because the first calls do more work
            caller.calls(min(calls, 50))
        contenders = {"floor": floor} | {name: bound(call, name) for name in servers}
        values = alternated(contenders, bench.rounds or bench.scale.rounds_of_calls)
        for caller in callers.values():
            caller.close()
    # The floor makes fewer files than a call, so a file system on a disk costs it less.
    limit = 1.35 if file_system(bench.directory) == TMPFS else 1.6
    row = Row("one_caller", "a small call, one caller", "ms", values, limit, "floor", not_right=dict(tally))
    return against_each(row, missing)


def eight_callers(bench: Bench) -> Found:
    """Measure the calls a second of eight callers."""
    tally = Tally()
    place = bench.place()
    with bench.contenders() as (servers, missing):
        script = servers["watchdog"].directory / "script.sh"

        def call(name: str) -> float:
            seen = load.many(servers[name], MANY, bench.scale.seconds)
            return tally.value(name, seen, seen.per_s)

        def floor() -> float:
            seen = load.floor(script, place, bench.scale.floor_runs, MANY)
            return tally.value("floor", seen, seen.per_s)

        for server in servers.values():
            load.many(server, MANY, 1)
        contenders = {"floor": floor} | {name: bound(call, name) for name in servers}
        values = alternated(contenders, bench.rounds or bench.scale.rounds)
    row = Row("eight_callers", "small calls, eight callers", "calls/s", values, 0.95, "floor", True, dict(tally))
    return against_each(row, missing)


def one_caller_on_tmpfs(bench: Bench) -> Found:
    """Measure the median time as :func:`one_caller` does, with all files of the contenders in memory."""
    return _on_tmpfs(bench, one_caller)


def eight_callers_on_tmpfs(bench: Bench) -> Found:
    """Measure the calls a second as :func:`eight_callers` does, with all files of the contenders in memory."""
    return _on_tmpfs(bench, eight_callers)


def _on_tmpfs(bench: Bench, measure: Callable[[Bench], Found]) -> Found:
    name = f"{measure.__name__}_on_tmpfs"
    try:
        if file_system(bench.directory) == TMPFS:
            raise NoTmpfs(f"all files are on tmpfs in this run, so the rows of {measure.__name__} have these values")
        with in_memory(bench) as there:
            found = measure(there)
    except NoTmpfs as reason:
        return Found([Row(name, name.replace("_", " "), "", {}, 1.0, missing={TMPFS: str(reason)})])
    for row in found.rows:
        row.measure = name
        row.what += ", files on tmpfs"
    return found


@contextlib.contextmanager
def in_memory(bench: Bench) -> Iterator[Bench]:
    """Yield the bench with a directory on a tmpfs. The directory is removed when the context ends.

    Raises:
        NoTmpfs: this user must not write to one, or the machine has none.
    """
    if file_system(bench.directory) == TMPFS:
        yield bench
        return
    if file_system(_SHARED_MEMORY) != TMPFS or not os.access(_SHARED_MEMORY, os.W_OK):
        raise NoTmpfs(f"{_SHARED_MEMORY} is not a tmpfs that this user can write to")
    with tempfile.TemporaryDirectory(prefix="bench-", dir=_SHARED_MEMORY) as directory:
        yield replace(bench, directory=Path(directory))


def against_each(row: Row, missing: Mapping[str, str]) -> Found:
    """Return the row that compares with the floor, and a row for each other server.

    The other servers should not be faster than the watchdog.
    """
    servers = ("webhook", "nginx+fcgiwrap")
    others = {
        name: replace(row, what=f"the same against {name}", limit=1.0, against=name, notes=[]) for name in servers
    }
    for name, other in others.items():
        other.missing = only_if(missing, name)
    return Found([row, *others.values()])
