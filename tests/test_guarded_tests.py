"""A test that is run without its guard counts as proof only if it fails in the way that is expected."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

TESTS = Path(__file__).parent
# How a test fails without its guard, and what its mark says.
PROOF = [
    ('"drain"', "assert 200 == 503"),
    ('"drain"', "raise ConnectionResetError"),
    ('"drain", never="the event .draining"', "raise Stall(\"the event 'draining' did not come\")"),
    ('"drain", never="the end"', 'until(lambda: False, "the end")'),
    ('"drain", never="the end"', "assert 200 == 503"),
    ('"drain", never="the end", never_s=0.1', 'until(lambda: False, "the end")'),
    ('"drain", never="timed out"', 'raise TimeoutError("timed out")'),
]
IN_VAIN = [
    ('"drain"', 'raise Stall("waited in vain for the script")'),
    ('"drain"', 'raise TimeoutError("timed out")'),
    ('"drain"', 'raise subprocess.TimeoutExpired("sleep", 1)'),
    ('"drain"', 'pytest.fail("Timeout (>120.0s) from pytest-timeout.")'),
    ('"drain", never="the end"', 'raise Stall("waited in vain for the script")'),
]
PASSES = ('"drain"', "pass")

Failures = dict[tuple[str, str], str | None]


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> Failures:
    """Return how each of these tests ended in a run without the guard: the message of its failure, or None.

    They fail so where the guard is taken out, and pass elsewhere. All of them run in one process, to save its start.
    """
    directory = tmp_path_factory.mktemp("run")
    (directory / "pytest.ini").write_text("[pytest]\nmarkers = guard\n")
    cases = [*PROOF, *IN_VAIN, PASSES]
    text = "import subprocess\nimport pytest\nfrom running_server import RunningServer, Stall, until\n"
    for number, (mark, failure) in enumerate(cases):
        text += (
            f"\n@pytest.mark.guard({mark})\n"
            f"def test_{number}(start_server, removed_guard):\n"
            "    if removed_guard is not None:\n"
            f"        {failure}\n"
        )
    (directory / "test_it.py").write_text(text)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environ["PYTHONPATH"] = f"{TESTS}:{TESTS.parent}"
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:schemathesis", "-k", "without"]
    done = subprocess.run(
        [*command, "--junitxml=report.xml"], env=environ, cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    ended = {case.attrib["name"]: case for case in ElementTree.parse(directory / "report.xml").iter("testcase")}
    assert len(ended) == len(cases), done.stdout
    assert not any(case.findall("error") + case.findall("skipped") for case in ended.values()), done.stdout
    failed = [ended[f"test_{number}[without-drain]"].find("failure") for number in range(len(cases))]
    return {case: None if each is None else each.attrib["message"] for case, each in zip(cases, failed, strict=True)}


@pytest.mark.parametrize("case", PROOF)
def test_a_failure_that_is_expected_is_proof(failures: Failures, case: tuple[str, str]) -> None:
    assert failures[case] is None


@pytest.mark.parametrize("case", IN_VAIN)
def test_to_wait_in_vain_for_something_else_is_not_proof(failures: Failures, case: tuple[str, str]) -> None:
    assert "without the guard 'drain' the test waited in vain, but not for" in str(failures[case])


def test_to_pass_without_the_guard_is_not_proof(failures: Failures) -> None:
    assert "the test passes without the guard 'drain': it proves nothing" in str(failures[PASSES])
