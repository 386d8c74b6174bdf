"""A real Docker daemon only for tests. Nothing of it is left when it has ended.

The daemon has namespaces of its own. Its bridge, its rules for packets and all published ports are in its network
namespace, which reaches the outside through slirp4netns. Its mounts are in its mount namespace, and all its processes
and containers are in its PID namespace. The kernel ends all three with the daemon, even if the tests are killed.
Only control groups and one directory remain, which ``stop`` removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

_BUILD = Path(__file__).parents[2] / "build" / "docker"
_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_START_S = 120.0
_STOP_S = 60.0
_COMMAND_S = 900.0

# The daemon waits for a line on stdin, which comes when the network is there. Its files in /run are removed with its
# mount namespace.
_START = """
set -eu
read -r _
ip link set lo up
mount -t tmpfs none /run
exec dockerd "$@"
"""


class Daemon:
    """dockerd, and commands that use it.

    Attributes:
        directory: its data, socket and log.
        name: the name of its control groups.
    """

    def __init__(self, root: Path, state: Path = _BUILD) -> None:
        """Start the daemon, and return when it answers.

        Args:
            root: where ``.ci/debian-docker.sh`` has unpacked Docker.
            state: a directory for a lock. There is one daemon at a time for each such directory.
        """
        assert os.geteuid() == 0, "only root can run a Docker daemon here: sudo make docker-test"
        state.mkdir(parents=True, exist_ok=True)
        # Two clones of the repository may run these tests at the same time. The path of a socket is short.
        self.name = f"watchdog-docker-test-{hashlib.sha256(bytes(state)).hexdigest()[:8]}"
        self.directory = Path("/var/tmp", self.name)
        self._lock = self._take_lock(state / "lock")
        self._root = root
        self._processes: list[subprocess.Popen[bytes]] = []
        # Remove files of an earlier run that was killed.
        self._remove_leftovers()
        self.directory.mkdir()
        plugins = self.directory / "config" / "cli-plugins"
        plugins.mkdir(parents=True)
        for plugin in (root / "usr/libexec/docker/cli-plugins").iterdir():
            (plugins / plugin.name).symlink_to(plugin)
        self._environ = os.environ | {
            "PATH": f"{root}/usr/bin:{root}/usr/sbin:{os.environ['PATH']}:/usr/sbin:/sbin",
            "DOCKER_CONFIG": str(plugins.parent),
            "DOCKER_HOST": f"unix://{self.directory}/docker.sock",
        }
        try:
            self.pid = self._start()
        except BaseException:
            self.stop()
            raise

    def _take_lock(self, path: Path) -> IO[bytes]:
        lock = path.open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise AssertionError(f"another run of these tests holds {lock.name}: wait for its end") from None
        return lock

    def _start(self) -> int:
        """Start the daemon and its network. Return the process of the daemon."""
        data = self.directory
        options: tuple[str, ...] = (
            "--data-root",
            f"{data}/data",
            "--exec-root",
            f"{data}/exec",
            "--pidfile",
            f"{data}/pid",
        )
        # 10.0.2.3 is the resolver of slirp4netns, which asks the resolver of the machine.
        options += ("--host", f"unix://{data}/docker.sock", "--config-file", "/dev/null", "--dns", "10.0.2.3")
        options += ("--cgroup-parent", f"/{self.name}", "--exec-opt", "native.cgroupdriver=cgroupfs")
        namespaces = ("unshare", "--net", "--mount", "--propagation", "private", "--pid", "--mount-proc")
        # If the tests are killed, unshare and its child, the first process of the PID namespace, are killed, too.
        command = ("setpriv", "--pdeathsig=KILL", *namespaces, "--fork", "--kill-child", "sh", "-c", _START, "sh")
        with (data / "log").open("wb") as log:
            unshare = self._popen(*command, *options, log=log)
            pid = self._child_of(unshare)
            # The containers cannot reach the loopback interface of this machine.
            ready, is_ready = os.pipe()
            try:
                self._popen(
                    *("setpriv", "--pdeathsig=KILL", "slirp4netns", "--configure", "--mtu=65520"),
                    *("--disable-host-loopback", f"--ready-fd={is_ready}", str(pid), "tap0"),
                    pass_fds=(is_ready,),
                    log=log,
                )
            finally:
                os.close(is_ready)
            with os.fdopen(ready, "rb") as pipe:
                assert pipe.read(1) == b"1", self._log()
        assert unshare.stdin is not None
        with unshare.stdin:
            unshare.stdin.write(b"the network is there\n")
        deadline = time.monotonic() + _START_S
        while self.run("docker version", check=False, timeout_s=30).returncode != 0:
            assert unshare.poll() is None, f"the Docker daemon has ended:\n{self._log()}"
            assert time.monotonic() < deadline, f"the Docker daemon does not answer:\n{self._log()}"
            time.sleep(0.1)
        return pid

    def _popen(self, *command: str, log: IO[bytes], pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            command, env=self._environ, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=pass_fds
        )
        self._processes.append(process)
        return process

    def _child_of(self, unshare: subprocess.Popen[bytes]) -> int:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and unshare.poll() is None:
            with contextlib.suppress(FileNotFoundError):
                children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()
                # Before the shell runs, the child possibly does not have its namespaces yet.
                if children and Path(f"/proc/{children[0]}/comm").read_text() == "sh\n":
                    self.pid = int(children[0])
                    return self.pid
            time.sleep(0.01)
        raise AssertionError(f"unshare could not make namespaces:\n{self._log()}")

    def _log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")[-6000:]

    def command(self, script: str) -> list[str]:
        """Return a command that runs this script of bash in the network with the published ports of the containers."""
        inside = ["nsenter", "--net", f"--target={self.pid}", "--"]
        return [*inside, "setpriv", "--pdeathsig=KILL", "bash", "-euo", "pipefail", "-c", script]

    def environ(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        return self._environ | dict(more or {})

    def run(
        self,
        script: str,
        cwd: Path | None = None,
        environ: Mapping[str, str] | None = None,
        *,
        check: bool = True,
        timeout_s: float = _COMMAND_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a script of bash to its end."""
        done = subprocess.run(
            self.command(script),
            cwd=cwd,
            env=self.environ(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{script}\nended with {done.returncode}:\n{done.stdout}{done.stderr[-6000:]}")
        return done

    def import_root(self, root: Path, image: str, *changes: str) -> None:
        """Make an image of a root file system. ``changes``: lines of a Dockerfile."""
        options = " ".join(f"--change '{change}'" for change in changes)
        self.run(f"tar -C {root} -c . | docker import {options} - {image}")

    def stop(self) -> None:
        """End the daemon with all its containers, and remove what remains."""
        with contextlib.suppress(AttributeError, ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_STOP_S if process is self._processes[0] else 0)
            # End slirp4netns and a daemon that hangs. The end of the daemon also ends its PID namespace.
            process.kill()
            process.communicate()
        self._remove_leftovers()
        self._lock.close()

    def _remove_leftovers(self) -> None:
        for group in self.control_groups():
            group.rmdir()
        shutil.rmtree(self.directory, ignore_errors=True)

    def control_groups(self) -> list[Path]:
        """Return the existing control groups of the daemon, each one after the groups below it."""
        tops = [*_CONTROL_GROUPS.glob(self.name), *_CONTROL_GROUPS.glob(f"*/{self.name}")]
        # The name of a controller may be a link to the directory of several controllers.
        tops = list({top.resolve(): top for top in tops}.values())
        return [Path(below) for top in tops for below, _, _ in os.walk(top, topdown=False)]


@contextlib.contextmanager
def running(root: Path, state: Path = _BUILD) -> Iterator[Daemon]:
    daemon = Daemon(root, state)
    try:
        yield daemon
    finally:
        daemon.stop()
