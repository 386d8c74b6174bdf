"""Show where the time of a small call and of a start goes, for this checkout and others, as Markdown.

    python benchmarks/breakdown.py [--against CHECKOUT]... [--calls N]

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
import cProfile
import os
import pstats
import re
import runpy
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from contenders import ENVIRONMENT, PATIENCE_S, ROOT, Watchdog, server_python
from load import Caller

UNDER_PROFILE = "--under-profile"
STARTS = 11
PACKAGES = ("watchdog", "aiohttp", "httptools", "asyncio", "ssl", "msgspec", "structlog", "multipart", "yarl")
PART = 25  # calls of one checkout before the next checkout's turn; each count is taken over so many calls
_OF_FILES = re.compile(r"openat|close|\w*stat\w*|getdents64|\w*xattr|unlink\w*|mkdir\w*|rmdir|rename\w*|link\w*|access")
# Patterns for the file and name of a function, and the row of the table for it. The first pattern that matches counts.
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
    options = parser.parse_args()
    checkouts = [*(path.resolve() for path in options.against), ROOT]
    with tempfile.TemporaryDirectory() as place:
        names = [_name(checkout) for checkout in checkouts]
        counted = _counted(checkouts, options.calls, Path(place))
        print(_table("of a small call", names, counted))
        profiles = [_profile(checkout, options.calls, Path(place)) for checkout in checkouts]
        print(_table("of a small call, under the profiler", names, profiles))
        traced = [_system_calls(checkout, options.calls, Path(place)) for checkout in checkouts]
        print(_table("of a small call, under strace", names, traced))
        print(_table("of a start", names, [_imports(checkout) for checkout in checkouts]))


def _counted(checkouts: list[Path], calls: int, place: Path) -> list[dict[str, str]]:
    with contextlib.ExitStack() as stack:
        servers, callers = [], []
        for number, checkout in enumerate(checkouts):
            servers.append(Watchdog(place / str(number), source=checkout))
            stack.callback(servers[-1].stop)
            callers.append(stack.enter_context(contextlib.closing(Caller(servers[-1]))))
            callers[-1].calls(50)
        times: list[list[float]] = [[] for _ in checkouts]
        cpu_s = [0.0] * len(checkouts)
        in_kernel_s = [0.0] * len(checkouts)
        switches: list[Counter[str]] = [Counter() for _ in checkouts]
        for part in range(calls // PART):
            for number in sorted(range(len(checkouts)), key=lambda number: (number + part) % len(checkouts)):
                before_s, before = servers[number].cpu_s(), _switches(servers[number].pid)
                in_kernel_s[number] -= _in_kernel_s(servers[number].pid)
                load = callers[number].calls(PART)
                time.sleep(0.005)  # work that the server does after the answer is counted, too
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


def _profile(checkout: Path, calls: int, place: Path) -> dict[str, str]:
    output = place / "profile"
    launcher = (str(Path(__file__).resolve()), UNDER_PROFILE, str(output))
    server = Watchdog(place / f"profiled-{time.monotonic_ns()}", source=checkout, launcher=launcher)
    functions, turns, waited_s = [], [], 0.0
    by_place: Counter[str] = Counter()
    try:
        with contextlib.closing(Caller(server)) as caller:
            caller.calls(50)
            for _ in range(calls // PART):
                profile = _profile_of_part(server, caller, output)
                functions.append(sum(count for _, count, *_ in profile.values()) / PART)
                turns.append(sum(profile[key][1] for key in profile if key[2] == "_run_once") / PART)
                for (file, _, name), (_, _, own_s, _, _) in profile.items():
                    if "poll" in name and "epoll" in name:
                        waited_s += own_s
                    else:
                        by_place[next(each for pattern, each in PLACES if re.search(pattern, f"{file} {name}"))] += (
                            own_s
                        )
    finally:
        server.stop()
    done = calls // PART * PART
    return {
        "functions called": f"{statistics.median(functions):.0f}",
        "turns of the event loop": f"{statistics.median(turns):.1f}",
        "waited for the script and the caller (ms)": f"{waited_s / done * 1e3:.2f}",
        **{f"in {place} (ms)": f"{by_place[place] / done * 1e3:.2f}" for _, place in PLACES},
    }


def _profile_of_part(server: Watchdog, caller: Caller, output: Path) -> dict[tuple[str, int, str], Any]:
    output.unlink(missing_ok=True)
    os.kill(server.pid, signal.SIGUSR1)
    assert not caller.calls(PART).wrong
    time.sleep(0.005)  # work that the server does after the answer is counted, too
    os.kill(server.pid, signal.SIGUSR2)
    deadline = time.monotonic() + PATIENCE_S
    while not output.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return pstats.Stats(str(output)).stats  # type: ignore[attr-defined,no-any-return]


def _system_calls(checkout: Path, calls: int, place: Path) -> dict[str, str]:
    """Count system calls of the server's threads. strace does not attach to scripts, so these run at full speed."""
    trace = place / "trace"
    trace.unlink(missing_ok=True)
    rows = ("system calls of the event loop's thread", "system calls for files", "system calls of the other threads")
    if shutil.which("strace") is None or os.geteuid() != 0:
        return dict.fromkeys(rows, "no root, or no strace")
    server = Watchdog(place / f"traced-{time.monotonic_ns()}", source=checkout)
    try:
        with contextlib.closing(Caller(server)) as caller:
            caller.calls(50)
            threads = sorted(os.listdir(f"/proc/{server.pid}/task"))
            command = ["strace", "-o", str(trace), *(f"--attach={thread}" for thread in threads)]
            tracer = subprocess.Popen(command, stderr=subprocess.PIPE, env=ENVIRONMENT)
            assert tracer.stderr is not None
            with tracer.stderr:
                for _ in threads:
                    tracer.stderr.readline()  # attached
                assert not caller.calls(calls).wrong
                tracer.terminate()
                tracer.wait()
    finally:
        server.stop()
    by_call: list[Counter[str]] = []
    for thread, name, rest in re.findall(r"^(\d+) +(\w+)\((.*)", trace.read_text(errors="replace"), re.MULTILINE):
        if name == "recvfrom" and '"POST ' in rest:
            by_call.append(Counter())
        if by_call:
            is_loop = int(thread) == server.pid
            by_call[-1]["loop" if is_loop else "others"] += 1
            by_call[-1]["files"] += is_loop and bool(_OF_FILES.fullmatch(name))
    # A mean, because the system calls of the log's thread are not spread evenly over the calls.
    others = sum(each["others"] for each in by_call) / len(by_call)
    loop, files = (statistics.median(each[key] for each in by_call) for key in ("loop", "files"))
    return dict(zip(rows, (f"{loop:.0f}", f"{files:.0f}", f"{others:.1f}"), strict=True))


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


def _serve_under_profile(output: str, arguments: list[str]) -> None:
    profiler = cProfile.Profile()

    def stop(*_: object) -> None:
        profiler.disable()
        profiler.dump_stats(output + ".part")
        profiler.clear()
        shutil.move(output + ".part", output)

    signal.signal(signal.SIGUSR1, lambda *_: profiler.enable())
    signal.signal(signal.SIGUSR2, stop)
    sys.path[0] = ""  # the checkout, where the server was started
    sys.argv = ["watchdog", *arguments]
    runpy.run_module("watchdog", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if sys.argv[1:2] == [UNDER_PROFILE]:
        _serve_under_profile(sys.argv[2], sys.argv[3:])
    else:
        main()
