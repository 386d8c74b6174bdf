"""Take the measures. Each has a function, which lets its contenders take turns and returns rows of the table.

A value comes from one round of one contender. A ratio is made of two values of the same round, so that other work of
the machine affects both. The table has the medians of values and ratios, and the quartiles of ratios.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import threading
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import load
from contenders import (
    ENVIRONMENT,
    PATIENCE_S,
    ROOT,
    SCRIPT,
    Nginx,
    Server,
    Unavailable,
    Watchdog,
    Webhook,
    free_port,
    server_python,
)
from load import Caller, Content, Load, Prober

MIB = 1024 * 1024
KEEP = 'mv "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/out"\n'
MANY = 8


@dataclass(frozen=True)
class Scale:
    """The amount of work: the full one, a quick one, or just enough to see that the benchmark works."""

    name: str
    calls: int  # of one caller in a round
    seconds: int  # of many callers in a round
    floor_runs: int
    rounds_of_calls: int
    rounds: int
    starts: int
    throughput_bytes: int
    large_bytes: int
    each_bytes: int  # of each of eight files at the same time
    sizes_bytes: tuple[int, ...]
    output_counts: tuple[int, ...]
    callers: tuple[int, ...]
    lines: tuple[int, ...]
    invocations: int
    window: int


FULL = Scale(
    "full",
    calls=150,
    seconds=3,
    floor_runs=1500,
    rounds_of_calls=12,
    rounds=5,
    starts=20,
    throughput_bytes=256 * MIB,
    large_bytes=1024 * MIB,
    each_bytes=128 * MIB,
    sizes_bytes=(*(1024 * 8**power for power in range(7)), 1024 * MIB),
    output_counts=(1, 10, 100, 1_000, 10_000),
    callers=tuple(2**power for power in range(9)),
    lines=(0, 1_000, 10_000, 100_000, 1_000_000),
    invocations=100_000,
    window=2_000,
)
QUICK = Scale(
    "quick",
    calls=100,
    seconds=1,
    floor_runs=500,
    rounds_of_calls=4,
    rounds=2,
    starts=5,
    throughput_bytes=64 * MIB,
    large_bytes=256 * MIB,
    each_bytes=32 * MIB,
    sizes_bytes=tuple(1024 * 8**power for power in range(6)),
    output_counts=(1, 10, 100, 1_000),
    callers=(1, 4, 16, 64),
    lines=(0, 1_000, 10_000, 100_000),
    invocations=3_000,
    window=300,
)
LEAST = Scale(
    "least",
    calls=5,
    seconds=1,
    floor_runs=10,
    rounds_of_calls=1,
    rounds=1,
    starts=1,
    throughput_bytes=MIB,
    large_bytes=MIB,
    each_bytes=MIB // 8,
    sizes_bytes=(1024, 8192, 65536),
    output_counts=(1, 10, 30),
    callers=(1, 2),
    lines=(0, 100, 1_000),
    invocations=200,
    window=20,
)


@dataclass
class Row:
    """One line of the table.

    ``values``: the values of each contender by round. ``against``: the target is for the ratios of the watchdog's
    values to those of this contender; if it is None, for the values themselves. ``limit``: the target, which is an
    upper limit, or a lower limit if ``more_is_better``.
    """

    measure: str
    what: str
    unit: str
    values: dict[str, list[float]]
    limit: float
    against: str | None = None
    more_is_better: bool = False
    not_right: dict[str, int] = field(default_factory=dict)
    # Why contenders of this row are missing.
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def ratios(self, name: str = "watchdog") -> list[float]:
        if self.against not in self.values or name not in self.values:
            return []
        return [a / b for a, b in zip(self.values[name], self.values[self.against], strict=True) if b]

    @property
    def judged(self) -> list[float]:
        """Return the values that are compared with the target, by round."""
        return self.ratios() if self.against is not None else self.values.get("watchdog", [])


@dataclass
class Growth:
    """The growth of a cost with the amount of work, for a plot and a table."""

    measure: str
    what: str
    x: str
    unit: str
    amounts: Sequence[float]
    costs: dict[str, list[list[float]]]  # for each contender and each amount, a list by round
    is_flat: bool = False


@dataclass
class Found:
    """The result of a measure."""

    rows: list[Row] = field(default_factory=list)
    growths: list[Growth] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Bench:
    """Everything that the measures share.

    ``against``: another checkout, or a program, that is measured together with this checkout.
    """

    scale: Scale
    directory: Path
    against: Path | None = None
    rounds: int | None = None
    say: Callable[[str], None] = print
    _serial: Iterator[int] = field(default_factory=itertools.count)

    @property
    def sources(self) -> dict[str, Path]:
        return {"watchdog": ROOT} if self.against is None else {"watchdog": ROOT, "against": self.against}

    def place(self) -> Path:
        """Return the path of a directory that does not exist yet."""
        return self.directory / str(next(self._serial))

    @contextlib.contextmanager
    def watchdogs(self, script: str, **options: Any) -> Iterator[dict[str, Watchdog]]:
        """Start a server of each source. When the context ends, stop them and remove their directories."""
        started: dict[str, Watchdog] = {}
        try:
            for name, source in self.sources.items():
                started[name] = Watchdog(self.place(), source=source, script=script, **options)
            yield started
        finally:
            for server in started.values():
                server.stop()
                shutil.rmtree(server.directory)

    @contextlib.contextmanager
    def contenders(self) -> Iterator[tuple[dict[str, Server], dict[str, str]]]:
        """Start all available servers for the small job. Yield them, and why others are missing."""
        with self.watchdogs(SCRIPT, max_inflight=MANY) as watchdogs:
            servers: dict[str, Server] = {**watchdogs}
            missing: dict[str, str] = {}
            try:
                for kind in (Webhook, Nginx):
                    try:
                        servers[kind.name] = kind(self.place())
                    except Unavailable as reason:
                        missing[kind.name] = str(reason)
                yield servers, missing
            finally:
                for name, server in servers.items():
                    if name not in watchdogs:
                        server.stop()


def alternated(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return the values of each contender by round. Each round begins with another contender."""
    values: defaultdict[str, list[float]] = defaultdict(list)
    names = list(contenders)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            values[name].append(contenders[name]())
    return {name: values[name] for name in names}


