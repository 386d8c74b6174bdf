"""The tests do not depend on the signals that the program which started pytest ignores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
# nohup(1) ignores SIGHUP, and a shell without job control ignores SIGINT and SIGQUIT of programs in the background.
IGNORING = ("/bin/sh", "-c", "trap '' HUP INT QUIT TERM PIPE; exec \"$@\"", "sh")
TEST = """
import os, signal, subprocess

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE)
SHOW = "import subprocess; subprocess.run(['grep', 'SigIgn', '/proc/self/status'], stdout=2)"

def ignored(line):
    return [number for number in SIGNALS if int(line.split()[1], 16) >> number - 1 & 1]

def test_programs(template):
    assert ignored(subprocess.check_output(["grep", "SigIgn", "/proc/self/status"])) == []
    assert ignored(template.start(["-c", SHOW], os.environ, "/").stderr.read()) == []

def test_pytest_goes_on():
    for number in SIGNALS:
        os.kill(os.getpid(), number)
"""


def test_programs_have_the_usual_signals(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(TEST)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environ["PYTHONPATH"] = f"{TESTS}:{TESTS.parent}"
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:schemathesis", "-n", "1"]
    done = subprocess.run([*IGNORING, *command], env=environ, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
