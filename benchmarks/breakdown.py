"""Where the time of a small call goes, and that of a start, of this checkout and of others, as Markdown.

    python benchmarks/breakdown.py [--against CHECKOUT]... [--calls N]

Of calls: two servers of each checkout are asked. One is as it is: the kernel counts its processor time and how
often threads were switched. The other runs under Python's profiler, which counts functions and tells whose they are;
it makes what has many small functions look dearer than it is. Of starts: ``python -X importtime``.
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

from contenders import ENVIRONMENT, PATIENCE_S, ROOT, Watchdog, server_python
from load import Caller

UNDER_PROFILE = "--under-profile"
STARTS = 11
PACKAGES = ("watchdog", "aiohttp", "asyncio", "ssl", "msgspec", "structlog", "multipart", "yarl")
PART = 25  # calls of one checkout before it is another's turn
# Where a function's file lies, and what that is called in the table; the first that fits.
PLACES = (
    (r"/watchdog/process\.py|posix_spawn|wait4|pidfd_open", "process.py, and starting the script"),
    (r"/watchdog/(workspace|intake|response_file|delivery)\.py", "workspace, intake, delivery"),
    (r"mkdir|rmdir|unlink|scandir|posix\.(open|l?stat|listxattr)", "system calls for files"),
    (r"/watchdog/", "the rest of watchdog"),
    (r"/aiohttp/|_http_parser|/yarl/|multidict", "aiohttp"),
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
                time.sleep(0.005)  # what is put off to after the answer counts, too
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
                "of that in the kernel (ms)": f"{in_kernel_s[number] / done * 1e3:.2f}",
                "times that a thread of it waited": f"{switches[number]['voluntary'] / done:.1f}",
                "times that a thread of it was put off": f"{switches[number]['nonvoluntary'] / done:.1f}",
            }
            for number in range(len(checkouts))
        ]


def _in_kernel_s(pid: int) -> float:
    """In steps of 10 ms."""
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
    output.unlink(missing_ok=True)
    launcher = (str(Path(__file__).resolve()), UNDER_PROFILE, str(output))
    server = Watchdog(place / f"profiled-{time.monotonic_ns()}", source=checkout, launcher=launcher)
    try:
        with contextlib.closing(Caller(server)) as caller:
            caller.calls(50)
            os.kill(server.pid, signal.SIGUSR1)
            assert not caller.calls(calls).wrong
            os.kill(server.pid, signal.SIGUSR2)
            deadline = time.monotonic() + PATIENCE_S
            while not output.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
    finally:
        server.stop()
    functions, turns, waited_s = 0, 0, 0.0
    by_place: Counter[str] = Counter()
    for (file, _, name), (_, count, own_s, _, _) in pstats.Stats(str(output)).stats.items():  # type: ignore[attr-defined]
        functions += count
        if name == "_run_once":
            turns = count
        if "poll" in name and "epoll" in name:
            waited_s += own_s
            continue
        by_place[next(place for pattern, place in PLACES if re.search(pattern, f"{file} {name}"))] += own_s
    return {
        "functions called": f"{functions / calls:.0f}",
        "turns of the event loop": f"{turns / calls:.1f}",
        "waited for the script and the caller (ms)": f"{waited_s / calls * 1e3:.2f}",
        **{f"in {place} (ms)": f"{by_place[place] / calls * 1e3:.2f}" for _, place in PLACES},
    }


def _imports(checkout: Path) -> dict[str, str]:
    own_ms: dict[str, list[float]] = {"": []}
    for _ in range(STARTS):
        command = [server_python(), "-X", "importtime", "-c", "import watchdog.server"]
        said = subprocess.run(command, cwd=checkout, env=ENVIRONMENT, capture_output=True, text=True, check=True).stderr
        by_package: Counter[str] = Counter()
        for own_us, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", said):
            by_package[name.partition(".")[0]] += int(own_us)
        own_ms[""].append(by_package.total() / 1e3)
        for name in PACKAGES:
            own_ms.setdefault(name, []).append(by_package[name] / 1e3)
    return {
        f"{f'of that {name}' if name else 'imports of the server'} (ms)": f"{statistics.median(times):.1f}"
        for name, times in own_ms.items()
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
