"""Measure what the watchdog adds to a script, beside the bare script, other servers and coreutils, in one run.

    python benchmarks/bench.py                                   all, in under 20 minutes on two cores
    python benchmarks/bench.py --quick                           all, in under three minutes, with less of each
    python benchmarks/bench.py --only one_caller --against DIR   one measure, this code and another checkout's in turns

This writes results.json, results.md and plots. docs/explanation/performance.md describes the measures. The
exit code is 1 if an answer was wrong or a measure could not be taken. A missed target does not change the exit code.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import load
import report
from contenders import BARE_PYTHON, ROOT, Nginx, Webhook, server_python, versions
from installations import BASE
from measures import MEASURES
from measuring import FULL, LEAST, QUICK, Bench, Found, file_system

PAGE = ROOT / "docs" / "explanation" / "performance.md"
_PYTHON = "import platform, sys; print(platform.python_version(), '(of the system)' * (sys.base_prefix == '/usr'))"


def main() -> int:
    options = _options()
    scale = {"full": FULL, "quick": QUICK, "least": LEAST}[options.scale]
    about = _about(scale.name, options.directory, options.against)
    found: dict[str, Found] = {}
    failed: dict[str, str] = about["failed"]
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as directory:
        bench = Bench(scale, Path(directory), options.against, options.rounds)
        for name in options.only or MEASURES:
            began = time.monotonic()
            print(f"{name} …", file=sys.stderr, flush=True)
            try:
                found[name] = MEASURES[name](bench)
            except Exception as error:
                traceback.print_exc()
                failed[name] = f"{type(error).__name__}: {error}"
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    text = report.write(options.output, found, about, link="performance/" if options.publish else "")
    if options.publish:
        report.put_between_markers(PAGE, text)
    print(text)
    for name, why in failed.items():
        print(f"{name} could not be measured: {why}")
    wrong = any(any(row.not_right.values()) for one in found.values() for row in one.rows)
    return 1 if failed or wrong else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        action="append",
        choices=list(MEASURES),
        metavar="MEASURE",
        help=f"one of {', '.join(MEASURES)}; repeatable",
    )
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="rounds of each contender, instead of each measure's own number"
    )
    parser.add_argument("--scale", choices=("full", "quick", "least"), default="full")
    parser.add_argument("--quick", action="store_const", const="quick", dest="scale", help="the same as --scale quick")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="PATH",
        help="another checkout of watchdog (whose code runs with this interpreter), or a program to run in its place; "
        f"also used in place of commit {BASE}, with which some targets compare",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        default=Path(tempfile.gettempdir()),
        help="for all files; it must have 4 GiB free",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", default=ROOT / "build" / "bench", help="for the results")
    parser.add_argument(
        "--publish", action="store_true", help="write results to docs/explanation/performance/ and tables to its page"
    )
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.against is not None:
        options.against = options.against.resolve()
        if not (options.against / "watchdog" / "__main__.py").is_file() and not options.against.is_file():
            parser.error(f"--against: {options.against} is neither a checkout of watchdog nor a program")
    if options.publish:
        options.output = PAGE.with_suffix("")
    options.directory = options.directory.resolve()
    return options


def _about(scale: str, directory: Path, against: Path | None) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(ROOT),
        "against_commit": None if against is None or against.is_file() else _commit(against),
        "scale": scale,
        "packages": (
            "the packages of requirements.txt"
            if BARE_PYTHON.exists()
            else "all packages of this interpreter, also those of the tests"
        ),
        "failed": {},
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "processor": _processor(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "kernel": platform.release(),
            "python": _printed_by([server_python(), "-c", _PYTHON]),
            "files_on": file_system(directory) or "an unknown file system",
            "load_before": os.getloadavg()[0],
        },
        "contenders": versions(),
        "many_callers": "wrk" if load.has_wrk() else "threads of Python, because wrk is missing",
        "does_less": {kind.name: kind.does_less for kind in (Webhook, Nginx)},
    }


def _commit(checkout: Path) -> str:
    commit = _printed_by(["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"])
    if not commit:
        return "unknown"
    changed = _printed_by(
        ["git", "-C", str(checkout), "status", "--porcelain", "--untracked-files=no", "--", "watchdog"]
    )
    return f"{commit} with changes" if changed else commit


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _printed_by(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


if __name__ == "__main__":
    sys.exit(main())
