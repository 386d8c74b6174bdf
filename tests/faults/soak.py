"""Good, bad, slow and disconnecting callers call one real server for a while. No answer may be lost, nothing may stay.

::

    python tests/faults/soak.py --seconds 600

This program starts a server with small limits and sends it a random mixture of calls. Each call has its own id, and its
body shows whether the answer is right. At the end, the program waits until the server is idle, searches for everything
that calls may have left, stops the server, and prints a table. The exit code is 0 if no answer was lost and nothing
leaked.

The same ``--seed`` makes the same calls, but their order in time depends on the machine.
"""

from __future__ import annotations

import argparse
import re
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ledger import MOST_PRINTED, Ledger
from leftovers import MOST_THREADS, children, described, descriptors, processes_with, threads
from lifeline import Lifeline
from running_server import free_port, is_guardian
from soak_callers import Caller
from soaked_server import MAX_INFLIGHT, MAX_INPUT_BYTES, MAX_OUTPUT_BYTES, SCRIPT, TIMEOUT_S, SoakedServer

MOST_CALLS = 200_000
# The number of calls after which the server has made all objects that it makes only once, and its allocator has grown.
WARM_CALLS = 1000
# The allowed growth of the idle memory between two measurements. The server under test has one arena of the C library,
# and no caches of freed memory for each thread. So only little may remain: 12 KiB for the stack of each new thread, and
# a few of Python's arenas of 1 MiB. Python returns an arena only if it is completely free. In 16,000 calls the memory
# in use grew by 0.0 MiB in the C library and by 0.01 MiB in Python. The whole process grew by 1.2 MiB in 12,500 calls.
MOST_GROWTH_MIB = 4.0
# Pieces of memory that Python has allocated. An object has one or more of them. In 12,500 calls their number grew by
# 400, and in short runs by up to 1,300: for cancelled timers that asyncio still keeps, and for objects that are made
# only once. So a leak of one object in each call shows after 4,000 calls, and a leak of the call's headers after a few
# hundred.
MOST_NEW_BLOCKS = 4000
# glibc keeps up to 0.2 MiB of freed memory for each thread. These caches fill slowly, and would look like a leak.
NO_THREAD_CACHES = "glibc.malloc.tcache_count=0"


