"""Run containers with podman, in a storage only for tests, and examine them from outside."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

from running_server import RunningServer

_serial = itertools.count()
_COMMAND_S = 120
_OTHER_RUN_S = 900
_CONTROL_GROUPS = Path("/sys/fs/cgroup")

# A machine without privileges allows these limits. The defaults of podman may be higher.
_ULIMITS = ("--ulimit", "nofile=1024:4096", "--ulimit", "nproc=1024:4096")

Mount = tuple[Path, str]
"""A directory of the host, and its path in the container. It is read-only there."""


class Engine:
    """podman and buildah for these tests. They neither read nor change the storage and the settings of the user."""

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._lock = _locked(directory / "lock", say)
        # This directory has sockets, and the path of a socket must be short.
        self._state = state = Path("/run", f"watchdog-image-test-{hashlib.sha256(bytes(directory)).hexdigest()[:8]}")
        if not (directory / "graph").exists():
            shutil.rmtree(state, ignore_errors=True)
        containers, storage = directory / "containers.conf", directory / "storage.conf"
        containers.write_text(f"""
[containers]
log_driver = "none"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
runtime = "runc"
tmp_dir = "{state}/tmp"
""")
        storage.write_text(f"""
[storage]
driver = "overlay"
graphroot = "{directory}/graph"
runroot = "{state}/run"
""")
        self._environ = os.environ | {"CONTAINERS_CONF": str(containers), "CONTAINERS_STORAGE_CONF": str(storage)}
        self.remove_containers()

    def run(self, *command: str, timeout_s: float = _COMMAND_S, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``podman …`` or ``buildah …`` to its end. The result has its stdout and stderr."""
        result = subprocess.run(
            command,
            env=self._environ,
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
        if check and result.returncode != 0:
            raise AssertionError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stderr[-6000:]}")
        return result

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start ``podman …`` or ``buildah …``, and return the process."""
        return subprocess.Popen(
            command,
            env=self._environ,
            # podman's monitor writes a file into this directory when memory runs out.
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def remove_containers(self) -> None:
        """Remove all containers in this storage. An earlier run of these tests that was killed may have left some."""
        self.run("podman", "rm", "--all", "--force", "--time", "0")
        self.run("buildah", "rm", "--all")

    def close(self) -> None:
        self.remove_containers()
        shutil.rmtree(self._state, ignore_errors=True)
        self._lock.close()


def _locked(path: Path, say: Callable[[str], None]) -> IO[bytes]:
    """Return the locked file. If another run of these tests has the lock, wait until it ends.

    Two runs at the same time would use each other's incomplete containers and images.
    """
    lock = path.open("wb")
    deadline = time.monotonic() + _OTHER_RUN_S
    has_said = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if not has_said:
                say(f"waiting for another run of these tests, which holds {path}")
                has_said = True
        if time.monotonic() > deadline:
            lock.close()
            raise AssertionError(f"another run of these tests held {path} for too long")
        time.sleep(0.5)


@dataclass(frozen=True)
class Options:
    """The options of a container.

    Attributes:
        image: the name of an image, or a directory with a root file system. The container does not change the
            directory.
        command: the command that the container runs.
        environ: variables in addition to those that podman sets.
        mounts: directories of the host that the container can read.
        flags: further flags of ``podman run``.
    """

    image: str | Path
    command: tuple[str, ...] = ()
    environ: tuple[tuple[str, str], ...] = ()
    mounts: tuple[Mount, ...] = ()
    flags: tuple[str, ...] = ()
    network: str = "host"

    def run(self, name: str) -> list[str]:
        """Return the command that runs such a container."""
        arguments = ["podman", "run", "--rm", "--name", name, "--network", self.network, *_ULIMITS, *self.flags]
        for variable, value in self.environ:
            arguments += ["--env", f"{variable}={value}"]
        for directory, target in self.mounts:
            arguments += ["--volume", f"{directory}:{target}:ro"]
        # With "O", the container writes into an overlay, which is removed with the container.
        image = ["--rootfs", f"{self.image}:O"] if isinstance(self.image, Path) else [self.image]
        return [*arguments, *image, *self.command]


class Container(RunningServer):
    """A container in which the server runs, on a free port of the host's loopback interface.

    With the network ``none``, the container has its own loopback interface, which only :meth:`curl` reaches.
    """

    patience_s: ClassVar[float] = 30

    def __init__(self, engine: Engine, options: Options) -> None:
        self.engine = engine
        self.options = options
        self.name = _new_name()
        self.logs: list[dict[str, Any]] = []
        self._news: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.process = engine.start(*options.run(self.name))
        self._reader = threading.Thread(target=self._read_logs, daemon=True)
        self._reader.start()
        try:
            self.port = self.event("listening")["port"]
            state = engine.run("podman", "inspect", "--format", "{{.State.Pid}}", self.name)
            self.pid = int(state.stdout)
        except BaseException:
            self.kill()
            raise

    def curl(self, path: str = "/", *arguments: str, data: Path | None = None, timeout_s: float = 60) -> CurlAnswer:
        """Run ``curl`` on the host, and return the answer of the container."""
        inside = ("nsenter", "--net", "--target", str(self.pid)) if self.options.network == "none" else ()
        command = [*inside, "curl", "--silent", "--show-error", "--max-time", str(timeout_s), *arguments]
        if data is not None:
            command += ["--data-binary", f"@{data}"]
        command += ["--write-out", "%{stderr}%{http_code}", f"http://127.0.0.1:{self.port}{path}"]
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s + 10)
        assert result.returncode == 0, result.stderr
        return CurlAnswer(int(result.stderr), result.stdout)

    def pids(self) -> list[int]:
        """Return the pids on the host of all processes in the container, except zombies."""
        return [int(pid) for pid in (self._memory_group() / "cgroup.procs").read_text().split()]

    def processes_of(self, directory: str) -> list[int]:
        """Return the pids of the processes whose program is below this directory of the container."""
        return [pid for pid in self.pids() if os.readlink(f"/proc/{pid}/exe").startswith(f"{directory}/")]

    def memory_mib(self, field: str) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split(f"{field}:")[1].split()[0]) / 1024

    def control_group_mib(self) -> float:
        """Return the memory that counts for the limit of the container, without caches that the kernel can free."""
        group = self._memory_group()
        usage = next(name for name in ("memory.current", "memory.usage_in_bytes") if (group / name).exists())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        reclaimable = statistics.get("total_inactive_file", statistics.get("inactive_file", "0"))
        return (int((group / usage).read_text()) - int(reclaimable)) / 1024**2

    def _memory_group(self) -> Path:
        unified = None
        for line in Path(f"/proc/{self.pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                return _CONTROL_GROUPS / "memory" / path.lstrip("/")
            if not controllers:
                unified = _CONTROL_GROUPS / path.lstrip("/")
        assert unified is not None
        return unified

    def kill(self) -> None:
        if self.process.poll() is None:
            self.engine.run("podman", "rm", "--force", "--time", "0", self.name, check=False)
        # If `podman run` has not made the container yet, `podman rm` does not find it. Then end only `podman run`.
        try:
            self.process.wait(timeout=self.patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.engine.run("podman", "rm", "--force", "--time", "0", self.name, check=False)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._reader.join(timeout=self.patience_s)
        self.process.stdout.close()
        self.process.stderr.close()


@dataclass(frozen=True)
class CurlAnswer:
    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def output_of(engine: Engine, options: Options) -> bytes:
    """Return the output of a container with these options. Its exit code must be 0."""
    result = ended(engine, options)
    assert result.returncode == 0, result
    return result.stdout


def ended(engine: Engine, options: Options) -> subprocess.CompletedProcess[bytes]:
    """Run a container with these options to its end, and return its exit code and output."""
    name = _new_name()
    process = engine.start(*options.run(name))
    try:
        stdout, stderr = process.communicate(timeout=Container.patience_s)
    finally:
        if process.poll() is None:
            engine.run("podman", "rm", "--force", "--time", "0", name, check=False)
            process.kill()
            process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def _new_name() -> str:
    return f"watchdog-image-test-{os.getpid()}-{next(_serial)}"


@contextlib.contextmanager
def running(engine: Engine, options: Options) -> Iterator[Container]:
    """Run a container until the end of the context."""
    container = Container(engine, options)
    try:
        yield container
    finally:
        container.kill()
