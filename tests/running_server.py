"""Start a real server in a separate process, and exchange requests and answers with it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from template import ForkedProgram, Template, can_fork

from watchdog.process.guardian import NAME as GUARDIAN
from watchdog.system import proc

# Prefixes of a command. Root needs no user namespace, which containers often forbid.
_AS_ROOT = () if os.geteuid() == 0 else ("--user", "--map-root-user")
AS_PID_1 = ("unshare", *_AS_ROOT, "--pid", "--fork", "--kill-child", "--mount-proc")
WITHOUT_PRIVILEGES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")

# For ``guards.changed_program``: a server that has enough time to answer the calls that a second signal ended, even on
# a slow machine.
PATIENT_STOP = "from watchdog.http import server; replace(server, '_SHUTDOWN_S', 60.0)"


class Stall(AssertionError):
    """Something did not come in time. The message names it."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class RunningServer:
    """``watchdog serve`` on a free port of the loopback interface.

    With a template, the server is forked, which is quicker, unless the test needs an executed process.
    """

    # The longest wait for something that should come at once. It is long, because machines are sometimes slow.
    patience_s: ClassVar[float] = 40
    # A test without a guard expects that this never comes: a regular expression for the message of a Stall.
    never: ClassVar[str | None] = None
    # How long such a test waits for it.
    never_s: ClassVar[float] = 3
    # Ends the servers of such a test.
    end_all: ClassVar[Callable[[], None]] = lambda: None

    def __init__(
        self,
        directory: Path,
        script: str | None,
        *flags: str,
        prefix: tuple[str, ...] = (),
        program: tuple[str, ...] = ("-m", "watchdog"),
        has_logs: bool = True,
        template: Template | None = None,
        **environ: str,
    ) -> None:
        self.directory = directory
        self.tmp = directory / "tmp"
        self.tmp.mkdir(parents=True, exist_ok=True)
        self.script = directory / "script.sh"
        if script is not None:
            self.script.write_text(script)
        self.logs: list[dict[str, Any]] = []
        self._news: queue.Queue[dict[str, Any] | None] = queue.Queue()
        # Remove this variable: a test decides itself whether the server is on Kubernetes, even if the test runs in a
        # pod.
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("WATCHDOG_") and name != "KUBERNETES_SERVICE_HOST"
        }
        defaults = {
            "TMPDIR": str(self.tmp),
            "WATCHDOG_BIND": "127.0.0.1",
            "WATCHDOG_METRICS_PORT": "0",
            "WATCHDOG_SCRIPT_PATH": str(self.script),
            "WATCHDOG_LOG_FORMAT": "json",
            "WATCHDOG_KILL_GRACE": "2",
        }
        environ = defaults | environ
        # Such a server does not log its port.
        is_quiet = not has_logs or environ.get("WATCHDOG_LOG_LEVEL", "INFO") in ("WARNING", "ERROR", "CRITICAL")
        self.port = free_port() if is_quiet else 0
        self.command_without_serve = [*prefix, sys.executable, *program]
        command = [*self.command_without_serve, "serve", "--port", str(self.port), *flags]
        cwd = Path(__file__).parent.parent
        self.process: subprocess.Popen[bytes] | ForkedProgram
        if template is not None and not prefix and can_fork(clean | environ):
            self.process = template.start(command[1:], clean | environ, cwd)
        else:
            self.process = subprocess.Popen(
                command, env=clean | environ, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=cwd
            )
        self._reader = threading.Thread(target=self._read_logs, daemon=True)
        self._reader.start()
        try:
            if is_quiet:
                self._wait_until_it_listens()
            else:
                self.port = self.event("listening")["port"]
        except BaseException:  # the test gets no object with which it could end the process
            self.kill()
            raise

    def _wait_until_it_listens(self) -> None:
        """Wait until the server accepts connections, if its log does not show the event for this."""
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                self.connect().close()
                return
            except ConnectionRefusedError:
                assert self.process.poll() is None, f"the server ended with exit code {self.process.poll()}"
                assert time.monotonic() < deadline, "the server does not listen"
                time.sleep(0.01)

    def _read_logs(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                event = json.loads(line)
            except ValueError:
                event = {"event": "not json", "text": line.decode("utf-8", "replace")}
            self._news.put(event)
        self._news.put(None)

    def event(self, *names: str, **fields: object) -> dict[str, Any]:
        """Return the next log event with one of these names and these fields. Events before it stay in ``logs``."""
        awaited = f"the event {' or '.join(map(repr, names))}"
        while True:
            try:
                event = self._news.get(timeout=patience_for_s(awaited))
            except queue.Empty:
                raise stalled(f"{awaited} did not come; the server logged {self.logs}") from None
            if event is None:
                raise AssertionError(f"the server ended before {awaited}; it logged {self.logs}")
            self.logs.append(event)
            if event["event"] in names and fields.items() <= event.items():
                return event

    def call(
        self,
        body: bytes | None = b"",
        path: str = "/",
        method: str = "POST",
        headers: dict[str, str] | None = None,
        port: int | None = None,
    ) -> Answer:
        stall = f"no answer came to {method} {path}"
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=patience_for_s(stall))
        with contextlib.closing(connection):
            try:
                connection.request(method, path, body, headers or {})
                response = connection.getresponse()
                return Answer(response.status, response.headers, response.read())
            except TimeoutError as error:
                raise stalled(stall) from error

    def metric(self, name: str) -> float:
        """Return the value of a series with its labels. The server must have a metrics port."""
        port = next(event["metrics_port"] for event in self.logs if event["event"] == "listening")
        assert port is not None, "the server has no metrics port"
        text = self.call(None, "/metrics", "GET", port=port).body.decode()
        match = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert match, text
        return float(match[1])

    def await_bodies(self, count: int = 1) -> None:
        """Wait until the server waits for this number of bodies. It must have a metrics port."""
        until(lambda: self.metric("watchdog_bodies_awaited") == count, f"the server to wait for {count} bodies")

    def await_waiting(self, count: int = 1) -> None:
        """Wait until this number of calls with complete inputs wait for places. It must have a metrics port."""
        until(lambda: self.metric("watchdog_calls_waiting") == count, f"{count} calls to wait")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=self.patience_s)

    def refuses_connections(self) -> bool:
        """Return whether nothing listens on its port any more."""
        try:
            self.connect().close()
        except ConnectionRefusedError:
            return True
        return False

    def raw(self, data: bytes) -> bytes:
        """Send bytes, and return all bytes until the server closes the connection."""
        with self.connect() as sock:
            sock.sendall(data)
            return read_all(sock)

    def raw_at_once(self, data: bytes) -> bytes:
        """Do the same as :meth:`raw`, but let the server see the connection only when the bytes are there, too."""
        self.signal(signal.SIGSTOP)
        with self.connect() as sock:
            sock.sendall(data)
            self.signal(signal.SIGCONT)
            return read_all(sock)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        try:
            code = self.process.wait(timeout=patience_for_s(stall := "the server did not end"))
        except subprocess.TimeoutExpired as error:
            raise stalled(stall) from error
        self._reader.join(timeout=self.patience_s)
        while (event := self._news.get(timeout=self.patience_s)) is not None:
            self.logs.append(event)
        self._news.put(None)
        return code

    def stop(self) -> int:
        """Stop the server with SIGTERM, and return its exit code. ``logs`` then has its whole log."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait()

    def memory_mib(self, field: str) -> float:
        """Return ``VmRSS``, the current memory, or ``VmHWM``, the peak memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split(f"{field}:")[1].split()[0]) / 1024

    def leftovers(self) -> list[Path]:
        """Return the names in its temporary directory, without the lock file."""
        return [path for path in self.tmp.rglob("*") if path.name not in (".lock", "lock")]

    def descriptors(self) -> int:
        """Return the number of its open descriptors."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def descriptors_at_rest(self) -> int:
        """Return the number of open descriptors after a first call, which opens some, and without any connection."""
        self.call(b"")
        until(
            lambda: not self.connections() and not self.leftovers_of_calls(),
            "the server to come to rest",
        )
        return self.descriptors()

    def connections(self) -> int:
        """Return the number of its connections."""
        lines = Path(f"/proc/{self.process.pid}/net/tcp").read_text().splitlines()[1:]
        listening, port = "0A", f":{self.port:04X}"
        return sum(fields[1].endswith(port) and fields[3] != listening for fields in map(str.split, lines))

    def leftovers_of_calls(self) -> list[Path]:
        """Return the existing workspaces."""
        return list(self.tmp.glob("watchdog-*/[0-9]*"))

    def discard(self) -> None:
        """Kill the server at the end of a test, together with its guardian if the server has no other child.

        The guardian would search all processes of the machine three times for processes of scripts. This takes more
        processor time than most tests. But every process that scripts left is a child of the server.
        """
        with contextlib.suppress(OSError), self._lone_guardian() as guardian:
            self.process.kill()
            signal.pidfd_send_signal(guardian, signal.SIGKILL)
        self.kill()

    @contextlib.contextmanager
    def _lone_guardian(self) -> Iterator[int]:
        """Stop the server, so that it starts no command now, and open a descriptor of its guardian.

        Raises:
            OSError: the server has ended, has no guardian or has other children, or the kernel does not list children.
        """
        self.process.send_signal(signal.SIGSTOP)
        until(lambda: (found := proc.process(self.process.pid)) is None or found.state in "TZ", "the server to stop")
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        if len(children) != 1:
            raise ChildProcessError("it has no child, or several")
        guardian = os.pidfd_open(children[0])
        try:
            if Path(f"/proc/{children[0]}/comm").read_text() != f"{GUARDIAN}\n":
                raise ChildProcessError("the child is not the guardian")
            yield guardian
        finally:
            os.close(guardian)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self._reader.join(timeout=self.patience_s)
        self.process.stderr.close()


def patience_for_s(what: str) -> float:
    """Return how long to wait for something: only a short time if the test expects that it never comes."""
    return RunningServer.never_s if _is_awaited_in_vain(what) else RunningServer.patience_s


def stalled(message: str) -> Stall:
    """Return the error for something that did not come.

    If this is what the test expects, its servers end. Otherwise a call in another thread of the test would continue to
    wait, and the test would wait for this thread.
    """
    if _is_awaited_in_vain(message):
        RunningServer.end_all()
    return Stall(message)


def _is_awaited_in_vain(what: str) -> bool:
    return RunningServer.never is not None and re.search(RunningServer.never, what) is not None


def _wait_less(sock: socket.socket, stall: str) -> None:
    if _is_awaited_in_vain(stall):
        sock.settimeout(RunningServer.never_s)


def free_port() -> int:
    """Return a port that no program uses, and that the kernel does not give to a program that asks for any port."""
    first, last = (int(end) for end in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = [port for port in range(10_000, 65_536) if not first <= port <= last] or range(10_000, 65_536)
    while True:
        port = secrets.choice(ports)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def read_all(sock: socket.socket) -> bytes:
    data = bytearray()
    _wait_less(sock, stall := "the connection was not closed")
    try:
        while piece := sock.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    except TimeoutError as error:
        raise stalled(f"{stall} after {bytes(data[-1000:])!r}") from error
    return bytes(data)


def read_answer(sock: socket.socket) -> bytes:
    """Return one answer with a length, or the bytes before the end of the connection. A reset raises an error."""
    answer = b""
    _wait_less(sock, stall := "no whole answer came")
    while len(answer.partition(b"\r\n\r\n")[2]) < length_of(answer):
        try:
            piece = sock.recv(65536)
        except TimeoutError as error:
            raise stalled(f"{stall}, only {answer[-1000:]!r}") from error
        if not piece:
            return answer
        answer += piece
    return answer


def length_of(answer: bytes) -> int:
    match = re.search(rb"\r\nContent-Length: (\d+)\r\n", answer)
    return int(match[1]) if match else 1 << 60


def is_whole(answer: bytes) -> bool:
    return len(answer.partition(b"\r\n\r\n")[2]) == length_of(answer)


@contextlib.contextmanager
def on_terminal(command: Sequence[str], **options: Any) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a command on a terminal. Yield the process, and the other end of the terminal for :func:`read_terminal`.

    ``options``: those of Popen; ``stdin``, ``stdout`` or ``stderr`` to connect one of them elsewhere.
    """
    mine, its = os.openpty()
    ends: dict[str, Any] = {"stdin": its, "stdout": its, "stderr": its}
    try:
        running = subprocess.Popen[bytes](command, **ends | options)
        os.close(its)
        with running:
            try:
                yield running, mine
            except BaseException:
                running.kill()  # it may wait for the test
                raise
    finally:
        os.close(mine)