@dataclass(frozen=True, slots=True)
class State:
    """The processes, descriptors, threads and memory of an idle server."""

    descriptors: Counter[str]
    threads: int
    tasks: list[str]
    memory_mib: float
    blocks: int
    objects: Mapping[str, int]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600, help="how long to call (default: %(default)s)")
    parser.add_argument("--callers", type=int, default=24, help="how many call at once (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=MOST_CALLS, help="end after so many calls (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the dice (default: a new one, which is printed)")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for rest (default: %(default)s)")
    parser.add_argument("--without", metavar="GUARD", help="take a guard of guards.py out: this must be noticed")
    options = parser.parse_args(arguments)
    program: tuple[str, ...] = (str(Path(__file__).resolve().parent / "inspected_server.py"),)
    if options.without is not None:
        program += ("--without", options.without)
    seed = options.seed if options.seed is not None else secrets.randbelow(10**6)
    print(f"seed {seed}, {options.callers} callers, {options.seconds:g} seconds", flush=True)
    # If this program is ended early, its server must end, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        lost, leaks = soak(Path(directory), program, options, seed)
    print(f"lost answers: {lost}")
    print(f"leaks: {leaks}")
    return 1 if lost or leaks else 0


def soak(directory: Path, program: tuple[str, ...], options: argparse.Namespace, seed: int) -> tuple[int, int]:
    """Run the soak and print the table. Return the numbers of lost answers and of leaks."""
    ledger = Ledger()
    marks = directory / "marks"
    marks.mkdir()
    lifeline = Lifeline(directory / "lifeline")
    mark = f"SOAK_MARK={secrets.token_hex(8)}"
    server = SoakedServer(
        ledger,
        program,
        directory,
        lifeline.script_line + SCRIPT,
        SOAK_MARK=mark.partition("=")[2],
        GLIBC_TUNABLES=NO_THREAD_CACHES,
        MARKS=str(marks),
        WATCHDOG_METRICS_PORT=str(free_port()),
        WATCHDOG_MAX_INFLIGHT=str(MAX_INFLIGHT),
        WATCHDOG_MAX_QUEUE=str(max(4, options.callers - MAX_INFLIGHT)),
        WATCHDOG_QUEUE_TIMEOUT="5s",
        WATCHDOG_EXEC_TIMEOUT=f"{TIMEOUT_S}s",
        WATCHDOG_READ_TIMEOUT=f"{TIMEOUT_S}s",
        WATCHDOG_WRITE_TIMEOUT=f"{TIMEOUT_S}s",
        WATCHDOG_KILL_GRACE="1s",
        WATCHDOG_HEALTHCHECK_INTERVAL="200ms",
        WATCHDOG_MAX_INPUT_SIZE=str(MAX_INPUT_BYTES),
        WATCHDOG_MAX_OUTPUT_SIZE=str(MAX_OUTPUT_BYTES),
    )
    try:
        started_s = time.monotonic()
        everyone = [Caller(number, seed, server, ledger, marks) for number in range(options.callers)]
        idle = _sockets(server)
        memory_mib: list[float] = []

        def now_and_then() -> None:
            # Each script writes into it, and a full pipe would block them.
            lifeline.was_held()
            memory_mib.append(server.memory_mib("VmRSS"))

        def part_done() -> float:
            part: float = max((time.monotonic() - started_s) / options.seconds, ledger.kinds.total() / options.calls)
            return part

        def is_warm() -> bool:
            part = part_done()
            return part >= 0.5 or (part >= 0.1 and ledger.kinds.total() >= WARM_CALLS)

        _drive(everyone, is_warm, now_and_then)
        _await_rest(server, lifeline, idle, None, options.patience)
        before = _state(server)
        _drive(everyone, lambda: part_done() >= 1, now_and_then)
        took_s = time.monotonic() - started_s
        unrest = _await_rest(server, lifeline, idle, before, options.patience)
        after = _state(server)
        now_and_then()
        metrics = _metrics(server)
        alive = {*processes_with(mark.encode()), *lifeline.holders()} - {server.process.pid}
        # The guardian is a fork of the server, so it has the same environment.
        alive = {pid for pid in alive if not is_guardian(pid, of=server.process.pid)}
        exit_code = server.stop()
        stopped = [f"exit code {exit_code}"] if exit_code else []
        stopped += [f"left in tmp: {path}" for path in server.leftovers()]
        leaks = _leaks(ledger, unrest, before, after, metrics, alive, stopped)
    finally:
        server.kill()
        lifeline.close()
    _print_table(ledger, took_s, memory_mib, before, after, leaks)
    return ledger.lost.total(), sum(len(found) for found in leaks.values())


def _drive(everyone: list[Caller], is_over: Callable[[], bool], now_and_then: Callable[[], None]) -> None:
    crew = [threading.Thread(target=caller.call_until, args=(is_over,), daemon=True) for caller in everyone]
    for thread in crew:
        thread.start()
    while any(thread.is_alive() for thread in crew):
        now_and_then()
        time.sleep(0.1)


def _await_rest(
    server: SoakedServer, lifeline: Lifeline, idle: int, before: State | None, patience_s: float
) -> dict[str, list[str]]:
    """Wait until the server has nothing to do. Return what is still there after a while, by rows of the table."""
    deadline_s = time.monotonic() + patience_s
    while True:
        unrest = _unrest(server, lifeline, idle, before)
        if not any(unrest.values()) or time.monotonic() > deadline_s:
            return unrest
        time.sleep(0.05)


def _unrest(server: SoakedServer, lifeline: Lifeline, idle: int, before: State | None) -> dict[str, list[str]]:
    metrics = _metrics(server)
    gauges = ("http_requests_in_flight", "watchdog_places_taken", "watchdog_calls_waiting")
    more_descriptors = _kinds_of_descriptors(server) - (before.descriptors if before else Counter())
    sockets = max(0, _sockets(server) - idle)
    return {
        "calls that never ended": [f"{name} is {metrics[name]:g}" for name in gauges if metrics[name]],
        "children and zombies": children(server.process.pid),
        "directories in tmp": [str(path) for path in server.tmp.glob("watchdog-*/[0-9]*")],
        "surviving processes": [described(pid) for pid in lifeline.holders()] if lifeline.is_held() else [],
        "descriptors": ["socket"] * sockets
        + [name for name in more_descriptors.elements() if name != "socket" and before is not None],
    }


def _sockets(server: SoakedServer) -> int:
    return sum(name.startswith("socket:") for name in descriptors(server.process.pid))


def _kinds_of_descriptors(server: SoakedServer) -> Counter[str]:
    return Counter(name.partition(":[")[0] for name in descriptors(server.process.pid))


def _state(server: SoakedServer) -> State:
    """Measure an idle server from outside, and, with a signal, from inside."""
    kinds = _kinds_of_descriptors(server), threads(server.process.pid)
    server.signal(signal.SIGUSR2)
    inside = server.event("inspected")
    return State(*kinds, inside["names"], inside["memory_kib"] / 1024, inside["blocks"], inside["objects"])


def _metrics(server: SoakedServer) -> dict[str, float]:
    text = server.ask("/metrics", server.metrics_port).decode()
    return {name: float(value) for name, value in re.findall(r"^([^#\s]+) (\S+)$", text, re.MULTILINE)}


def _leaks(
    ledger: Ledger,
    unrest: Mapping[str, list[str]],
    before: State,
    after: State,
    metrics: Mapping[str, float],
    alive: Iterable[int],
    stopped: list[str],
) -> dict[str, list[str]]:
    """Return all faults, by the names of the rows of the table."""
    growth_mib = after.memory_mib - before.memory_mib
    more_blocks = after.blocks - before.blocks
    counted = {
        outcome: metrics.get(f'watchdog_invocations_total{{outcome="{outcome}"}}', 0)
        for outcome in ledger.ends_by_outcome
    }
    return {
        **unrest,
        "surviving processes": ledger.survivors + [f"{described(pid)} lives after all calls" for pid in alive],
        "threads": [f"{after.threads}, {before.threads} before"]
        if after.threads > max(before.threads, MOST_THREADS)
        else [],
        "tasks": list((Counter(after.tasks) - Counter(before.tasks)).elements()),
        "memory": [f"{growth_mib:.1f} MiB more: {before.objects}, {after.objects}"]
        if growth_mib > MOST_GROWTH_MIB
        else [],
        "objects": [f"{more_blocks} more blocks of memory: {before.objects}, {after.objects}"]
        if more_blocks > MOST_NEW_BLOCKS
        else [],
        "errors in the log": [f"{count} x {text}" for text, count in ledger.bad_events.items()],
        "ends that do not fit the calls": ledger.misfits()
        + [
            f"{ledger.ends_by_outcome[outcome]} ends {outcome!r} in the log, {count:g} in the metrics"
            for outcome, count in counted.items()
            if count != ledger.ends_by_outcome[outcome]
        ],
        "after SIGTERM": stopped,
    }


def _print_table(
    ledger: Ledger,
    took_s: float,
    memory_mib: list[float],
    before: State,
    after: State,
    leaks: Mapping[str, list[str]],
) -> None:
    calls = ledger.kinds.total()
    faults = sum(count for kind, count in ledger.kinds.items() if not kind.startswith(("good", "probe")))
    rows: list[tuple[str, object]] = [
        ("seconds", f"{took_s:.1f}"),
        ("calls", calls),
        ("calls per second", f"{calls / took_s:.1f}"),
        ("faults injected", faults),
        ("script lines in the log", ledger.script_lines),
        ("memory at rest, once warm and at the end", f"{before.memory_mib:.1f} MiB, {after.memory_mib:.1f} MiB"),
        ("Python's blocks, once warm and at the end", f"{before.blocks}, {after.blocks}"),
        (
            "memory at each tenth",
            " ".join(f"{each:.0f}" for each in memory_mib[:: len(memory_mib) // 10 or 1]) + " MiB",
        ),
        ("threads once warm, at the end", f"{before.threads}, {after.threads}"),
        ("descriptors once warm, at the end", f"{before.descriptors.total()}, {after.descriptors.total()}"),
    ]
    print_rows("", rows)
    print_rows("calls by kind", sorted(ledger.kinds.items()))
    print_rows("answers by status", sorted(ledger.answers.items()))
    print_rows("invocations by outcome in the log", sorted(ledger.ends_by_outcome.items()))
    print_rows("lost answers", [(how, ledger.lost[how]) for how in ("none", "cut", "wrong")])
    for line in ledger.lost_lines:
        print(f"    {line}")
    print_rows("leaks", [(name, len(found)) for name, found in leaks.items()])
    for name, found in leaks.items():
        for line in found[:MOST_PRINTED]:
            print(f"    {name}: {line}")


def print_rows(title: str, rows: Iterable[tuple[str, object]]) -> None:
    """Print a part of a table."""
    if title:
        print(f"\n{title}")
    for name, value in rows:
        print(f"  {name:<40} {value}")


if __name__ == "__main__":
    sys.exit(main())
