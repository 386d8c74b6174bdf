"""Start Python programs quickly, as forks of a process that has imported the libraries.

Most of the processor time of a server's start is for imports of libraries, and a run of all tests starts more than a
thousand servers. So each process of pytest has a template: a process that has imported the libraries and waits. It
forks once for each server. The fork imports and runs the program from its first line, as ``python -m`` would.

The template imports nothing of ``watchdog`` itself. So a test can change the program before it is imported. For other
programs the template has forks, which have also imported the modules of the program: one for plain servers, one for
servers with storages, and one for each command that many tests run. To import these modules takes half of the processor
time of a test that calls its server once, and most of that of a command.

The template is not a child of the process of pytest, because some tests examine the children of that process. A fork
has the command line and the first environment of the template in /proc, and shares memory with the template. A test for
which this matters is marked ``executed``: its servers are started with ``exec``. The same is true of a server with an
environment that the interpreter or a library reads when it starts (:func:`can_fork`).
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import io
import marshal
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

# Libraries that each server imports. asyncio is not here, because without storages the server imports it without ssl.
_LIBRARIES = (
    "concurrent.futures.thread",
    "ctypes",
    "decimal",
    "httptools",
    "inspect",
    "logging",
    "msgspec",
    "multidict",
    "platform",
    "pybase64",
    "random",
    "shlex",
    "typing_extensions",
    "unicodedata",
    "uuid",
)
# The imports of an unchanged server. A plain one imports asyncio without ssl (watchdog/cli.py).
PLAIN_SERVER = """
import sys
sys.modules["ssl"] = None
import asyncio
del sys.modules["ssl"]
import watchdog.cli, watchdog.http.server
"""
SERVER_WITH_STORAGES = "import watchdog.cli, watchdog.http.server, watchdog.storage.open_storages, watchdog.storage.s3"
INVOKE = "import watchdog.cli, watchdog.commands.invoke"
JOB = "import watchdog.cli, watchdog.commands.job, watchdog.storage.open_storages, watchdog.storage.s3"
_SERVICE_DEFINITION = ("WATCHDOG_SERVICE_DEFINITION", "FUNCTION_CONFIG")
_READ_AT_START = (
    "COVERAGE",
    "GLIBC",
    "LANG",
    "LC_",
    "LD_",
    "MALLOC",
    "NO_COLOR",
    "OPENSSL",
    "OTEL",
    "PYTHON",
    "SSL",
    "TZ",
)


def can_fork(environ: Mapping[str, str]) -> bool:
    """Return whether this environment and that of the template are the same for the interpreter and the libraries."""
    is_measured = any(name.startswith("COVERAGE") for name in environ)
    return not is_measured and read_at_start(environ) == read_at_start(os.environ)


def imports_of(arguments: list[str], environ: Mapping[str, str]) -> str:
    """Return what this program surely imports in addition to the libraries."""
    has_storages = any(map(environ.get, _SERVICE_DEFINITION))
    if arguments[0].endswith("/guards.py"):  # the program without the guards that the first argument names
        arguments = ["-m", "watchdog", *arguments[2:]]
    match arguments:
        case ["-m", "watchdog", "serve", *_]:
            return SERVER_WITH_STORAGES if has_storages else PLAIN_SERVER
        case ["-m", "watchdog", "invoke", *_]:
            return INVOKE
        case [program] if program.endswith("/supervisor") and has_storages:
            return JOB
    return ""


def read_at_start(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the interpreter or a library reads when it starts."""
    return {name: value for name, value in environ.items() if name.startswith(_READ_AT_START)}


