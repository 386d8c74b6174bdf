"""The work of the server for a small call: functions, turns of the event loop, system calls, and processor time.

Counts do not depend on the speed of the machine. They are medians over parts of the calls, so a short pause of the
machine does not change them.
"""

from __future__ import annotations

import contextlib
import os
import pstats
import re
import shutil
import signal
import statistics
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contenders import ENVIRONMENT, PATIENCE_S, Unavailable, Watchdog
from installations import Installation, base_name, installations
from load import Caller
from measuring import Bench, Found, Row, Tally, alternated, bound

_UNDER_PROFILE = Path(__file__).resolve().parent / "under_profile.py"
WARM_UP = 50  # calls before the measurement, because the first calls do more work
# Some file systems store times in whole seconds. If a script has not changed for two seconds, the server remembers its
# first line. If a directory has not changed for two seconds, the server uses it again with fewer checks.
SETTLED_S = 2.1
PART = 25  # the number of calls in one part of the profile
# Work that the server does after the answer is counted, too.
AFTER_ANSWER_S = 0.005
_OF_FILES = re.compile(r"openat|close|\w*stat\w*|getdents64|\w*xattr|unlink\w*|mkdir\w*|rmdir|rename\w*|link\w*|access")

Stats = dict[tuple[str, int, str], Any]


@dataclass
class Profile:
    """The counts of a call under Python's profiler, and the profile of each part."""

    functions: float
    turns: float
    parts: list[Stats]


@dataclass
class SystemCalls:
    """The system calls of the server's threads for a call. ``of_loop`` includes ``for_files``."""

    of_loop: float
    for_files: float
    of_other_threads: float

    @property
    def total(self) -> float:
        return self.of_loop + self.of_other_threads


def counts(bench: Bench) -> Found:
    """Count what the server does for a small call. These counts do not depend on the speed of the machine."""
    calls = 2 * bench.scale.calls
    checkouts = {name: source for name, source in bench.sources.items() if source.is_dir()}
    profiles = {name: profiled(source, calls, bench.place()) for name, source in checkouts.items()}
    functions = {name: [profile.functions] for name, profile in profiles.items()}
    turns = {name: [profile.turns] for name, profile in profiles.items()}
    traced: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    notes: list[str] = []
    try:
        for name, source in checkouts.items():
            seen = system_calls(source, calls, bench.place())
            traced[name] = [seen.total]
            notes.append(
                f"{name}: {seen.of_loop:.0f} of the event loop's thread ({seen.for_files:.0f} of them for files), "
                f"{seen.of_other_threads:.1f} of the other threads"
            )
    except Unavailable as reason:
        missing["strace"] = str(reason)
    return Found(
        [
            Row("counts", "Python functions called for a small call", "", functions, 450.0),
            Row("counts", "turns of the event loop for a small call", "", turns, 4.0),
            Row("counts", "system calls for a small call", "", traced, 60.0, missing=missing, notes=notes),
        ]
    )


def call_cpu(bench: Bench) -> Found:
    """Measure the server's processor time of a small call."""
    return Found([_call_cpu(bench, installed) for installed in installations(bench, with_base=True)])


def _call_cpu(bench: Bench, installed: Installation) -> Row:
    tally = Tally()
    servers: dict[str, Watchdog] = {}
    callers: dict[str, Caller] = {}

    def cpu_ms(name: str) -> float:
        before_s = servers[name].cpu_s()
        seen = callers[name].calls(bench.scale.calls)
        time.sleep(AFTER_ANSWER_S)
        return tally.value(name, seen, (servers[name].cpu_s() - before_s) / seen.calls * 1e3)

    with contextlib.ExitStack() as stack:
        for name, program in installed.programs.items():
            place = bench.place()
            stack.callback(shutil.rmtree, place)
            try:
                servers[name] = Watchdog(place, source=program)
            except Unavailable as reason:
                if name == "watchdog":
                    raise
                installed.missing[name] = str(reason)
                continue
            stack.callback(servers[name].stop)
            callers[name] = stack.enter_context(contextlib.closing(Caller(servers[name])))
            callers[name].calls(WARM_UP)
        rounds = bench.rounds or bench.scale.rounds
        values = alternated({name: bound(cpu_ms, name) for name in servers}, rounds) if servers else {}
    what = f"the server's processor time of a small call, {installed.how}"
    return Row(
        "call_cpu", what, "ms", values, 0.6, base_name(bench), not_right=dict(tally), missing=dict(installed.missing)
    )