class Tally(Counter[str]):
    """The number of wrong answers and errors of each contender."""

    def value(self, name: str, seen: Load, value: float) -> float:
        self[name] += seen.not_right
        return value


# ---- small calls


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
        contenders = {"floor": floor} | {name: _bound(call, name) for name in servers}
        values = alternated(contenders, bench.rounds or bench.scale.rounds_of_calls)
        for caller in callers.values():
            caller.close()
    row = Row("one_caller", "a small call, one caller", "ms", values, 1.15, "floor", not_right=dict(tally))
    return _against_each(row, missing)


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
        contenders = {"floor": floor} | {name: _bound(call, name) for name in servers}
        values = alternated(contenders, bench.rounds or bench.scale.rounds)
    row = Row("eight_callers", "small calls, eight callers", "calls/s", values, 0.95, "floor", True, dict(tally))
    return _against_each(row, missing)


def _against_each(row: Row, missing: Mapping[str, str]) -> Found:
    """Return the row with the floor as target, and a row for each other server, which should not be faster."""
    servers = ("webhook", "nginx+fcgiwrap")
    others = {
        name: replace(row, what=f"the same against {name}", limit=1.0, against=name, notes=[]) for name in servers
    }
    for name, other in others.items():
        other.missing = _if(missing, name)
    return Found([row, *others.values()])


# ---- large files


