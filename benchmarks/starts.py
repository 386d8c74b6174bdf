"""The start of a server."""

from __future__ import annotations

import shutil
import time

from contenders import Watchdog, free_port, server_python
from measuring import Bench, Found, Row, alternated, bound, seconds_of


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
    contenders = {name: bound(begin, name) for name in bench.sources}
    contenders["python -c pass"] = lambda: seconds_of([server_python(), "-c", "pass"], None)
    return Found([Row("start", "from exec to the first 200", "s", alternated(contenders, bench.scale.starts), 0.30)])
