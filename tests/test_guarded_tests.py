"""A test that is run without its guard counts as proof only if it fails in the way that is expected."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def run_without_guard(directory: Path, mark: str, failure: str) -> subprocess.CompletedProcess[str]:
    """A run of pytest on a test with this mark, which fails so where its guard is taken out, and passes elsewhere."""
    (directory / "pytest.ini").write_text("[pytest]\nmarkers = guard\n")
    (directory / "test_it.py").write_text(
        "import subprocess\nimport pytest\nfrom running_server import RunningServer, Stall, until\n\n"
        f"@pytest.mark.guard({mark})\n"
        "def test_it(start_server, removed_guard):\n"
        "    if removed_guard is not None:\n"
        f"        {failure}\n"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environ["PYTHONPATH"] = f"{TESTS}:{TESTS.parent}"
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:schemathesis", "-k", "without"]
    return subprocess.run(command, env=environ, cwd=directory, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("mark", "failure"),
    [
        ('"drain"', "assert 200 == 503"),
        ('"drain"', "raise ConnectionResetError"),
        ('"drain", never="the event .draining"', "raise Stall(\"the event 'draining' did not come\")"),
        ('"drain", never="the end"', 'until(lambda: False, "the end")'),
        ('"drain", never="the end"', "assert 200 == 503"),
        ('"drain", never="timed out"', 'raise TimeoutError("timed out")'),
    ],
)
def test_a_failure_that_is_expected_is_proof(tmp_path: Path, mark: str, failure: str) -> None:
    done = run_without_guard(tmp_path, mark, failure)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("mark", "failure"),
    [
        ('"drain"', 'raise Stall("waited in vain for the script")'),
        ('"drain"', 'raise TimeoutError("timed out")'),
        ('"drain"', 'raise subprocess.TimeoutExpired("sleep", 1)'),
        ('"drain"', 'pytest.fail("Timeout (>120.0s) from pytest-timeout.")'),
        ('"drain", never="the end"', 'raise Stall("waited in vain for the script")'),
    ],
)
def test_to_wait_in_vain_for_something_else_is_not_proof(tmp_path: Path, mark: str, failure: str) -> None:
    done = run_without_guard(tmp_path, mark, failure)
    assert done.returncode == 1
    assert "without the guard 'drain' the test waited in vain, but not for" in done.stdout


def test_to_pass_without_the_guard_is_not_proof(tmp_path: Path) -> None:
    done = run_without_guard(tmp_path, '"drain"', "pass")
    assert done.returncode == 1
    assert "the test passes without the guard 'drain': it proves nothing" in done.stdout