def base64_in(bench: Bench) -> Found:
    """Measure the decoded MiB a second of a large body in base64, against ``base64 -d`` from file to file."""
    content = Content(bench.scale.throughput_bytes)
    place = bench.place()
    place.mkdir()
    encoded, decoded, kept = place / "encoded", place / "decoded", place / "kept"
    _write(encoded, content.base64())
    tally = Tally()

    def call(name: str) -> float:
        took_s, is_right = load.exchange(servers[name], content, [b"kept\n"])
        tally[name] += not (is_right and content.is_in(kept))
        kept.unlink(missing_ok=True)
        return content.size_bytes / MIB / took_s

    def coreutils(name: str, target: Path) -> float:
        with open(target, "wb") as file:
            took_s = _seconds_of(["base64", "-d", str(encoded)], file)
        if target == decoded:
            tally[name] += not content.is_in(decoded)
            decoded.unlink()
        return content.size_bytes / MIB / took_s

    with bench.watchdogs(f'mv "$INPUT_FILE_PATH" {kept}; echo kept\n') as servers:
        contenders = {
            "base64 -d": lambda: coreutils("base64 -d", decoded),
            "base64 -d >/dev/null": lambda: coreutils("base64 -d >/dev/null", Path(os.devnull)),
        } | {name: _bound(call, name) for name in servers}
        values = alternated(contenders, bench.rounds or bench.scale.rounds)
    shutil.rmtree(place)
    return Found(
        [
            Row(
                "base64_in",
                f"{_size(content.size_bytes)} in, decoded",
                "MiB/s",
                values,
                1.5,
                "base64 -d",
                True,
                dict(tally),
            )
        ]
    )


def base64_out(bench: Bench) -> Found:
    """Measure the MiB a second of a large output while it is encoded, against ``base64 -w0`` from file to /dev/null."""
    content = Content(bench.scale.throughput_bytes)
    place = bench.place()
    place.mkdir()
    source = place / "source"
    _write(source, content.raw())
    tally = Tally()

    def call(name: str) -> float:
        took_s, is_right = load.exchange(servers[name], None, itertools.chain(content.base64(), [b"\n"]))
        tally[name] += not is_right
        return content.size_bytes / MIB / took_s

    def coreutils() -> float:
        with open(os.devnull, "wb") as file:
            return content.size_bytes / MIB / _seconds_of(["base64", "-w0", str(source)], file)

    with bench.watchdogs(f'ln {source} "$TMP_OUTPUT_DIR/out"\n') as servers:
        contenders = {"base64 -w0": coreutils} | {name: _bound(call, name) for name in servers}
        values = alternated(contenders, bench.rounds or bench.scale.rounds)
    shutil.rmtree(place)
    return Found(
        [
            Row(
                "base64_out",
                f"{_size(content.size_bytes)} out, encoded",
                "MiB/s",
                values,
                1.5,
                "base64 -w0",
                True,
                dict(tally),
            )
        ]
    )


def peak_memory(bench: Bench) -> Found:
    """Measure the peak memory of a new server with one large file in and out, and with eight at the same time."""
    rows = []
    for count, size_bytes, limit_mib in ((1, bench.scale.large_bytes, 64.0), (MANY, bench.scale.each_bytes, 128.0)):
        tally = Tally()

        def peak(name: str, count: int = count, size_bytes: int = size_bytes, tally: Tally = tally) -> float:
            place = bench.place()
            server = Watchdog(place, source=bench.sources[name], script=KEEP, max_inflight=MANY)
            try:
                tally[name] += at_once(server, count, Content(size_bytes))
                return server.memory_mib("VmHWM")
            finally:
                server.stop()
                shutil.rmtree(place)

        values = alternated({name: _bound(peak, name) for name in bench.sources}, min(2, bench.rounds or 2))
        times = "" if count == 1 else f"{count} x "
        what = f"peak memory, {times}{_size(size_bytes)} in and out"
        rows.append(Row("peak_memory", what, "MiB", values, limit_mib, not_right=dict(tally)))
    return Found(rows)


