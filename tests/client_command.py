"""Run `watchdog invoke`, and a service that answers with any bytes that a test chooses."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from running_server import on_terminal, read_terminal
from template import Template, can_fork

PATIENCE_S = 60
ROOT = Path(__file__).parent.parent
Done = subprocess.CompletedProcess[bytes]
# Sends the answer on a connection whose request was read.
Answering = Callable[[socket.socket], None]
# The process that the commands are forks of, while tests run (conftest.py).
template: Template | None = None


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without settings and proxies."""
    left_out = re.compile(r"WATCHDOG_.*|(?i:.*_proxy)|SSL_CERT_FILE|NO_COLOR|COLUMNS")
    kept = {name: value for name, value in os.environ.items() if not left_out.fullmatch(name)}
    return {**kept, **more}


def command(*words: object, without: str | None = None) -> list[str]:
    """The command line. ``without``: the guard that is taken out."""
    program = ["-m", "watchdog"] if without is None else [str(ROOT / "tests" / "guards.py"), without]
    return [sys.executable, *program, "invoke", *map(str, words)]


def invoke(*words: object, cwd: Path, stdin: bytes = b"", without: str | None = None, **environ: str) -> Done:
    """Run the command to its end, without a terminal."""
    line, variables = command(*words, without=without), clean_environment(**environ)
    if template is not None and can_fork(variables):
        done = template.run(line[1:], variables, cwd, stdin, PATIENCE_S)
    else:
        done = subprocess.run(
            line, cwd=cwd, input=stdin, env=variables, capture_output=True, timeout=PATIENCE_S, check=False
        )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


def invoke_on_terminal(*words: object, cwd: Path, without: str | None = None, **environ: str) -> tuple[int, bytes]:
    """Run the command to its end on a terminal. Return its exit code, and all that the terminal got."""
    started = on_terminal(command(*words, without=without), cwd=cwd, env=clean_environment(**environ))
    with started as (running, terminal):
        shown = read_terminal(terminal)
        return running.wait(timeout=PATIENCE_S), shown


def files_in(directory: Path) -> dict[str, bytes]:
    """The content of each file, by its path. Directories are left out, and hidden files are not."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


class Scripted:
    """A service on a port of its own. It reads each request to its end, and answers with the next of its answers.

    The last answer is given again and again. ``requests``: what was received, with the decoded heads.
    """

    def __init__(self, *answers: bytes | Iterable[bytes] | Answering) -> None:
        self.requests: list[bytes] = []
        self._answers = list(answers)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        # Each connection has a thread, because a client may open the next connection before it closes the last one.
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_S)
        with connection, contextlib.suppress(ConnectionError, TimeoutError, BrokenPipeError):
            self.requests.append(read_request(connection))
            answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
            if callable(answer):
                answer(connection)
            else:
                for piece in [answer] if isinstance(answer, bytes) else answer:
                    connection.sendall(piece)

    def close(self) -> None:
        # A thread in accept() does not notice close() alone.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=PATIENCE_S)


@contextlib.contextmanager
def scripted(*answers: bytes | Iterable[bytes] | Answering) -> Iterator[Scripted]:
    service = Scripted(*answers)
    try:
        yield service
    finally:
        service.close()


def read_request(connection: socket.socket) -> bytes:
    """Read one request with its whole body."""
    data = bytearray()
    while b"\r\n\r\n" not in data:
        data += (piece := connection.recv(65536))
        if not piece:
            return bytes(data)
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)\r\n", data)
    wanted = data.index(b"\r\n\r\n") + 4 + (int(length[1]) if length else 0)
    while len(data) < wanted and (piece := connection.recv(65536)):
        data += piece
    return bytes(data)


def answer(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    """Return an answer. Underscores in names become hyphens. ``Content_Length`` replaces the real length."""
    lines = [f"HTTP/1.1 {status}"]
    headers = {"Content_Length": str(len(body)), **headers}
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def stderr_of(done: Done) -> str:
    return done.stderr.decode()