class Template:
    """A process that forks programs."""

    def __init__(self, origin: Template | None = None, imports: str = "") -> None:
        """``origin``: the template from which this one is forked; ``imports``: the code that it runs first."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            if origin is None:
                command = [sys.executable, __file__, str(theirs.fileno())]
                subprocess.run(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], check=True)
            else:
                origin._ask(imports.encode(), theirs.fileno())
        self._lock = threading.RLock()
        self._forks: dict[str, Template] = {}

    def start(
        self, arguments: list[str], environ: Mapping[str, str], cwd: str | os.PathLike[str], *streams: int
    ) -> ForkedProgram:
        """Run what Python runs if it gets these arguments, with a pipe as its stderr.

        ``streams``: its stdin and its stdout. Without them it reads nothing, and has the stdout of pytest.
        """
        return self.with_imports(imports_of(arguments, environ))._start(arguments, environ, cwd, *streams)

    def run(
        self,
        arguments: list[str],
        environ: Mapping[str, str],
        cwd: str | os.PathLike[str],
        stdin: bytes,
        timeout_s: float,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program to its end as :func:`subprocess.run` does, with pipes."""
        their_stdin, our_stdin = os.pipe()
        our_stdout, their_stdout = os.pipe()
        with open(our_stdin, "wb", buffering=0) as to_program, open(our_stdout, "rb") as from_program:
            try:
                program = self.start(arguments, environ, cwd, their_stdin, their_stdout)
            finally:
                os.close(their_stdin)
                os.close(their_stdout)
            # If the time is over, the program ends, and so do the reads.
            timer = threading.Timer(timeout_s, program.kill)
            timer.start()
            with program.stderr, ThreadPoolExecutor(2) as pool:
                pool.submit(_write_all, to_program, stdin)
                errors = pool.submit(program.stderr.read)
                output = from_program.read()
        code = program.wait()
        timer.cancel()
        if timer.finished.is_set() and code == -signal.SIGKILL:
            raise subprocess.TimeoutExpired(arguments, timeout_s, output, errors.result())
        return subprocess.CompletedProcess(arguments, code, output, errors.result())

    def with_imports(self, imports: str) -> Template:
        """Return a fork of this template that has run these imports, or this template if there are none."""
        if not imports:
            return self
        with self._lock:
            if imports not in self._forks:
                self._forks[imports] = Template(self, imports)
            return self._forks[imports]

    def _start(
        self, arguments: list[str], environ: Mapping[str, str], cwd: str | os.PathLike[str], *streams: int
    ) -> ForkedProgram:
        request = os.memfd_create("request")
        read_end, write_end = os.pipe()
        try:
            with open(request, "wb", closefd=False) as file:
                marshal.dump({"arguments": arguments, "environ": dict(environ), "cwd": os.fspath(cwd)}, file)
            pid = self._ask(b"start", request, write_end, *streams)
            assert pid is not None
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(request)
            os.close(write_end)
        return ForkedProgram(self, pid, arguments, open(read_end, "rb"))

    def exit_code(self, pid: int) -> int | None:
        """Return the exit code of a program, negative for a signal, or None if it runs."""
        return self._ask(str(pid).encode())

    def _ask(self, message: bytes, *fds: int) -> int | None:
        with self._lock:
            try:
                socket.send_fds(self._socket, [message], fds)
                answer: int | None = marshal.loads(self._socket.recv(64))
            except BaseException:  # such as a timeout of pytest
                self._socket.close()  # the next message must not get this answer
                raise
        return answer

    def close(self) -> None:
        """Let the process end, and its forks that are templates."""
        for fork in self._forks.values():
            fork.close()
        self._socket.close()


def _write_all(pipe: io.FileIO, data: bytes) -> None:
    with pipe, contextlib.suppress(BrokenPipeError):
        while data:
            data = data[pipe.write(data) :]


class ForkedProgram:
    """Has the part of the interface of :class:`subprocess.Popen` that the tests use."""

    def __init__(self, template: Template, pid: int, args: list[str], stderr: IO[bytes]) -> None:
        self._template = template
        self.pid = pid
        self.args = args
        self.stderr = stderr
        self.stdout: IO[bytes] | None = None  # the server has the stdout of pytest
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        # The threads of a test wait for the same server, and the template can read its status only once.
        with self._lock:
            if self.returncode is None:
                self.returncode = self._template.exit_code(self.pid)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.poll() is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                poller = select.poll()
                poller.register(pidfd, select.POLLIN)
                if not poller.poll(None if timeout is None else timeout * 1000):
                    raise subprocess.TimeoutExpired(self.args, timeout or 0)
            finally:
                os.close(pidfd)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        # The id belongs to this program until the template has read its status.
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _answer_requests(requests: socket.socket) -> dict[str, Any]:
    """Fork a program for each request to start one. Return the request in the fork. Exit if pytest has ended.

    A message with two or four descriptors is a request to start a program. With one descriptor, the message is Python
    code: a fork runs it, and answers the requests that come through that socket. Without any, the message is the id of
    a program.
    """
    while True:
        try:
            message, fds, _, _ = socket.recv_fds(requests, 4096, 4)
        except KeyboardInterrupt:  # pytest ends its servers first
            continue
        if not message:
            os._exit(0)
        if not fds:
            pid, status = os.waitpid(int(message), os.WNOHANG)
            requests.send(marshal.dumps(os.waitstatus_to_exitcode(status) if pid else None))
            continue
        pid = os.fork()
        if pid == 0 and len(fds) == 1:
            requests.close()
            requests = socket.socket(fileno=fds[0])
            sys.path[0] = os.path.dirname(os.path.dirname(__file__))
            exec(message, {})
            continue
        if pid == 0:
            with open(fds[0], "rb") as file:
                file.seek(0)
                request: dict[str, Any] = marshal.load(file)
            for stream, fd in zip((2, 0, 1), fds[1:], strict=False):
                os.dup2(fd, stream)
                os.close(fd)
            requests.close()
            return request
        for fd in fds:
            os.close(fd)
        requests.send(marshal.dumps(pid))


def _run(arguments: list[str]) -> None:
    """Run what Python runs if it gets these arguments."""
    first, *rest = arguments
    if first == "-m":
        sys.path[0] = os.getcwd()
        sys.argv[:] = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.path[0] = ""
        sys.argv[:] = ["-c", *rest[1:]]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.path[0] = os.path.dirname(first)
        sys.argv[:] = arguments
        runpy.run_path(first, run_name="__main__")


def _exit(code: int) -> None:
    """Do what Python does at its end, but leave the objects in memory: the kernel would copy them for their removal."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(Exception):  # Python itself reports the error
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    if os.fork():
        os._exit(0)
    for library in _LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    wanted = _answer_requests(socket.socket(fileno=int(sys.argv[1])))
    os.environ.clear()
    os.environ.update(wanted["environ"])
    os.chdir(wanted["cwd"])
    try:
        _run(wanted["arguments"])
    except SystemExit as end:
        if isinstance(end.code, int):
            _exit(end.code)
        raise