def read_terminal(fd: int, through: bytes | None = None) -> bytes:
    """Return all bytes that were written to a terminal. The other processes must have closed it.

    Before that, a read may return nothing although bytes were written, because the kernel passes them on in a thread.
    ``through``: stop after the read that returns this text.
    """
    data = bytearray()
    with contextlib.suppress(OSError):  # EIO: no other process has the terminal open, and all bytes are read
        while (through is None or through not in data) and (piece := os.read(fd, 65536)):
            data += piece
    return bytes(data)


def until(condition: Callable[[], object], what: str, patience_s: float | None = None) -> None:
    """Check a condition again and again until it is true. ``patience_s``: for work that is slow on a busy machine."""
    deadline = time.monotonic() + (patience_s or patience_for_s(what))
    while not condition():
        if time.monotonic() > deadline:
            raise stalled(f"waited in vain for {what}")
        time.sleep(0.01)


def arguments_of(pid: int) -> bytes:
    """Return the arguments of a process, each with a NUL at its end; nothing if it is dead.

    While ``exec`` replaces the memory of a process, the process has no arguments for a moment. So this waits for them.
    """
    while True:
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return b""
        process = proc.process(pid)
        if arguments or process is None or not process.is_alive:
            return arguments
        time.sleep(0.001)


def is_guardian(pid: int, of: int) -> bool:
    """Return whether a child of the server ``of`` is its guardian, a fork with the arguments of the server."""
    return arguments_of(pid) == arguments_of(of)


def problem(answer: Answer, status: int) -> dict[str, object]:
    """Return the document of an answer that must report a problem with this status."""
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    document: dict[str, object] = answer.json
    assert document["status"] == status
    assert document["call_id"] == answer.headers["X-Call-Id"]
    assert document["title"]
    assert document["detail"]
    return document


StartServer = Callable[..., RunningServer]