def at_once(server: Server, count: int, content: Content) -> int:
    """Let ``count`` callers send the content at the same time. Return how many did not get it back."""
    results: list[bool] = []

    def work() -> None:
        results.append(load.exchange(server, content, itertools.chain(content.base64(), [b"\n"]))[1])

    callers = [threading.Thread(target=work) for _ in range(count)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return count - sum(results)


# ---- at rest


def idle(bench: Bench) -> Found:
    """Measure the memory of an idle server, after its start and after twenty calls."""
    after_calls: defaultdict[str, list[float]] = defaultdict(list)
    guardians: defaultdict[str, list[float]] = defaultdict(list)
    tally = Tally()

    def at_rest(name: str) -> float:
        place = bench.place()
        server = Watchdog(place, source=bench.sources[name])
        try:
            assert server.is_healthy()
            rss_mib = server.memory_mib("VmRSS")
            with contextlib.closing(Caller(server)) as caller:
                tally[name] += caller.calls(20).not_right
            after_calls[name].append(server.memory_mib("VmRSS"))
            if (guardian_mib := server.guardian_mib()) is not None:
                guardians[name].append(guardian_mib)
            return rss_mib
        finally:
            server.stop()
            shutil.rmtree(place)

    values = alternated({name: _bound(at_rest, name) for name in bench.sources}, bench.rounds or bench.scale.rounds)
    note = "only root can see the memory of the guardian"
    if guardians["watchdog"]:
        own_mib = statistics.median(guardians["watchdog"])
        note = f"the guardian, a fork of the server, has {own_mib:.1f} MiB that it does not share"
    return Found(
        [
            Row("idle", "idle memory after the start", "MiB", values, 45.0),
            Row(
                "idle",
                "idle memory after 20 calls",
                "MiB",
                dict(after_calls),
                45.0,
                not_right=dict(tally),
                notes=[note],
            ),
        ]
    )


def start(bench: Bench) -> Found:
    """Measure the time from the start of the program to the first 200 on /_/health.

    The files are cached, and the byte code is compiled.
    """

    def begin(name: str) -> float:
        place, port = bench.place(), free_port()
        began = time.perf_counter()
        server = Watchdog(place, source=bench.sources[name], port=port, wait=False)
        try:
            server.until_healthy()
            return time.perf_counter() - began
        finally:
            server.stop()
            shutil.rmtree(place)

    for name in bench.sources:
        begin(name)
    contenders = {name: _bound(begin, name) for name in bench.sources}
    contenders["python -c pass"] = lambda: _seconds_of([server_python(), "-c", "pass"], None)
    return Found([Row("start", "from exec to the first 200", "s", alternated(contenders, bench.scale.starts), 0.30)])


# ---- as work grows


def input_size(bench: Bench) -> Found:
    """Measure the time of a call for each size of the file that goes in and out in base64."""
    tally = Tally()
    costs: dict[str, list[list[float]]] = {name: [] for name in bench.sources}
    with bench.watchdogs(KEEP) as servers:
        for size_bytes in bench.scale.sizes_bytes:
            content = Content(size_bytes)

            def call(name: str, content: Content = content) -> float:
                answer = itertools.chain(content.base64(), [b"\n"])
                took_s, is_right = load.exchange(servers[name], content, answer)
                tally[name] += not is_right
                return took_s * 1e3

            # Small files get many rounds, because their calls are short and their times vary.
            rounds = bench.rounds or (3 if size_bytes > MIB else 10 * bench.scale.rounds)
            for name, values in alternated({name: _bound(call, name) for name in servers}, rounds).items():
                costs[name].append(values)
    what = "time of a call by size of the file, in and out"
    growth = Growth("input_size", what, "bytes", "ms", bench.scale.sizes_bytes, costs)
    return Found(growths=[growth], rows=[_growth_row(growth, tally)])


def output_files(bench: Bench) -> Found:
    """Measure the server's own time of a call, without the script's, for each number of output files."""
    tally = Tally()
    costs: dict[str, list[list[float]]] = {name: [] for name in bench.sources}
    templates = bench.place()
    with bench.watchdogs(f'cp -r {templates}/"$Http_X_Count"/. "$TMP_OUTPUT_DIR"\n') as servers:
        for count in bench.scale.output_counts:
            _make_files(templates / str(count), count)

            def call(name: str, count: int = count) -> float:
                took_s, script_s, is_right = _call_for_files(servers[name], count)
                tally[name] += not is_right
                return (took_s - script_s) * 1e3

            rounds = bench.rounds or (3 if count > 100 else 5 * bench.scale.rounds)
            for name, values in alternated({name: _bound(call, name) for name in servers}, rounds).items():
                costs[name].append(values)
    shutil.rmtree(templates)
    what = "the server's time of a call by number of output files"
    growth = Growth("output_files", what, "files", "ms", bench.scale.output_counts, costs)
    return Found(growths=[growth], rows=[_growth_row(growth, tally)])


def callers(bench: Bench) -> Found:
    """Measure the machine's time for a call (1 / calls a second) for each number of callers.

    ``max_inflight`` has its default.
    """
    tally = Tally()
    costs: dict[str, list[list[float]]] = {name: [] for name in bench.sources}
    with bench.watchdogs(SCRIPT, flags=("--max-queue=1000",)) as servers:
        for server in servers.values():
            load.many(server, MANY, 1)
        for count in bench.scale.callers:

            def call(name: str, count: int = count) -> float:
                seen = load.many(servers[name], count, bench.scale.seconds)
                return tally.value(name, seen, 1e3 / seen.per_s)

            rounds = bench.rounds or min(3, bench.scale.rounds)
            for name, values in alternated({name: _bound(call, name) for name in servers}, rounds).items():
                costs[name].append(values)
    what = "time for each call of all, by number of callers"
    growth = Growth("callers", what, "callers", "ms", bench.scale.callers, costs, is_flat=True)
    return Found(growths=[growth], rows=[_growth_row(growth, tally)])


# Lines of one burst, for which the log buffer of the server has room. The server writes them in the pause after it.
_BURST = 10_000
_IN_BURSTS = f"""
left=$Http_X_Count
while [ "$left" -gt 0 ]; do
    burst=$((left < {_BURST} ? left : {_BURST}))
    seq "$burst" >&2
    left=$((left - burst))
    sleep 0.03
done
"""


def log_lines(bench: Bench) -> Found:
    """Measure the server's processor time of a call for each number of lines that the script prints to the log.

    The log is a file. The script prints in bursts, so that no line is dropped. A note has the number of lines that are
    dropped if the script prints all lines at once.
    """
    tally = Tally()
    costs: dict[str, list[list[float]]] = {name: [] for name in bench.sources}
    printed: Counter[str] = Counter()
    with bench.watchdogs(_IN_BURSTS) as servers:
        for count in bench.scale.lines:

            def call(name: str, count: int = count) -> float:
                before_s = servers[name].cpu_s()
                _, _, status, answer = _timed_call(servers[name], {"X-Count": str(count)})
                tally[name] += (status, answer) != (200, b"")
                printed[name] += count
                return (servers[name].cpu_s() - before_s) * 1e3

            rounds = bench.rounds or (min(3, bench.scale.rounds) if count > _BURST else 5 * bench.scale.rounds)
            for name, values in alternated({name: _bound(call, name) for name in servers}, rounds).items():
                costs[name].append(values)
        notes = [_dropped(name, server, printed[name], tally, "in bursts") for name, server in servers.items()]
    with bench.watchdogs('seq "$Http_X_Count" >&2\n') as servers:
        for name, server in servers.items():
            took_s, _, status, answer = _timed_call(server, {"X-Count": str(bench.scale.lines[-1])})
            tally[name] += (status, answer) != (200, b"")
            dropped = _dropped(name, server, bench.scale.lines[-1], tally, "at once")
            notes.append(f"{dropped} (the call took {took_s * 1e3:.0f} ms)")
    growth = Growth("log_lines", "processor time by number of log lines", "lines", "ms", bench.scale.lines, costs)
    row = _growth_row(growth, tally)
    row.notes += notes
    return Found(growths=[growth], rows=[row])


def _dropped(name: str, server: Watchdog, printed: int, tally: Tally, how: str) -> str:
    """Stop the server, and return a note about its dropped lines.

    Each line must be in the log, or be counted there as dropped. Otherwise this counts as a wrong answer.
    """
    server.stop()
    logged, dropped = server.script_lines()
    tally[name] += logged + dropped != printed
    return f"{name}: of {printed:,} lines {how}, {dropped / printed:.1%} were dropped and counted"


def _growth_row(growth: Growth, tally: Tally) -> Row:
    """Return a row with the largest deviation of the cost from a straight line, or from a constant."""
    values = {name: [crookedness(growth, name)] for name in growth.costs}
    return Row(growth.measure, growth.what, "x", values, 1.25 if growth.is_flat else 1.5, not_right=dict(tally))


def crookedness(growth: Growth, name: str) -> float:
    """Return the largest ratio between a cost and a straight line from the least to the greatest amount.

    The ratio is that of the larger to the smaller value, so 1 is linear. A step is above the line. A cost that grows
    faster than the amount is below it. If the cost should be constant, return the largest ratio of the costs of two
    neighbouring amounts.
    """
    costs = [statistics.median(values) for values in growth.costs[name]]
    if growth.is_flat:
        return max(after / before for before, after in itertools.pairwise(costs))
    slope = (costs[-1] - costs[0]) / (growth.amounts[-1] - growth.amounts[0])
    line = [costs[0] + slope * (amount - growth.amounts[0]) for amount in growth.amounts]
    return max(max(cost / there, there / cost) for cost, there in zip(costs, line, strict=True))


def marginal_costs(growth: Growth, name: str) -> list[tuple[float, float]]:
    """Return the cost of one more unit between each amount and the one before.

    Amounts whose cost is hardly more than that of the least amount are left out.
    """
    costs = [statistics.median(values) for values in growth.costs[name]]
    steps = zip(itertools.pairwise(growth.amounts), itertools.pairwise(costs), strict=True)
    return [(n, (after - before) / (n - m)) for (m, n), (before, after) in steps if after > 1.5 * costs[0]]


def exponent(growth: Growth, name: str) -> float | None:
    """Return the power of the amount with which the cost grows, after the cost of the least amount is subtracted.

    1 is linear. None: the cost should be constant, or too few amounts have a cost that can be compared.
    """
    costs = [statistics.median(values) for values in growth.costs[name]]
    points = [
        (math.log(amount), math.log(cost - costs[0]))
        for amount, cost in zip(growth.amounts, costs, strict=True)
        if cost > 3 * costs[0]
    ]
    if growth.is_flat or len(points) < 2:
        return None
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope


# ---- for long


def endurance(bench: Bench) -> Found:
    """Measure the time of a call and the memory of a server after many calls, in turns with a server after a hundred.

    The first calls of the old server cannot be compared, because the speed of the machine may have changed since then.
    """
    tally = Tally()
    values: dict[str, list[float]] = {}
    fresh_values: dict[str, list[float]] = {}
    more_mib: dict[str, list[float]] = {}
    details: dict[str, Any] = {}
    for name, source in bench.sources.items():
        old = Watchdog(bench.place(), source=source, max_inflight=MANY)
        new = None
        try:
            curve = _served(old, bench.scale.invocations, tally, name)
            new = Watchdog(bench.place(), source=source, max_inflight=MANY)
            _hundred(new, tally, name)
            ages = {"old": Caller(old), "new": Caller(new)}

            def call(age: str, ages: dict[str, Caller] = ages, name: str = name) -> float:
                seen = ages[age].calls(bench.scale.window // 10)
                return tally.value(name, seen, statistics.median(seen.times_s) * 1e3)

            times = alternated({age: _bound(call, age) for age in ages}, 10)
            values[name], fresh_values[name] = times["old"], times["new"]
            more_mib[name] = [curve[-1][1] - curve[0][1]]
            details[name] = {"calls": [calls for calls, _ in curve], "rss_mib": [rss_mib for _, rss_mib in curve]}
            for caller in ages.values():
                caller.close()
        finally:
            for server in (old, new):
                if server is not None:
                    server.stop()
                    shutil.rmtree(server.directory)
    # Less than the planned number, if the time was not enough.
    served = details["watchdog"]["calls"][-1]
    what = f"after {served:,} calls against after 100"
    times_ms = values | {"a fresh one": fresh_values["watchdog"]}
    if "against" in fresh_values:
        times_ms["against, a fresh one"] = fresh_values["against"]
    return Found(
        [
            Row("endurance", f"{what}: time of a call", "ms", times_ms, 1.05, "a fresh one", not_right=dict(tally)),
            Row("endurance", f"{what}: more memory", "MiB", more_mib, 2.0),
        ],
        details=details,
    )


def _hundred(server: Server, tally: Tally, name: str) -> None:
    """Make the first hundred calls with eight callers, like the calls that follow."""
    ended = [0] * MANY

    def work(number: int) -> None:
        with contextlib.closing(Caller(server)) as caller:
            ended[number] = caller.calls(100 // MANY).not_right

    threads = [threading.Thread(target=work, args=(number,)) for number in range(MANY)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tally[name] += sum(ended)


def _served(server: Watchdog, invocations: int, tally: Tally, name: str) -> list[tuple[int, float]]:
    """Call until there were so many invocations, or until five minutes have passed.

    Return pairs: the number of calls so far, and the memory in MiB after them.
    """
    _hundred(server, tally, name)
    curve = [(100, server.memory_mib("VmRSS"))]
    deadline = time.monotonic() + 300
    while curve[-1][0] < invocations and time.monotonic() < deadline:
        seen = load.many(server, MANY, 10 if invocations > 10_000 else 1)
        tally[name] += seen.not_right
        curve.append((curve[-1][0] + seen.calls, server.memory_mib("VmRSS")))
    return curve


# ---- stalls


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
    _make_files(place / "files", bench.scale.output_counts[-1])
    _write(place / "source", Content(bench.scale.throughput_bytes).raw())
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
    return not _call_for_files(server, bench.scale.output_counts[-1])[2]


def _apply_lines(bench: Bench, server: Server) -> int:
    _, _, status, answer = _timed_call(server, {"X-Count": str(bench.scale.lines[-1])})
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


# ---- what several use


def _bound(measure: Callable[[str], float], name: str) -> Callable[[], float]:
    return lambda: measure(name)


def _if(missing: Mapping[str, str], name: str) -> dict[str, str]:
    return {name: missing[name]} if name in missing else {}


def _size(size_bytes: int) -> str:
    for unit, bytes_ in (("GiB", 1024 * MIB), ("MiB", MIB), ("KiB", 1024)):
        if size_bytes >= bytes_:
            return f"{size_bytes / bytes_:g} {unit}"
    return f"{size_bytes} B"


def _write(path: Path, pieces: Iterator[bytes]) -> None:
    with open(path, "wb") as file:
        file.writelines(pieces)


def _seconds_of(command: list[str], stdout: Any) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=ENVIRONMENT, stdout=stdout, check=True, timeout=PATIENCE_S)
    return time.perf_counter() - began


def _make_files(directory: Path, count: int) -> None:
    directory.mkdir(parents=True)
    for number in range(count):
        (directory / f"{number:06}").write_bytes(_file(number))


def _file(number: int) -> bytes:
    return f"{number:06}\n".encode() * 16


def _timed_call(server: Server, headers: dict[str, str]) -> tuple[float, float, int, bytes]:
    """Return the seconds of the call, the seconds of its script, the status and the body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.connect()
        began = time.perf_counter()
        connection.request("POST", "/", b"", headers)
        answer = connection.getresponse()
        body = answer.read()
        took_s = time.perf_counter() - began
        return took_s, float(answer.headers.get("X-Duration-Seconds", 0)), answer.status, body


def _call_for_files(server: Server, count: int) -> tuple[float, float, bool]:
    """Return the seconds of the call, the seconds of its script, and whether all files arrived complete."""
    took_s, script_s, status, body = _timed_call(server, {"X-Count": str(count)})
    if status != 200:
        return took_s, script_s, False
    content = base64.b64decode(body)
    if count == 1:
        return took_s, script_s, content == _file(0)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    return took_s, script_s, files == {f"{number:06}": _file(number) for number in range(count)}


MEASURES: dict[str, Callable[[Bench], Found]] = {
    "one_caller": one_caller,
    "eight_callers": eight_callers,
    "base64_in": base64_in,
    "base64_out": base64_out,
    "peak_memory": peak_memory,
    "idle": idle,
    "start": start,
    "input_size": input_size,
    "output_files": output_files,
    "callers": callers,
    "log_lines": log_lines,
    "endurance": endurance,
    "stall": stall,
}
