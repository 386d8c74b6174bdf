"""The growth of a cost with the amount of work: bytes, output files, callers and log lines."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import itertools
import math
import shutil
import statistics
import time
import zipfile
from collections import Counter
from pathlib import Path

import load
from contenders import PATIENCE_S, SCRIPT, Server, Watchdog
from load import Content
from measuring import KEEP, MANY, MIB, Bench, Found, Growth, Row, Tally, alternated, bound


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
            for name, values in alternated({name: bound(call, name) for name in servers}, rounds).items():
                costs[name].append(values)
    what = "time of a call by size of the file, in and out"
    growth = Growth("input_size", what, "bytes", "ms", bench.scale.sizes_bytes, costs)
    return Found(growths=[growth], rows=[_growth_row(growth, tally)])


def output_files(bench: Bench) -> Found:
    """Measure the server's own time of a call, without the script's time, for each number of output files."""
    tally = Tally()
    costs: dict[str, list[list[float]]] = {name: [] for name in bench.sources}
    templates = bench.place()
    with bench.watchdogs(f'cp -r {templates}/"$Http_X_Count"/. "$TMP_OUTPUT_DIR"\n') as servers:
        for count in bench.scale.output_counts:
            make_files(templates / str(count), count)

            def call(name: str, count: int = count) -> float:
                took_s, script_s, is_right = call_for_files(servers[name], count)
                tally[name] += not is_right
                return (took_s - script_s) * 1e3

            rounds = bench.rounds or (3 if count > 100 else 5 * bench.scale.rounds)
            for name, values in alternated({name: bound(call, name) for name in servers}, rounds).items():
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
            for name, values in alternated({name: bound(call, name) for name in servers}, rounds).items():
                costs[name].append(values)
    what = "time divided by the number of calls, by number of callers"
    growth = Growth("callers", what, "callers", "ms", bench.scale.callers, costs, is_flat=True)
    return Found(growths=[growth], rows=[_growth_row(growth, tally)])


# Lines of one burst, for which the log buffer of the server has room. The server writes them in the pause after it.
_BURST = 10_000
# The cost of a line is measured, not the limit for the lines of one call.
_NO_LIMIT = {"WATCHDOG_MAX_LOG_RATE": "0"}
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
    with bench.watchdogs(_IN_BURSTS, environ=_NO_LIMIT) as servers:
        for count in bench.scale.lines:

            def call(name: str, count: int = count) -> float:
                before_s = servers[name].cpu_s()
                _, _, status, answer = timed_call(servers[name], {"X-Count": str(count)})
                tally[name] += (status, answer) != (200, b"")
                printed[name] += count
                return (servers[name].cpu_s() - before_s) * 1e3

            rounds = bench.rounds or (min(3, bench.scale.rounds) if count > _BURST else 5 * bench.scale.rounds)
            for name, values in alternated({name: bound(call, name) for name in servers}, rounds).items():
                costs[name].append(values)
        notes = [_dropped(name, server, printed[name], tally, "in bursts") for name, server in servers.items()]
    with bench.watchdogs('seq "$Http_X_Count" >&2\n', environ=_NO_LIMIT) as servers:
        for name, server in servers.items():
            took_s, _, status, answer = timed_call(server, {"X-Count": str(bench.scale.lines[-1])})
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

    The ratio is that of the larger to the smaller value, so 1 is linear. A cost with a step is above the line. A
    cost that grows faster than the amount is below the line. If the cost should be constant, return the largest ratio
    of the costs of two neighbouring amounts.
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


def make_files(directory: Path, count: int) -> None:
    directory.mkdir(parents=True)
    for number in range(count):
        (directory / f"{number:06}").write_bytes(_file(number))


def _file(number: int) -> bytes:
    return f"{number:06}\n".encode() * 16


def timed_call(server: Server, headers: dict[str, str]) -> tuple[float, float, int, bytes]:
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


def call_for_files(server: Server, count: int) -> tuple[float, float, bool]:
    """Return the seconds of the call, the seconds of its script, and whether all files arrived complete."""
    took_s, script_s, status, body = timed_call(server, {"X-Count": str(count)})
    if status != 200:
        return took_s, script_s, False
    content = base64.b64decode(body)
    if count == 1:
        return took_s, script_s, content == _file(0)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    return took_s, script_s, files == {f"{number:06}": _file(number) for number in range(count)}
