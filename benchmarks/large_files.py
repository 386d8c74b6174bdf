"""Large files in and out: the rate compared with coreutils, and the peak memory of the server."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import load
from contenders import Watchdog
from load import Content, at_once
from measuring import KEEP, MANY, MIB, Bench, Found, Row, Tally, alternated, bound, seconds_of, size, write


def base64_in(bench: Bench) -> Found:
    """Measure the decoded MiB a second of a large body in base64, against ``base64 -d`` from file to file."""
    content = Content(bench.scale.throughput_bytes)
    place = bench.place()
    place.mkdir()
    encoded, decoded, kept = place / "encoded", place / "decoded", place / "kept"
    write(encoded, content.base64())
    tally = Tally()

    def call(name: str) -> float:
        took_s, is_right = load.exchange(servers[name], content, [b"kept\n"])
        tally[name] += not (is_right and content.is_in(kept))
        kept.unlink(missing_ok=True)
        return content.size_bytes / MIB / took_s

    def coreutils(name: str, target: Path) -> float:
        with open(target, "wb") as file:
            took_s = seconds_of(["base64", "-d", str(encoded)], file)
        if target == decoded:
            tally[name] += not content.is_in(decoded)
            decoded.unlink()
        return content.size_bytes / MIB / took_s

    with bench.watchdogs(f'mv "$INPUT_FILE_PATH" {kept}; echo kept\n') as servers:
        contenders = {
            "base64 -d": lambda: coreutils("base64 -d", decoded),
            "base64 -d >/dev/null": lambda: coreutils("base64 -d >/dev/null", Path(os.devnull)),
        } | {name: bound(call, name) for name in servers}
        values = alternated(contenders, bench.rounds or bench.scale.rounds)
    shutil.rmtree(place)
    return Found(
        [
            Row(
                "base64_in",
                f"{size(content.size_bytes)} in, decoded",
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
    write(source, content.raw())
    tally = Tally()

    def call(name: str) -> float:
        took_s, is_right = load.exchange(servers[name], None, itertools.chain(content.base64(), [b"\n"]))
        tally[name] += not is_right
        return content.size_bytes / MIB / took_s

    def coreutils() -> float:
        with open(os.devnull, "wb") as file:
            return content.size_bytes / MIB / seconds_of(["base64", "-w0", str(source)], file)

    with bench.watchdogs(f'ln {source} "$TMP_OUTPUT_DIR/out"\n') as servers:
        contenders = {"base64 -w0": coreutils} | {name: bound(call, name) for name in servers}
        values = alternated(contenders, bench.rounds or bench.scale.rounds)
    shutil.rmtree(place)
    return Found(
        [
            Row(
                "base64_out",
                f"{size(content.size_bytes)} out, encoded",
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

        values = alternated({name: bound(peak, name) for name in bench.sources}, min(2, bench.rounds or 2))
        times = "" if count == 1 else f"{count} x "
        what = f"peak memory, {times}{size(size_bytes)} in and out"
        rows.append(Row("peak_memory", what, "MiB", values, limit_mib, not_right=dict(tally)))
    return Found(rows)
