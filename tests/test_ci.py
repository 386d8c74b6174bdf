"""Continuous integration: its steps, the second run of failed tests, and the names of those that pass then."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUN_AGAIN = ROOT / ".ci" / "run_again.py"
ONCE = """
from pathlib import Path

def fails_the_first_time(name):
    mark = Path(__file__).with_name(name)
    seen = mark.exists()
    mark.touch()
    assert seen
"""


def run(directory: Path, tests: str, *arguments: str) -> tuple[int, str, list[str]]:
    """Run one file with these tests. Return the exit code, the output and the names of flaky tests."""
    (directory / "test_it.py").write_text(ONCE + tests)
    # Each run would import these plug-ins, which takes most of its time.
    (directory / "pytest.ini").write_text(
        "[pytest]\naddopts = -p no:schemathesis -p no:hypothesispytest -p no:asyncio\n"
    )
    report = directory / "flaky"
    command = [sys.executable, str(RUN_AGAIN), str(report), *arguments]
    # Do not use the variables of the run to which this test belongs.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, env=environ, cwd=directory, capture_output=True, text=True, timeout=110, check=False)
    return done.returncode, done.stdout, report.read_text().split() if report.exists() else []


def test_a_test_that_passes_alone_does_not_fail_the_run_and_is_named(tmp_path: Path) -> None:
    tests = "def test_flaky():\n    fails_the_first_time('a')\n\ndef test_good():\n    pass\n"
    code, output, flaky = run(tmp_path, tests)
    assert (code, flaky) == (0, ["test_it.py::test_flaky"])
    assert "1 tests failed; they run once more, alone" in output
    assert "1 passed" in output.splitlines()[-1]


def test_a_test_that_fails_twice_fails_the_run(tmp_path: Path) -> None:
    tests = "def test_flaky():\n    fails_the_first_time('a')\n\ndef test_bad():\n    assert False\n"
    assert run(tmp_path, tests)[::2] == (1, ["test_it.py::test_flaky"])


def test_failed_tests_of_several_processes_run_again_in_one(tmp_path: Path) -> None:
    tests = (
        "import os\n"
        "def test_flaky():\n    fails_the_first_time('a')\n    assert 'PYTEST_XDIST_WORKER' not in os.environ\n"
        "def test_good():\n    assert 'PYTEST_XDIST_WORKER' in os.environ\n"
    )
    assert run(tmp_path, tests, "-n", "2")[::2] == (0, ["test_it.py::test_flaky"])


@pytest.mark.parametrize(
    ("tests", "code"),
    [
        ("def test_good():\n    pass\n", 0),
        ("", 5),
        ("import no_such_module\n", 2),
        ("def test_interrupted():\n    raise KeyboardInterrupt\n", 2),
        ("import pytest\n@pytest.mark.parametrize('n', range(51))\ndef test_bad(n):\n    assert False\n", 1),
    ],
    ids=["all pass", "no tests", "collection fails", "interrupted", "too many fail"],
)
def test_other_ends_are_returned_as_they_are(tmp_path: Path, tests: str, code: int) -> None:
    returned, output, flaky = run(tmp_path, tests)
    assert (returned, flaky) == (code, [])
    assert "once more" not in output


def test_a_failure_before_an_interruption_is_not_run_again(tmp_path: Path) -> None:
    """It is not known which tests did not run."""
    tests = "def test_flaky():\n    fails_the_first_time('a')\n\ndef test_interrupted():\n    raise KeyboardInterrupt\n"
    assert run(tmp_path, tests)[::2] == (2, [])


@pytest.fixture
def ci(tmp_path: Path) -> Path:
    """Return a tree with `.ci/run`, in which `make` and the installer only write their arguments to a file."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    for name in ("bin/make", "examples/install-packages.sh"):
        program = tmp_path / name
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\necho "${{0##*/}} $*" >> {tmp_path}/called\n')
        program.chmod(0o755)
    return tmp_path


def steps(ci: Path, *arguments: str) -> dict[str, dict[str, str]]:
    """Return the targets that `.ci/run` makes, each with its variables."""
    (ci / "called").unlink(missing_ok=True)
    environ = os.environ | {"PATH": f"{ci / 'bin'}:{os.environ['PATH']}"}
    subprocess.run([ci / ".ci" / "run", *arguments], env=environ, capture_output=True, timeout=100, check=True)
    made = {}
    for line in (ci / "called").read_text().splitlines():
        program, target, *_ = line.split()
        if program == "make":
            variables = dict(re.findall(r"([A-Z_]+)=(.*?)(?= [A-Z_]+=|$)", line))
            made[target + variables.get("VENV", "")] = variables
    return made


def test_the_nightly_run_does_all_that_the_run_of_each_change_does(ci: Path) -> None:
    each_change, nightly = steps(ci), steps(ci, "nightly")
    assert {"lint", "test", "test-slow", "image-test", "ceph-test", "soak"} <= each_change.keys() <= nightly.keys()
    assert sum(target.startswith("test-unit") for target in each_change) <= 1
    assert (each_change["test-slow"]["SLOW_TESTS"], nightly["test-slow"]["SLOW_TESTS"]) == (
        "slow and not nightly",
        "slow",
    )
    for target, seconds in (("soak", "SOAK_SECONDS"), ("fuzz", "SECONDS")):
        # Fuzzing runs only on x86-64.
        if target in each_change:
            assert int(nightly[target][seconds]) > int(each_change[target][seconds])


def test_a_run_of_an_unknown_form_is_refused(ci: Path) -> None:
    done = subprocess.run([ci / ".ci" / "run", "weekly"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "the argument weekly is not known; give no argument, or nightly\n")
    assert not (ci / "called").exists()


@pytest.mark.parametrize(
    ("arguments", "environment_is_made"),
    [((), False), (("PYTHON=./python3.12",), False), (("PYTHON=./python3.11",), True)],
    ids=["no Python is given", "the Python of the environment", "another Python"],
)
def test_an_environment_of_another_python_is_made_again(
    tmp_path: Path, arguments: tuple[str, ...], environment_is_made: bool
) -> None:
    for name in ("Makefile", "requirements-dev.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name, version in (("python3.11", "3.11.7"), ("python3.12", "3.12.1"), (".venv/bin/python", "3.12.1")):
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/sh\necho Python {version}\n")
        program.chmod(0o755)
    (tmp_path / ".venv/.ready").touch()
    done = subprocess.run(
        ["make", "--dry-run", "setup", *arguments],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},  # not the variables of the make that runs this test
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ("-m venv" in done.stdout) is environment_is_made, done.stdout
