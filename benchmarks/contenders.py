"""Start the contenders. Each is a real server with its usual command, as a child process of the benchmark.

All have the same job: run ``sh`` on a script in which one ``cat`` copies the 12 bytes of the body. Each listens on a
free port of the loopback interface. All contenders have the same small environment. The floor (``floor.py``) has this
environment, too.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INPUT = b"hello world!"
SCRIPT = '#!/bin/sh\ncat "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/out"\n'
# Debian installs servers in these directories. They are possibly missing from the PATH of a user.
PATH = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
ENVIRONMENT = {"PATH": PATH, "LANG": "C.UTF-8"}
# The interpreter of the servers, with only the packages of requirements.txt. Packages that only tests need can make a
# start slower.
BARE_PYTHON = ROOT / "build" / "bench-python" / "bin" / "python"
# A long time, because the machine may be busy.
PATIENCE_S = 60.0


class Unavailable(Exception):
    """A contender cannot be started here; the message says why."""


@dataclass(frozen=True)
class Job:
    """The request to a contender, and the right answer."""

    path: str = "/"
    body: bytes = base64.b64encode(INPUT)
    expected: bytes = base64.b64encode(INPUT) + b"\n"
    content_type: str = "text/plain"

    def request(self) -> bytes:
        head = f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {self.content_type}\r\n"
        return f"{head}Content-Length: {len(self.body)}\r\n\r\n".encode() + self.body


class Server:
    """A server that listens on ``port``, and the job that callers give it.

    Args:
        prefix: words before each command, such as those that start it in a control group.
    """

    name = ""
    # The work for a call that the watchdog does and this server does not do.
    does_less = ""
    job = Job()

    def __init__(self, directory: Path, prefix: Sequence[str] = ()) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        self._prefix = prefix
        self.port = 0
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def pid(self) -> int:
        return self._processes[0].pid

    def _start(self, command: list[str], environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        with open(self.directory / "log", "ab") as log:
            self._processes.append(
                subprocess.Popen(
                    [*self._prefix, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environ or ENVIRONMENT,
                    cwd=cwd,
                    # Each program has its own process group, because fcgiwrap does not end the processes that it forks.
                    process_group=0,
                )
            )

    def _until(self, is_ready: Callable[[], bool]) -> None:
        """Wait until ``is_ready()`` is true.

        Raises:
            Unavailable: a process has ended, or the wait took too long.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not is_ready():
            if any(map(_has_ended, self._processes)) or time.monotonic() > deadline:
                self.stop()
                raise Unavailable(f"it does not start: {self.log_end()}")
            time.sleep(0.001)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S).close()
        except ConnectionRefusedError:
            return False
        return True

    def log_end(self) -> str:
        return (self.directory / "log").read_bytes()[-1000:].decode("utf-8", "replace").strip()

    def stop(self) -> None:
        for process in reversed(self._processes):
            if process.returncode is not None:
                continue
            os.kill(process.pid, signal.SIGTERM)
            deadline = time.monotonic() + PATIENCE_S
            while not _has_ended(process) and time.monotonic() < deadline:
                time.sleep(0.001)
            # Kill the group before wait() takes the status. Until then no other group can get the same id.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Watchdog(Server):
    """``watchdog serve`` of this checkout, of another checkout, or of a program.

    Args:
        source: the root of a checkout, or a program to run. The code of each checkout runs with the same interpreter
            and the same packages, so that nothing else differs.
        launcher: a script of ``benchmarks/`` that is started in place of ``-m watchdog``.
        environ: settings that an older checkout possibly does not have. It would refuse to start with an unknown flag.
    """

    name = "watchdog"

    def __init__(
        self,
        directory: Path,
        *,
        source: Path = ROOT,
        script: str = SCRIPT,
        max_inflight: int | None = None,
        flags: tuple[str, ...] = (),
        launcher: tuple[str, ...] = (),
        port: int = 0,
        wait: bool = True,
        prefix: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(directory, prefix)
        (directory / "script.sh").write_text(script)
        (directory / "tmp").mkdir()
        if source.is_dir():
            program = [server_python(), *(launcher or ("-m", "watchdog"))]
        else:
            program = [str(source)]
        self.port = port
        settings = [f"--port={port}", "--bind=127.0.0.1", "--metrics-port=0", "--log-format=json"]
        settings += [f"--script-path={directory / 'script.sh'}", "--healthcheck-interval=0"]
        if max_inflight is not None:
            settings.append(f"--max-inflight={max_inflight}")
        self._start(
            [*program, "serve", *settings, *flags],
            {**ENVIRONMENT, "TMPDIR": str(directory / "tmp"), **(environ or {})},
            source if source.is_dir() else None,
        )
        if wait:
            self._until(self._has_logged_port)

    def _has_logged_port(self) -> bool:
        for line in (self.directory / "log").read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if event.get("event") == "listening":
                    self.port = event["port"]
                    return True
        return False

    def is_healthy(self) -> bool:
        """Return whether the server answers ``/_/health`` with 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/_/health")
                return connection.getresponse().status == 200
            except ConnectionRefusedError:
                return False

    def until_healthy(self) -> None:
        self._until(self.is_healthy)

    def script_lines(self) -> tuple[int, int]:
        """Return how many of the script's lines are in the log, and how many were dropped according to the log.

        The server must have stopped.
        """
        logged, dropped = 0, 0
        with open(self.directory / "log", "rb") as log:
            for line in log:
                if b'"logger":"script"' in line:
                    logged += 1
                elif b'log lines dropped"' in line:  # the event of the whole log, or of one call's `max_log_rate`
                    dropped += json.loads(line)["count"]
        return logged, dropped

    def cpu_s(self, *, with_children: bool = False) -> float:
        """Return the processor time of its process in seconds.

        Args:
            with_children: add the processes that it has started and that still run. Before the first call, the only
                such process is the guardian.
        """
        pids = [self.pid, *(map(int, self._children()) if with_children else ())]
        return sum(time.clock_gettime(clock_of(pid)) for pid in pids)

    def _children(self) -> list[str]:
        return Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()

    def memory_mib(self, field: str) -> float:
        """Return the server's memory in MiB: the present one for ``VmRSS``, its peak for ``VmHWM``."""
        return _memory_mib(self.pid, field)

    def guardian_mib(self) -> float | None:
        """Return the MiB that the guardian, a fork of the server, does not share with it; None if this needs root."""
        try:
            return sum(map(_private_mib, self._children()))
        except PermissionError:
            return None


class Webhook(Server):
    """Debian's webhook: a Go server that runs a command for each request."""

    name = "webhook"
    does_less = (
        "It decodes the body into a temporary file as the watchdog does, and answers with what the script prints: no "
        "output directory, no base64 of the answer, no process group or supervision of what the script leaves, no log."
    )
    job = Job(path="/hooks/copy", expected=INPUT)

    def __init__(self, directory: Path, prefix: Sequence[str] = ()) -> None:
        program = _program("webhook")
        super().__init__(directory, prefix)
        script = directory / "script.sh"
        script.write_text('#!/bin/sh\ncat "$INPUT_FILE_PATH"\n')
        script.chmod(0o755)
        (directory / "tmp").mkdir()
        hook = {
            "id": "copy",
            "execute-command": str(script),
            "command-working-directory": str(directory / "tmp"),
            "include-command-output-in-response": True,
            "pass-file-to-command": [
                {"source": "raw-request-body", "envname": "INPUT_FILE_PATH", "base64decode": True},
            ],
        }
        (directory / "hooks.json").write_text(json.dumps([hook]))
        self.port = free_port()
        self._start(
            [program, "-hooks", str(directory / "hooks.json"), "-ip", "127.0.0.1", "-port", str(self.port)],
            ENVIRONMENT | {"TMPDIR": str(directory / "tmp")},
        )
        self._until(self._listens)


class Nginx(Server):
    """nginx with fcgiwrap, which runs a CGI script for each request; eight of its processes wait for work."""

    name = "nginx+fcgiwrap"
    does_less = (
        "The body goes from stdin to stdout of the script: no file in or out, no base64, no process group or "
        "supervision of what the script leaves, no log. Eight processes are forked ahead."
    )
    job = Job(path="/copy", body=INPUT, expected=INPUT)

    def __init__(self, directory: Path, prefix: Sequence[str] = ()) -> None:
        nginx, fcgiwrap = _program("nginx"), _program("fcgiwrap")
        super().__init__(directory, prefix)
        script = directory / "script.sh"
        script.write_text(
            f"#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\nContent-Length: {len(INPUT)}\\r\\n\\r\\n'\ncat\n"
        )
        script.chmod(0o755)
        self.port = free_port()
        (directory / "nginx.conf").write_text(_nginx_conf(directory, script, self.port))
        # The path of a Unix socket has at most 107 bytes. This relative path is always short enough.
        self._start([fcgiwrap, "-c", "8", "-s", "unix:fcgi"], cwd=directory)
        self._until((directory / "fcgi").exists)
        # If this process runs as root, the workers may run as another user.
        (directory / "fcgi").chmod(0o777)
        self._start([nginx, "-p", str(directory), "-c", "nginx.conf", "-e", "log"], cwd=directory)
        self._until(self._listens)


def _nginx_conf(directory: Path, script: Path, port: int) -> str:
    user = "user root;" if os.geteuid() == 0 else ""
    return f"""
daemon off; pid nginx.pid; error_log log error; worker_processes auto; {user}
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 100000000;
    client_body_temp_path {directory}/body; fastcgi_temp_path {directory}/fastcgi; proxy_temp_path {directory}/proxy;
    scgi_temp_path {directory}/scgi; uwsgi_temp_path {directory}/uwsgi;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{
            fastcgi_pass unix:{directory}/fcgi;
            fastcgi_param SCRIPT_FILENAME {script};
            fastcgi_param REQUEST_METHOD $request_method;
            fastcgi_param CONTENT_LENGTH $content_length;
        }}
    }}
}}
"""


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Return whether a process has ended. Its status can still be read later."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def versions() -> dict[str, str | None]:
    """Return the version of each program that takes part, from the program or from dpkg; None if it is missing."""
    found: dict[str, str | None] = {}
    for name, ask in {
        "wrk": ["wrk", "--version"],
        "webhook": ["webhook", "-version"],
        "nginx": ["nginx", "-v"],
        "fcgiwrap": ["dpkg-query", "--showformat=${Version}", "--show", "fcgiwrap"],
        "strace": ["strace", "--version"],
        "base64": ["base64", "--version"],
        "sh": ["dpkg-query", "--showformat=${Package} ${Version}", "--show", "dash"],
    }.items():
        found[name] = None
        if shutil.which(name, path=PATH):
            with contextlib.suppress(OSError):
                asked = subprocess.run(ask, env=ENVIRONMENT, capture_output=True, text=True, check=False)
                lines = (asked.stdout + asked.stderr).strip().splitlines()
                found[name] = lines[0] if lines else "there, of unknown version"
    return found


def server_python() -> str:
    """Return the interpreter for servers: the bare one if it exists, else this one."""
    return str(BARE_PYTHON) if BARE_PYTHON.exists() else sys.executable


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _program(name: str) -> str:
    found = shutil.which(name, path=PATH)
    if found is None:
        raise Unavailable(f"the program {name} is not installed")
    return found


def clock_of(pid: int) -> int:
    """Return the id of the clock that shows the processor time of all threads of a process, also of ended ones.

    It is what clock_getcpuclockid(3) returns, which Python does not have.
    """
    return ~pid << 3 | 2


def _memory_mib(pid: int, field: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def _private_mib(pid: str) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024
