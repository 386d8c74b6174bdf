"""The workflows of GitHub are checked, and the notes of a release are those of its version."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
VENV = Path(sys.executable).parent.parent


def _jobs(workflow: Path) -> dict[str, Any]:
    jobs: dict[str, Any] = yaml.safe_load(workflow.read_text())["jobs"]
    return jobs


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the workflows and of the Makefile that checks them."""
    shutil.copytree(ROOT / ".github", tmp_path / ".github")
    shutil.copy(ROOT / "Makefile", tmp_path)
    return tmp_path


# For each fault: the file, the replaced text, and the output of the check. "other.yml" is a copy of "ci.yml".
FAULTS = [
    ("workflows/other.yml", "runs-on: ubuntu-24.04", "run-on: ubuntu-24.04", "Schema validation errors"),
    ("dependabot.yml", "interval: monthly", "interval: sometimes", "Schema validation errors"),
    ("ISSUE_TEMPLATE/bug.yml", "- type: dropdown", "- type: choice", "Schema validation errors"),
    ("workflows/ci.yml", "- run: make lint", "- run: make lint ${{ github.head_ref }}", "template-injection"),
    ("workflows/release.yml", "@08c6903cd8c0fde910a37f88322edcfb5dd907a8 # v5.0.0", "@v5", "unpinned-uses"),
]


@pytest.mark.slow
def test_a_faulty_file_fails_its_check(copy: Path) -> None:
    """Each check takes more than a second, so one run of all checks finds all faults.

    The hook of pre-commit (test_pre_commit.py) runs the same checks, and shows that the real files pass.
    """
    shutil.copy(copy / ".github/workflows/ci.yml", copy / ".github/workflows/other.yml")
    for file, right, wrong, _ in FAULTS:
        path = copy / ".github" / file
        assert right in path.read_text()
        path.write_text(path.read_text().replace(right, wrong))
    # With -i, make continues after a check that fails, and prints that.
    command = ["make", "-i", "-C", str(copy), "lint-workflows", f"VENV={VENV}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    # Each check begins with its command, which make prints.
    checks = done.stdout.split(f"{VENV}/bin/")[1:]
    assert len(checks) == 4
    assert len(re.findall(r"lint-workflows\] Error \d+ \(ignored\)", done.stderr)) == len(checks), done.stderr
    for number, (file, _, _, message) in enumerate(FAULTS):
        printed = checks[min(number, len(checks) - 1)]
        assert re.search(rf"{message}[^\0]*{re.escape(file)}", printed), printed


def test_each_form_for_issues_is_checked() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        assert form.name == "config.yml" or f".github/ISSUE_TEMPLATE/{form.name}" in makefile, form


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_and_name_their_release(workflow: Path) -> None:
    uses = re.findall(r"uses: (.+)", workflow.read_text())
    assert uses
    for action in uses:
        assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+|\./\.github/workflows/.+", action), action


def test_each_supported_python_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    supported = [name.rpartition(" ")[2] for name in project["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert _jobs(ROOT / ".github/workflows/ci.yml")["test"]["strategy"]["matrix"]["python"] == supported


def test_a_release_waits_for_ci_and_publishes_last() -> None:
    jobs = _jobs(ROOT / ".github/workflows/release.yml")
    assert {"package", "image"} <= set(jobs["publish"]["needs"])
    assert all("ci" in jobs[job]["needs"] for job in ("package", "image"))


CHANGELOG = """# Changelog

## [Unreleased]

- later

## [1.2.0] - 2026-01-31

### Added

- a thing

## [1.1.0] - 2025-12-01

- an older thing
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of version 1.2.0."""
    for directory in (".github", "watchdog"):
        (tmp_path / directory).mkdir()
    shutil.copy(ROOT / ".github/release_notes.py", tmp_path / ".github")
    (tmp_path / "watchdog/__init__.py").write_text('"""A program."""\n\n__version__ = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    return tmp_path


def notes(project: Path, tag: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(project / ".github/release_notes.py"), tag]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_notes_of_a_release_are_its_section_of_the_changelog(project: Path) -> None:
    done = notes(project, "v1.2.0")
    assert (done.returncode, done.stdout, done.stderr) == (0, "### Added\n\n- a thing\n", "")


def test_the_oldest_section_ends_with_the_changelog(project: Path) -> None:
    (project / "watchdog/__init__.py").write_text('__version__ = "1.1.0"\n')
    assert notes(project, "v1.1.0").stdout == "- an older thing\n"


@pytest.mark.parametrize(
    ("tag", "changelog", "message"),
    [
        ("v1.3.0", CHANGELOG, "the tag v1.3.0 is not v1.2.0"),
        ("1.2.0", CHANGELOG, "the tag 1.2.0 is not v1.2.0"),
        (
            "v1.2.0",
            CHANGELOG.replace("2026-01-31", "unreleased"),
            "no heading '## [1.2.0] - YYYY-MM-DD'",
        ),
        ("v1.2.0", CHANGELOG.replace("1.2.0", "1x2.0"), "no heading '## [1.2.0] - YYYY-MM-DD'"),
        ("v1.2.0", CHANGELOG.replace("### Added\n\n- a thing\n", ""), "the section of CHANGELOG.md for 1.2.0 is empty"),
    ],
    ids=["another version", "no v", "no date", "no section", "empty section"],
)
def test_a_release_that_does_not_fit_stops(project: Path, tag: str, changelog: str, message: str) -> None:
    (project / "CHANGELOG.md").write_text(changelog)
    done = notes(project, tag)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
