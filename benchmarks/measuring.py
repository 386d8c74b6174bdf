"""The common parts of all measures: the amount of work, the rows of the table, and contenders that take turns.

A value comes from one round of one contender. A ratio is made of two values of the same round, so that other work of
the machine affects both. The table has the medians of values and ratios, and the quartiles of ratios.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contenders import ENVIRONMENT, PATIENCE_S, ROOT, SCRIPT, Nginx, Server, Unavailable, Watchdog, Webhook
from load import Load

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

    ``values``: the values of each contender by round. ``against``: the contender to compare with. The target is then
    for the ratios of the watchdog's values to this contender's values. If ``against`` is None, the target is for the
    watchdog's values. ``limit``: the target, which is an upper limit, or a lower limit if ``more_is_better``.
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
    def contenders(self, prefix: Sequence[str] = ()) -> Iterator[tuple[dict[str, Server], dict[str, str]]]:
        """Start all available servers for the small job. Yield them, and the reasons why others are missing.

        Args:
            prefix: words before the commands of the servers.
        """
        with self.watchdogs(SCRIPT, max_inflight=MANY, prefix=prefix) as watchdogs:
            servers: dict[str, Server] = {**watchdogs}
            missing: dict[str, str] = {}
            try:
                for kind in (Webhook, Nginx):
                    try:
                        servers[kind.name] = kind(self.place(), prefix)
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


def bound(measure: Callable[[str], float], name: str) -> Callable[[], float]:
    return lambda: measure(name)


def only_if(missing: Mapping[str, str], name: str) -> dict[str, str]:
    return {name: missing[name]} if name in missing else {}


def size(size_bytes: int) -> str:
    for unit, bytes_ in (("GiB", 1024 * MIB), ("MiB", MIB), ("KiB", 1024)):
        if size_bytes >= bytes_:
            return f"{size_bytes / bytes_:g} {unit}"
    return f"{size_bytes} B"


def file_system(directory: Path) -> str:
    """Return the type of the directory's file system, such as ``tmpfs``; an empty string if it is not known."""
    command = ["stat", "--file-system", "--format=%T", str(directory)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def write(path: Path, pieces: Iterator[bytes]) -> None:
    with open(path, "wb") as file:
        file.writelines(pieces)


def seconds_of(command: list[str], stdout: Any) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=ENVIRONMENT, stdout=stdout, check=True, timeout=PATIENCE_S)
    return time.perf_counter() - began
