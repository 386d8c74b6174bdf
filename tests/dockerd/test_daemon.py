"""The Docker daemon of the tests leaves no process, mount, control group or directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from image.roots import Roots
from running_server import until

from dockerd.daemon import Daemon, running

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600, func_only=True)]

# Starts a daemon with a container, prints the directory of the daemon, and waits.
_PROGRAM = """
import sys
from pathlib import Path
from dockerd.daemon import Daemon

daemon = Daemon(Path(sys.argv[1]), Path(sys.argv[3]))
daemon.import_root(Path(sys.argv[2]), "busybox")
daemon.run("docker run --detach --publish 8080:8080 busybox sleep 1000")
print(daemon.directory, daemon.pid, flush=True)
sys.stdin.readline()
daemon.stop()
"""


def leftovers(directory: Path) -> list[str]:
    """Return everything on this machine that belongs to the daemon with this directory."""
    found = [
        f"mount {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(directory) in line
    ]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            groups = (process / "cgroup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(directory) in command or directory.name in groups:
            found.append(f"process {process.name}: {command}")
    links = Path("/sys/class/net")
    found += [f"network {link.name}" for link in links.iterdir() if link.name.startswith(("docker", "veth", "tap"))]
    return found


def files_left(directory: Path) -> list[Path]:
    groups = [Path(below) for below, _, _ in os.walk("/sys/fs/cgroup") if directory.name in below]
    return groups + ([directory] if directory.exists() else [])


@pytest.fixture
def networks() -> set[str]:
    """Return the network devices that exist before the test. Other programs may have made them."""
    return {f"network {link.name}" for link in Path("/sys/class/net").iterdir()}


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_nothing_is_left_of_a_daemon(
    docker_root: Path, roots: Roots, networks: set[str], tmp_path: Path, end: str
) -> None:
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, docker_root, roots["busybox"], tmp_path],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        directory, pid = process.stdout.readline().split()
        assert [line for line in leftovers(Path(directory)) if line.startswith(f"process {pid}:")] != []
        if end == "stopped":
            process.stdin.write("\n")
            process.stdin.close()
            assert process.wait(timeout=120) == 0
        else:
            process.send_signal(signal.SIGKILL)
            process.wait()
        until(lambda: set(leftovers(Path(directory))) <= networks, "the end of the daemon and its containers", 60)
    if end == "killed":
        # The kernel has ended all processes. The next run removes the files.
        assert files_left(Path(directory)) != []
        Daemon(docker_root, tmp_path).stop()
    assert files_left(Path(directory)) == []


def test_two_runs_at_once_are_refused(docker_root: Path, tmp_path: Path) -> None:
    with running(docker_root, tmp_path), pytest.raises(AssertionError, match="another run of these tests holds"):
        Daemon(docker_root, tmp_path)
