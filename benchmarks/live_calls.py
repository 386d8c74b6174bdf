"""Live calls whose callers read nothing while the scripts print without a pause: memory, scripts and other calls.

The same calls without a stream show which part of the cost the stream causes.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import statistics
import time
from collections import defaultdict

from contenders import PATIENCE_S, SCRIPT, Server, Watchdog
from load import Caller
from measuring import Bench, Found, Row, Tally, alternated

_UNWATCHED = "without a stream"
_MOST_CALLERS = 100
_MOST_LINES = 10_000
_LOOK_S = 0.01
# A script with the header X-Lines prints that many lines of 100 characters. It makes a file at its end.
_SCRIPT = """if [ -n "$Http_X_Lines" ]; then
  yes "$(printf %0100d 7)" | head -n "$Http_X_Lines" >&2
  exec mktemp {ended}/XXXXXXXXXX > "$TMP_OUTPUT_DIR/out"
fi
"""


def live_stalled(bench: Bench) -> Found:
    """Measure a server with many callers that have asked for a stream and read nothing of it."""
    callers = min(_MOST_CALLERS, bench.scale.callers[-1])
    lines = min(_MOST_LINES, bench.scale.lines[-1])
    tally = Tally()
    memory_mib, script_s, call_ms = (defaultdict[str, list[float]](list) for _ in range(3))

    def run(name: str, query: str) -> float:
        place = bench.place()
        ended = place / "ended"
        ended.mkdir(parents=True)
        server = Watchdog(
            place / "server",
            script=_SCRIPT.format(ended=ended) + SCRIPT,
            max_inflight=callers + 1,
            flags=("--max-log-rate=0", "--write-timeout=0"),
        )
        try:
            with contextlib.ExitStack() as stack:
                stalled = [stack.enter_context(_caller_that_reads_late(server)) for _ in range(callers)]
                began_s = time.perf_counter()
                for each in stalled:
                    each.sendall(_request(query, lines))
                while sum(1 for _ in ended.iterdir()) < callers:
                    if time.perf_counter() - began_s > PATIENCE_S:
                        raise TimeoutError("the scripts did not end")
                    time.sleep(_LOOK_S)
                script_s[name].append(time.perf_counter() - began_s)
                with contextlib.closing(Caller(server)) as caller:
                    load = caller.calls(bench.scale.calls)
                call_ms[name].append(1e3 * statistics.median(load.times_s))
                memory_mib[name].append(server.memory_mib("VmHWM"))
                tally[name] += load.not_right + sum(not _is_right(_read_all(each), query, lines) for each in stalled)
        finally:
            server.stop()
            shutil.rmtree(place)
        return memory_mib[name][-1]

    contenders = {"watchdog": lambda: run("watchdog", "/?output=events"), _UNWATCHED: lambda: run(_UNWATCHED, "/")}
    alternated(contenders, bench.rounds or min(3, bench.scale.rounds))
    what = f"{callers} callers that read nothing of a stream of {lines:,} lines each"
    rows = [
        Row("live_stalled", f"peak memory, {what}", "MiB", memory_mib, 64.0),
        Row("live_stalled", "time until the scripts of these callers have ended", "s", script_s, 1.5, _UNWATCHED),
        Row("live_stalled", "a small call beside these callers", "ms", call_ms, 1.25, _UNWATCHED),
    ]
    for row in rows:
        row.not_right = dict(tally)
    return Found(rows)


def _caller_that_reads_late(server: Server) -> socket.socket:
    caller = socket.socket()
    # The kernel then holds few bytes for this caller.
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    caller.settimeout(PATIENCE_S)
    caller.connect(("127.0.0.1", server.port))
    return caller


def _request(path: str, lines: int) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-Lines: {lines}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    return head.encode()


def _read_all(caller: socket.socket) -> bytes:
    pieces = []
    while piece := caller.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def _is_right(answer: bytes, path: str, lines: int) -> bool:
    """Return whether a call succeeded. In a stream, each line must be there or must be counted as dropped."""
    if not answer.startswith(b"HTTP/1.1 200 "):
        return False
    if path == "/":
        return True
    sent = answer.count(b"event: log\n")
    dropped = sum(map(int, re.findall(rb'event: dropped\ndata: \{"lines":(\d+)\}', answer)))
    return sent + dropped == lines and b'"outcome":"ok"' in answer
