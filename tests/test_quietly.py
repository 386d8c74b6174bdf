"""The output of apt and pip goes to a log file, and is shown only if they fail."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
PACKAGE = "a-program-that-only-this-test-has"
# `apt-get install` makes the program, unless the test wants it to fail.
APT_GET = f"""#!/bin/sh
echo "noise of apt-get $1"
[ "$1" != "$FAILING" ] || exit 100
[ "$1" != install ] || ln -s /bin/true "${{0%/*}}/{PACKAGE}"
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a project with only the scripts, and with its own apt-get."""
    (tmp_path / "examples").mkdir()
    (tmp_path / "bin").mkdir()
    for name in ("install-packages.sh", "quietly.sh"):
        shutil.copy(EXAMPLES / name, tmp_path / "examples" / name)
    for name, text in (("apt-get", APT_GET), ("sudo", '#!/bin/sh\nexec "$@"\n')):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def install(tree: Path, failing: str = "") -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"PATH": f"{tree / 'bin'}:{os.environ['PATH']}", "FAILING": failing}
    command = [str(tree / "examples" / "install-packages.sh"), PACKAGE]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def test_packages_are_installed_quietly(tree: Path) -> None:
    done = install(tree)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"installing {PACKAGE} with apt-get\n"
    for step in ("update", "install"):
        assert f"noise of apt-get {step}\n" in (tree / "build" / "logs" / f"apt-{step}.log").read_text()


@pytest.mark.parametrize("failing", ["update", "install"])
def test_a_failure_names_its_log_and_shows_its_end(tree: Path, failing: str) -> None:
    done = install(tree, failing)
    assert done.returncode == 100
    assert f"noise of apt-get {failing}\n" in done.stderr
    assert "this command failed with exit code 100: " in done.stderr
    assert done.stderr.endswith(f"its whole output is in {tree / 'build' / 'logs' / f'apt-{failing}.log'}\n")


def test_nothing_is_installed_that_is_there(tree: Path) -> None:
    (tree / "bin" / PACKAGE).symlink_to("/bin/true")
    done = install(tree)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tree / "build").exists()
