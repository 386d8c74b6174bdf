"""The time of a call and the memory of a server after many calls."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import threading
import time
from typing import Any

import load
from contenders import Server, Watchdog
from load import Caller
from measuring import MANY, Bench, Found, Row, Tally, alternated, bound


def endurance(bench: Bench) -> Found:
    """Measure the time of a call and the memory of a server after many calls.

    This server takes turns with a new server, which has served a hundred calls.

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

            times = alternated({age: bound(call, age) for age in ages}, 10)
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
    # This is less than the planned number if the time was not enough.
    served = details["watchdog"]["calls"][-1]
    after = f"after {served:,} calls, compared with a server after 100 calls"
    times_ms = values | {"fresh server": fresh_values["watchdog"]}
    if "against" in fresh_values:
        times_ms["against, fresh server"] = fresh_values["against"]
    return Found(
        [
            Row("endurance", f"time of a call {after}", "ms", times_ms, 1.05, "fresh server", not_right=dict(tally)),
            Row("endurance", f"additional memory {after}", "MiB", more_mib, 2.0),
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
    """Call until the server has served ``invocations`` calls, or until five minutes have passed.

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