def profiled(source: Path, calls: int, place: Path, **function: Any) -> Profile:
    """Serve calls under Python's profiler.

    Args:
        source: a checkout.
        place: a directory for the server, which is removed at the end.
        function: arguments of ``Watchdog`` for another function than the small call: ``script``, ``environ``.

    Raises:
        RuntimeError: an answer was wrong.
    """
    output = place.with_name(place.name + ".profile")
    server = Watchdog(place, source=source, launcher=(str(_UNDER_PROFILE), str(output)), **function)
    part = min(PART, calls)
    try:
        with contextlib.closing(Caller(server)) as caller:
            _settle(caller)
            parts = [_profile_of(server, caller, part, output) for _ in range(calls // part)]
    finally:
        server.stop()
        shutil.rmtree(place)
        output.unlink(missing_ok=True)
    turns = [sum(profile[key][1] for key in profile if key[2] == "_run_once") / part for profile in parts]
    functions = [sum(count for _, count, *_ in profile.values()) / part for profile in parts]
    return Profile(statistics.median(functions), statistics.median(turns), parts)


def _profile_of(server: Watchdog, caller: Caller, calls: int, output: Path) -> Stats:
    output.unlink(missing_ok=True)
    os.kill(server.pid, signal.SIGUSR1)
    _call(caller, calls)
    time.sleep(AFTER_ANSWER_S)
    os.kill(server.pid, signal.SIGUSR2)
    deadline = time.monotonic() + PATIENCE_S
    while not output.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return pstats.Stats(str(output)).stats  # type: ignore[attr-defined,no-any-return]


def system_calls(source: Path, calls: int, place: Path, **function: Any) -> SystemCalls:
    """Count system calls of the server's threads. strace does not attach to scripts, so these run at full speed.

    The arguments are those of :func:`profiled`.

    Raises:
        RuntimeError: an answer was wrong.
        Unavailable: strace is missing, or this user must not attach it to a server.
    """
    if shutil.which("strace", path=ENVIRONMENT["PATH"]) is None or os.geteuid() != 0:
        raise Unavailable("this needs root and the program strace")
    trace = place.with_name(place.name + ".strace")
    server = Watchdog(place, source=source, **function)
    try:
        with contextlib.closing(Caller(server)) as caller:
            _settle(caller)
            threads = sorted(os.listdir(f"/proc/{server.pid}/task"))
            command = ["strace", "-o", str(trace), *(f"--attach={thread}" for thread in threads)]
            with subprocess.Popen(command, stderr=subprocess.PIPE, env=ENVIRONMENT) as tracer:
                assert tracer.stderr is not None
                try:
                    attached = [tracer.stderr.readline() for _ in threads]
                    if not all(b" attached" in line for line in attached):
                        raise Unavailable(f"strace cannot attach: {attached[0].decode(errors='replace').strip()}")
                    _call(caller, calls)
                finally:
                    tracer.terminate()
        text = trace.read_text(errors="replace")
    finally:
        server.stop()
        shutil.rmtree(place)
        trace.unlink(missing_ok=True)
    by_call: list[Counter[str]] = []
    for thread, name, rest in re.findall(r"^(\d+) +(\w+)\((.*)", text, re.MULTILINE):
        if name == "recvfrom" and '"POST ' in rest:
            by_call.append(Counter())
        if by_call:
            is_loop = int(thread) == server.pid
            by_call[-1]["loop" if is_loop else "others"] += 1
            by_call[-1]["files"] += is_loop and bool(_OF_FILES.fullmatch(name))
    # A mean, because the system calls of the log's thread are not spread evenly over the calls.
    others = sum(each["others"] for each in by_call) / len(by_call)
    loop, files = (statistics.median(each[key] for each in by_call) for key in ("loop", "files"))
    return SystemCalls(loop, files, others)


def _settle(caller: Caller) -> None:
    """Call without a long pause, until the server is in the state in which it serves most calls."""
    until_s = time.monotonic() + SETTLED_S
    _call(caller, WARM_UP)
    while time.monotonic() < until_s:
        _call(caller, 1)
        time.sleep(0.02)
    _call(caller, WARM_UP)


def _call(caller: Caller, calls: int) -> None:
    if wrong := caller.calls(calls).not_right:
        raise RuntimeError(f"{wrong} of {calls} answers were wrong")
