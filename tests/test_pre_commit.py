"""The hooks of pre-commit find faults, with the tools of the environment and without any network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VENV = Path(sys.executable).parent.parent
# All hooks take about 10 s, or much longer beside other tests.
HOOKS_S = 600


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with this project's hooks, its settings, and one module."""
    for name in (".pre-commit-config.yaml", "pyproject.toml", "Makefile"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / ".github", tmp_path / ".github")
    (tmp_path / ".venv").symlink_to(VENV)
    (tmp_path / ".gitignore").write_text(".venv\n")
    (tmp_path / "watchdog").mkdir()
    (tmp_path / "watchdog/module.py").write_text('"""A module."""\n')
    # mypy wants each directory that the settings name.
    for name in ("tests", "image", "benchmarks", "docs", ".ci"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of_{name.strip('.')}.py").write_text('"""A module."""\n')
    return tmp_path


def run_hooks(repository: Path) -> subprocess.CompletedProcess[str]:
    """Run all hooks on all files, except the hook for the docs, which are not there."""
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(repository / ".git"),
        "SKIP": "docs",
        # A hook that needs the network would fail.
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    for command in (["git", "init", "--quiet"], ["git", "add", "."]):
        subprocess.run(command, cwd=repository, env=environ, check=True, timeout=60)
    command = [str(VENV / "bin/pre-commit"), "run", "--all-files"]
    return subprocess.run(
        command, cwd=repository, env=environ, capture_output=True, text=True, timeout=HOOKS_S, check=False
    )


# A fault, and the output of its hook.
FAULTS = {
    "ruff": ("watchdog/module.py", "import os\n", "`os` imported but unused"),
    "ruff-format": ("watchdog/of_format.py", "x = {  }\n", "1 file reformatted"),
    "mypy": ("benchmarks/of_benchmarks.py", "def double(x):\n    return 2 * x\n", "missing a type annotation"),
    "workflows": (".github/workflows/other.yml", "on: push\njobs: {}\n", "Schema validation errors"),
}


@pytest.mark.slow
@pytest.mark.timeout(2 * HOOKS_S)
def test_a_fault_fails_its_hook(repository: Path) -> None:
    good = run_hooks(repository)
    assert good.returncode == 0, good.stdout + good.stderr
    assert good.stdout.count("Passed") == len(FAULTS), good.stdout
    for file, text, _ in FAULTS.values():
        (repository / file).write_text(text)
    bad = run_hooks(repository)
    assert bad.returncode == 1
    _, *printed = bad.stdout.split("- hook id: ")
    ended = {name: rest for name, _, rest in (each.partition("\n") for each in printed)}
    assert ended.keys() == FAULTS.keys(), bad.stdout
    for name, (_, _, message) in FAULTS.items():
        assert message in ended[name]


def test_the_development_container_makes_what_the_makefile_can_make() -> None:
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    command, _, hooks = container["postCreateCommand"].partition(" && ")
    assert command == "make setup"
    assert "\nsetup: " in (ROOT / "Makefile").read_text()
    assert (VENV / hooks.split()[0].removeprefix(".venv/")).exists()
