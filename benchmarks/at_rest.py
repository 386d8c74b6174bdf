"""The memory of a server that has nothing to do."""

from __future__ import annotations

import contextlib
import shutil
import statistics
from collections import defaultdict

from contenders import Watchdog
from installations import Installation, installations
from load import Caller
from measuring import Bench, Found, Row, Tally, alternated, bound


def idle(bench: Bench) -> Found:
    """Measure the memory of an idle server, after its start and after twenty calls."""
    return Found([row for installed in installations(bench) for row in _of(bench, installed)])


def _of(bench: Bench, installed: Installation) -> list[Row]:
    after_calls: defaultdict[str, list[float]] = defaultdict(list)
    guardians: defaultdict[str, list[float]] = defaultdict(list)
    tally = Tally()

    def at_rest(name: str) -> float:
        place = bench.place()
        server = Watchdog(place, source=installed.programs[name])
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

    names = {name: bound(at_rest, name) for name in installed.programs}
    values = alternated(names, bench.rounds or bench.scale.rounds) if names else {}
    rows = [
        Row("idle", f"idle memory {when}, {installed.how}", "MiB", dict(seen), 45.0, missing=dict(installed.missing))
        for when, seen in (("after the start", values), ("after 20 calls", after_calls))
    ]
    rows[1].not_right = dict(tally)
    if guardians["watchdog"]:
        own_mib = statistics.median(guardians["watchdog"])
        rows[1].notes.append(f"the guardian, a fork of the server, has {own_mib:.1f} MiB that it does not share")
    elif values:
        rows[1].notes.append("only root can see the memory of the guardian")
    return rows
