"""Show the parts of the time of a small call and of a start, in this checkout and in others, as Markdown.

    python benchmarks/breakdown.py [--against CHECKOUT]... [--calls N] [--warm]

With ``--warm``, the calls are those of a warm function with one worker.

Calls are measured with three servers of each checkout. The first runs as usual, and the kernel counts its processor
time and its context switches. The second runs under Python's profiler, which counts the functions of each package. (The
profiler makes code with many small functions look more expensive than it is.) The third runs under strace, which counts
the system calls of the server's own threads. This needs root and the program strace. Starts are measured with
``python -X importtime``.

Counts of functions, turns of the event loop and system calls are medians, so a short pause of the machine does not
change them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from contenders import ENVIRONMENT, ROOT, Unavailable, Watchdog, server_python
from counts import AFTER_ANSWER_S, PART, WARM_UP, profiled, system_calls
from load import Caller
from warm_calls import warm_function

STARTS = 11
PACKAGES = ("watchdog", "aiohttp", "httptools", "asyncio", "ssl", "msgspec", "structlog", "multipart", "yarl")
# For each row of the table: a pattern for the file and name of its functions. The first pattern that matches counts.
PLACES = (
    (r"/watchdog/process[/.]|posix_spawn|wait4|pidfd_open", "process, and starting the script"),
    (r"/watchdog/(workspace|input|output|intake|response_file|delivery)[/.]", "workspace, input, output"),
    (r"mkdir|rmdir|unlink|scandir|posix\.(open|l?stat|listxattr)", "system calls for files"),
    (r"/watchdog/", "the rest of watchdog"),
    (r"/aiohttp/|_http_parser|/yarl/|multidict|httptools", "libraries for HTTP"),
    (r"/asyncio/|selectors\.py|_asyncio|_socket|Context", "asyncio, sockets"),
    (r"/structlog/|msgspec", "structlog, msgspec"),
    (r"", "other builtins and modules"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, action="append", default=[], metavar="CHECKOUT")
    parser.add_argument("--calls", type=int, default=1000, metavar="N")
    parser.add_argument("--warm", action="store_true")
    options = parser.parse_args()
    function = warm_function(1) if options.warm else {}
    call = "of a warm call" if options.warm else "of a small call"
    checkouts = [*(path.resolve() for path in options.against), ROOT]
    with tempfile.TemporaryDirectory() as place:
        names = [_name(checkout) for checkout in checkouts]
        counted = _counted(checkouts, options.calls, Path(place), function)
        print(_table(call, names, counted))
        profiles = [_profile(checkout, options.calls, Path(place), function) for checkout in checkouts]
        print(_table(f"{call}, under the profiler", names, profiles))
        traced = [_system_calls(checkout, options.calls, Path(place), function) for checkout in checkouts]
        print(_table(f"{call}, under strace", names, traced))
        print(_table("of a start", names, [_imports(checkout) for checkout in checkouts]))


def _counted(checkouts: list[Path], calls: int, place: Path, function: dict[str, Any]) -> list[dict[str, str]]:
    with contextlib.ExitStack() as stack:
        servers, callers = [], []
        for number, checkout in enumerate(checkouts):
            servers.append(Watchdog(place / str(number), source=checkout, **function))
            stack.callback(servers[-1].stop)
            callers.append(stack.enter_context(contextlib.closing(Caller(servers[-1]))))
            callers[-1].calls(WARM_UP)
        times: list[list[float]] = [[] for _ in checkouts]
        cpu_s = [0.0] * len(checkouts)
        in_kernel_s = [0.0] * len(checkouts)
        switches: list[Counter[str]] = [Counter() for _ in checkouts]
        for part in range(calls // PART):
            for number in sorted(range(len(checkouts)), key=lambda number: (number + part) % len(checkouts)):
                before_s, before = servers[number].cpu_s(), _switches(servers[number].pid)
                in_kernel_s[number] -= _in_kernel_s(servers[number].pid)
                load = callers[number].calls(PART)
                time.sleep(AFTER_ANSWER_S)
                assert not load.wrong
                times[number] += load.times_s
                cpu_s[number] += servers[number].cpu_s() - before_s
                in_kernel_s[number] += _in_kernel_s(servers[number].pid)
                switches[number] += _switches(servers[number].pid) - before
        done = calls // PART * PART
        return [
            {
                "median time of a call (ms)": f"{statistics.median(times[number]) * 1e3:.2f}",
                "processor time of the server (ms)": f"{cpu_s[number] / done * 1e3:.2f}",
                "processor time in the kernel (ms)": f"{in_kernel_s[number] / done * 1e3:.2f}",
                "times that a thread of the server waited": f"{switches[number]['voluntary'] / done:.1f}",
                "times that a thread of the server was preempted": f"{switches[number]['nonvoluntary'] / done:.1f}",
            }
            for number in range(len(checkouts))
        ]


def _in_kernel_s(pid: int) -> float:
    """Return the processor time in the kernel in seconds, in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[12]) / os.sysconf("SC_CLK_TCK")


