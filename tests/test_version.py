"""The version is only in ``watchdog/__init__.py``. Every other place reads it from there."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from watchdog import __version__

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["watchdog", "fwatchdog", "supervisor"])
def test_each_command_prints_the_version(name: str) -> None:
    command = [str(Path(sys.executable).with_name(name)), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"oscar-watchdog {__version__}\n"


def test_a_wheel_has_the_version(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=100, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"oscar_watchdog-{__version__}.dist-info/METADATA").decode()
    assert HeaderParser().parsestr(metadata)["Version"] == __version__


@pytest.mark.parametrize("name", ["pyproject.toml", "Dockerfile.base", ".github/workflows/release.yml"])
def test_what_builds_a_release_has_no_copy_of_the_version(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(rf"""version *[=:] *["']?{re.escape(__version__)}""", text, re.IGNORECASE)


def test_the_changelog_begins_with_the_version() -> None:
    """The newest heading is this version with its date, or it is "Unreleased"."""
    newest = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert re.fullmatch(rf"\[Unreleased\]|\[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d", newest[1])
