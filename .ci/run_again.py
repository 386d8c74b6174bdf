#!/usr/bin/env python3
"""Run pytest. Then run the failed tests once more, alone and one after the other.

    python .ci/run_again.py REPORT [PYTEST_ARGUMENT ...]

A test that fails beside others and passes alone is *flaky*. It does not fail the run. Its name is appended to the file
REPORT, one name in each line. CI prints these names at its end: repair such a test before any other work.

Only failed tests run again. If pytest ended in another way (no tests found, an interruption, an internal error), it is
not known which tests did not run. So this program returns the exit code of pytest. It does the same if many tests
failed, because this is not a coincidence.
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
        # With a separate cache, tests that failed in an earlier run do not run again.
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