def _switches(pid: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            for kind, count in re.findall(r"\n(\w+)_ctxt_switches:\s+(\d+)", (task / "status").read_text()):
                found[kind] += int(count)
    return found


def _profile(checkout: Path, calls: int, place: Path, function: dict[str, Any]) -> dict[str, str]:
    profile = profiled(checkout, calls, place / f"profiled-{time.monotonic_ns()}", **function)
    waited_s = 0.0
    by_place: Counter[str] = Counter()
    for part in profile.parts:
        for (file, _, name), (_, _, own_s, _, _) in part.items():
            if "poll" in name and "epoll" in name:
                waited_s += own_s
            else:
                by_place[next(each for pattern, each in PLACES if re.search(pattern, f"{file} {name}"))] += own_s
    done = len(profile.parts) * PART
    return {
        "functions called": f"{profile.functions:.0f}",
        "turns of the event loop": f"{profile.turns:.1f}",
        "waited for the script and the caller (ms)": f"{waited_s / done * 1e3:.2f}",
        **{f"in {place} (ms)": f"{by_place[place] / done * 1e3:.2f}" for _, place in PLACES},
    }


def _system_calls(checkout: Path, calls: int, place: Path, function: dict[str, Any]) -> dict[str, str]:
    rows = ("system calls of the event loop's thread", "system calls for files", "system calls of the other threads")
    try:
        seen = system_calls(checkout, calls, place / f"traced-{time.monotonic_ns()}", **function)
    except Unavailable as reason:
        return dict.fromkeys(rows, str(reason))
    return dict(
        zip(rows, (f"{seen.of_loop:.0f}", f"{seen.for_files:.0f}", f"{seen.of_other_threads:.1f}"), strict=True)
    )


def _server_module(checkout: Path) -> str:
    """Return the module of the server. It was not in a folder before 0.2.0."""
    return "watchdog.http.server" if (checkout / "watchdog" / "http").exists() else "watchdog.server"


def _imports(checkout: Path) -> dict[str, str]:
    own_ms: dict[str, list[float]] = {"": []}
    for _ in range(STARTS):
        command = [server_python(), "-X", "importtime", "-c", f"import {_server_module(checkout)}"]
        done = subprocess.run(command, cwd=checkout, env=ENVIRONMENT, capture_output=True, text=True, check=True)
        by_package: Counter[str] = Counter()
        for own_us, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr):
            by_package[name.partition(".")[0]] += int(own_us)
        own_ms[""].append(by_package.total() / 1e3)
        for name in PACKAGES:
            own_ms.setdefault(name, []).append(by_package[name] / 1e3)
    return {
        f"imports of {name or 'the server'} (ms)": f"{statistics.median(times):.1f}" for name, times in own_ms.items()
    }


def _name(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return "this checkout" if checkout == ROOT else commit or checkout.name


def _table(what: str, names: list[str], columns: list[dict[str, str]]) -> str:
    lines = [f"| {what} | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    lines += [f"| {row} | {' | '.join(column[row] for column in columns)} |" for row in columns[0]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
