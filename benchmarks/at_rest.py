"""The memory of a server that has nothing to do."""

from __future__ import annotations

import contextlib
import shutil
import statistics
from collections import defaultdict

from contenders import Watchdog
from load import Caller
from measuring import Bench, Found, Row, Tally, alternated, bound


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

    values = alternated({name: bound(at_rest, name) for name in bench.sources}, bench.rounds or bench.scale.rounds)
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
