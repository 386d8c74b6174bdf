"""Small calls at 0.2 CPU, which OSCAR gives to a service unless its definition asks for more."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from contextlib import closing

from contenders import Server
from control_group import NoControlGroup, limited_to, wait_for_share
from load import Caller
from measuring import Bench, Found, Row, Tally, alternated, bound, only_if

CPUS = 0.2


def limited_calls(bench: Bench) -> Found:
    """Measure the mean time of calls without pauses. All servers and their scripts are in one control group.

    The mean is used because a group waits after it has used its share. So most calls are quick, and a few are slow.
    """
    tally = Tally()
    what = f"small calls back to back at {CPUS} CPU, mean"
    try:
        with limited_to(CPUS) as prefix, bench.contenders(prefix) as (servers, missing):
            values = mean_times(bench, servers, tally)
    except NoControlGroup as reason:
        return Found([Row("limited_calls", what, "ms", {}, 1.1, "webhook", missing={"control group": str(reason)})])
    row = Row("limited_calls", what, "ms", values, 1.1, "webhook", not_right=dict(tally))
    row.missing = only_if(missing, "webhook")
    if "nginx+fcgiwrap" in values:
        others_ms = statistics.median(values["nginx+fcgiwrap"])
        row.notes.append(f"in the same group, nginx+fcgiwrap takes {others_ms:.1f} ms")
    return Found([row])


def mean_times(bench: Bench, servers: Mapping[str, Server], tally: Tally) -> dict[str, list[float]]:
    """Return the mean milliseconds of calls back to back, by round. The servers are in one control group."""

    def call(name: str) -> float:
        with closing(Caller(servers[name])) as caller:
            wait_for_share()
            seen = caller.calls(bench.scale.calls)
        return tally.value(name, seen, seen.elapsed_s / seen.calls * 1e3)

    for server in servers.values():  # because the first calls do more work
        with closing(Caller(server)) as caller:
            caller.calls(min(bench.scale.calls, 20))
    return alternated({name: bound(call, name) for name in servers}, bench.rounds or bench.scale.rounds)
