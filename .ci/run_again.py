#!/usr/bin/env python3
"""Run pytest; run the tests that failed once more, alone and one after the other.

    python .ci/run_again.py REPORT [PYTEST_ARGUMENT ...]

A test that fails beside others and passes alone is *flaky*. Its name is appended to the file REPORT, a line each, and
it does not fail the run. CI prints these names at its end: to repair them comes before any other work.

Only failed tests are run again. Any other end of pytest (no tests found, an interruption, an internal error) is
returned as it is: nobody knows then which tests did not run. So is a run with many failures: that is not chance.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

MOST_FAILURES = 50  # a fixture that fails once fails all tests of a file
_TESTS_FAILED = 1  # pytest.ExitCode.TESTS_FAILED


def main(report: Path, arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as directory:
        # A cache of its own: what failed in another run is not run again.
        cache = Path(directory)
        pytest = [sys.executable, "-m", "pytest", *arguments, "-o", f"cache_dir={cache}"]
        code = subprocess.run(pytest, check=False).returncode
        failed = _failed(cache)
        if code != _TESTS_FAILED or not 0 < len(failed) <= MOST_FAILURES:
            return code
        print(f"== {len(failed)} tests failed; they run once more, alone", flush=True)
        alone = [*pytest, "--last-failed", "--last-failed-no-failures=none", "--numprocesses=0"]
        code = subprocess.run(alone, check=False).returncode
        flaky = sorted(failed - _failed(cache)) if code in (0, _TESTS_FAILED) else []
    with report.open("a") as file:
        file.writelines(f"{name}\n" for name in flaky)
    return code


def _failed(cache: Path) -> set[str]:
    try:
        return set(json.loads((cache / "v/cache/lastfailed").read_text()))
    except FileNotFoundError:
        return set()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
