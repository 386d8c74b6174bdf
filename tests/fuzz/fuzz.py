"""Fuzz the code that reads bytes of callers and scripts: ``python tests/fuzz/fuzz.py TARGET``.

Without files, atheris (libFuzzer) makes inputs from the seeds until the time is over or an input breaks a promise. With
files, the target reads each of them once, to reproduce a finding. This does not need atheris. The promises are in
``targets.py``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent.parent / "build" / "fuzz"
TARGETS = (
    "accept",
    "intake",
    "request",
    "response_file",
    "script_log",
    "service_definition",
    "storage_event",
    "warm_answer",
)

_LONGEST_INPUT_BYTES = 8 * 1024
_LONGEST_RUN_S = 20
_MOST_MEMORY_MIB = 2048


def main(arguments: list[str]) -> int:
    """Return the exit code: 0 if nothing was found, 1 if something was found, 2 if fuzzing is not possible."""
    options = _options(arguments)
    if options.files:
        return _replay(options.target, options.files)
    with tempfile.TemporaryDirectory(prefix="watchdog-fuzz-", dir=_memory_directory()) as scratch:
        # Make the directory here and not in the fuzzer, which ends without any clean-up.
        tempfile.tempdir = scratch
        try:
            return _fuzz(options)
        finally:
            tempfile.tempdir = None


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fuzz.py", description=(__doc__ or "").partition("``python")[0].replace(":", ".")
    )
    parser.add_argument("target", metavar="TARGET", choices=TARGETS, help=f"one of {', '.join(TARGETS)}")
    parser.add_argument("files", metavar="FILE", nargs="*", type=Path, help="inputs to feed once, instead of fuzzing")
    parser.add_argument("--seconds", metavar="N", type=int, default=60, help="how long to fuzz (default: 60)")
    parser.add_argument("--corpus", metavar="DIR", type=Path, help="seeds, only read (default: those of the target)")
    parser.add_argument(
        "--artifacts", metavar="DIR", type=Path, help="where a finding's input goes (default: build/fuzz/TARGET)"
    )
    options = parser.parse_intermixed_args(arguments)
    if options.seconds < 1:
        parser.error(f"argument --seconds: {options.seconds} is none; give at least 1")
    options.corpus = options.corpus or HERE / "corpus" / options.target
    options.artifacts = options.artifacts or BUILD / options.target
    missing = [path for path in options.files if not path.is_file()]
    if missing:
        parser.error(f"there is no file {missing[0]}")
    if not options.files and not options.corpus.is_dir():
        parser.error(f"argument --corpus: there is no directory {options.corpus}")
    return options


def _memory_directory() -> str | None:
    """Return a file system in memory, if there is one, because most of a run is the creation of small files."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _check(target: str) -> Callable[[bytes], None]:
    checks: dict[str, Callable[[bytes], None]] = importlib.import_module("targets").TARGETS
    return checks[target]


def _replay(target: str, files: list[Path]) -> int:
    check = _check(target)
    broken = 0
    for path in files:
        try:
            check(path.read_bytes())
        except Exception as error:
            broken += 1
            traceback.print_exception(error)
            print(f"found: {path}")
    print(f"{target}: {len(files)} replayed, {broken} of them found to break a promise")
    return 1 if broken else 0


def _fuzz(options: argparse.Namespace) -> int:
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        print("fuzz.py: to fuzz, atheris is needed: pip install -r tests/fuzz/requirements.txt", file=sys.stderr)
        return 2
    # Inputs that widen the coverage are kept here for the next run. The committed seeds are chosen by hand.
    found = BUILD / "corpus" / options.target
    found.mkdir(parents=True, exist_ok=True)
    options.artifacts.mkdir(parents=True, exist_ok=True)
    before = _written(options.artifacts)
    flags = [
        f"-max_total_time={options.seconds}",
        f"-artifact_prefix={options.artifacts}/",
        f"-max_len={_LONGEST_INPUT_BYTES}",
        f"-timeout={_LONGEST_RUN_S}",
        f"-rss_limit_mb={_MOST_MEMORY_MIB}",
        "-print_final_stats=1",
    ]
    # libFuzzer writes new inputs to the first directory, and ends the process in which it runs.
    pid = os.fork()
    if pid == 0:
        with atheris.instrument_imports(include=["watchdog", "multipart"]):
            check = _check(options.target)
        atheris.Setup([sys.argv[0], *flags, str(found), str(options.corpus)], check)
        atheris.Fuzz()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    inputs = sorted(_written(options.artifacts) - before)
    if not inputs and status == 0:
        return 0
    for path, _ in inputs:
        print(f"found: {path}\nlook at it again: python {os.path.relpath(__file__)} {options.target} {path}")
    return 1


def _written(directory: Path) -> set[tuple[Path, int]]:
    """Return all files with their times, because an input that is found again has the same name."""
    return {(path, path.stat().st_mtime_ns) for path in directory.iterdir() if path.is_file()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
