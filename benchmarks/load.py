"""Call servers: with one lean caller, with the many callers of wrk, with large bodies, and with probes of health.

Every answer is checked.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from contenders import ENVIRONMENT, PATH, PATIENCE_S, Job, Server

HERE = Path(__file__).resolve().parent


@dataclass
class Load:
    """The results of callers: numbers of calls and of wrong answers, seconds of all calls, seconds of each if known."""

    calls: int = 0
    elapsed_s: float = 0.0
    wrong: int = 0
    errors: int = 0
    times_s: list[float] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        return self.calls / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def not_right(self) -> int:
        return self.wrong + self.errors


class Caller:
    """A caller with one keep-alive connection. It is fast, because it has the request and the right answer as bytes."""

    def __init__(self, server: Server, job: Job | None = None) -> None:
        job = job or server.job
        self._request = job.request()
        self._end = b"\r\n\r\n" + job.expected
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(self) -> bool:
        """Call once, and return whether the answer is right."""
        self._socket.sendall(self._request)
        answer = self._socket.recv(65536)
        while not answer.endswith(self._end) and not _is_whole(answer):
            piece = self._socket.recv(65536)
            if not piece:
                return False
            answer += piece
        return answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(self._end)

    def calls(self, count: int) -> Load:
        load = Load(calls=count)
        began = time.perf_counter()
        for _ in range(count):
            started = time.perf_counter()
            is_right = self.call()
            load.times_s.append(time.perf_counter() - started)
            load.wrong += not is_right
        load.elapsed_s = time.perf_counter() - began
        return load

    def close(self) -> None:
        self._socket.close()


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return bool(end) and length is not None and len(body) >= int(length[1])


def has_wrk() -> bool:
    return shutil.which("wrk", path=PATH) is not None


def many(server: Server, callers: int, seconds: int) -> Load:
    """Let a number of callers call for some seconds. The callers are those of wrk, or threads if wrk is missing."""
    if not has_wrk():
        return _threads(server, callers, seconds)
    job = server.job
    url = f"http://127.0.0.1:{server.port}{job.path}"
    command = ["wrk", "-t1", f"-c{callers}", f"-d{seconds}s", "--timeout=60s", "-s", str(HERE / "call.lua"), url]
    command += ["--", os.fsdecode(job.body), os.fsdecode(job.expected), job.content_type]
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=seconds + PATIENCE_S, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"wrk failed: {done.stdout} {done.stderr}")
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    return Load(summary["calls"], summary["elapsed_s"], summary["wrong"], summary["errors"])


def _threads(server: Server, callers: int, seconds: float) -> Load:
    load = Load()
    began = time.perf_counter()

    def work() -> None:
        with contextlib.closing(Caller(server)) as caller:
            while time.perf_counter() < began + seconds:
                is_right = caller.call()
                with lock:
                    load.calls += 1
                    load.wrong += not is_right

    lock = threading.Lock()
    threads = [threading.Thread(target=work) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.elapsed_s = time.perf_counter() - began
    return load


def floor(script: Path, directory: Path, count: int, in_flight: int) -> Load:
    """Run ``floor.py`` in a process of its own."""
    directory.mkdir(exist_ok=True)
    command = [sys.executable, "-I", "-S", str(HERE / "floor.py"), str(script), str(directory)]
    command += [str(count), str(in_flight)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=True)
    summary = json.loads(done.stdout)
    return Load(count, summary["elapsed_s"], summary["wrong"], summary["errors"], summary["times_s"])


# ---- big bodies

_RAW_BLOCK = random.Random(7).randbytes(192 * 1024)
_BASE64_BLOCK = base64.b64encode(_RAW_BLOCK)


@dataclass(frozen=True)
class Content:
    """Random bytes of a given size. They repeat every 192 KiB, so that no program has to keep all of them."""

    size_bytes: int

    @property
    def base64_bytes(self) -> int:
        return (self.size_bytes + 2) // 3 * 4

    def raw(self) -> Iterator[bytes]:
        yield from itertools.repeat(_RAW_BLOCK, self.size_bytes // len(_RAW_BLOCK))
        yield _RAW_BLOCK[: self.size_bytes % len(_RAW_BLOCK)]

    def base64(self) -> Iterator[bytes]:
        yield from itertools.repeat(_BASE64_BLOCK, self.size_bytes // len(_RAW_BLOCK))
        yield base64.b64encode(_RAW_BLOCK[: self.size_bytes % len(_RAW_BLOCK)])

    def is_in(self, path: Path) -> bool:
        """Return whether the file has exactly these bytes."""
        with open(path, "rb") as file:
            return all(file.read(len(piece)) == piece for piece in self.raw()) and not file.read(1)


def exchange(server: Server, sent: Content | None, expected: Iterable[bytes]) -> tuple[float, bool]:
    """Send a body in base64 and read the answer. Return the seconds that this took, and whether the answer was right.

    Args:
        sent: the body before its encoding; None for an empty body.
        expected: the answer's body, in pieces.
    """
    length = 0 if sent is None else sent.base64_bytes
    # The server closes the connection, so that an answer that is too short or too long is noticed.
    head = "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    head += f"Content-Type: text/plain\r\nContent-Length: {length}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
        # Timeouts of the kernel, not of Python. Python's would make the socket non-blocking, and MSG_WAITALL has no
        # effect on such a socket.
        connection.settimeout(None)
        for bound in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connection.setsockopt(socket.SOL_SOCKET, bound, struct.pack("ll", int(PATIENCE_S), 0))
        started = time.perf_counter()
        connection.sendall(head.encode())
        for piece in () if sent is None else sent.base64():
            connection.sendall(piece)
        is_right = _head(connection).startswith(b"HTTP/1.1 200 ")
        if is_right:
            buffer = bytearray(len(_BASE64_BLOCK))
            is_right = all(_is_next(connection, piece, buffer) for piece in expected)
        took_s = time.perf_counter() - started
        return took_s, is_right and not connection.recv(1)


def at_once(server: Server, count: int, content: Content) -> int:
    """Let ``count`` callers send the content at the same time. Return how many of them did not get the content back."""
    results: list[bool] = []

    def work() -> None:
        results.append(exchange(server, content, itertools.chain(content.base64(), [b"\n"]))[1])

    callers = [threading.Thread(target=work) for _ in range(count)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return count - sum(results)


def _head(connection: socket.socket) -> bytes:
    """Read the head of the answer, and no byte after it."""
    while True:
        seen = connection.recv(65536, socket.MSG_PEEK)
        end = seen.find(b"\r\n\r\n")
        if end >= 0:
            return connection.recv(end + 4)
        if not seen or len(seen) == 65536:
            return b""


def _is_next(connection: socket.socket, piece: bytes, buffer: bytearray) -> bool:
    """Read as many bytes as ``piece`` has, and return whether they are equal to it.

    The bytes go to ``buffer``, which is reused because new memory would take longer.
    """
    got = 0
    while got < len(piece):
        more = connection.recv_into(memoryview(buffer)[got : len(piece)], 0, socket.MSG_WAITALL)
        if not more:
            return False
        got += more
    return (buffer if len(piece) == len(buffer) else buffer[: len(piece)]) == piece


# ---- from outside


class Prober:
    """A process that runs ``prober.py`` until the context ends. Then ``found`` has the results."""

    def __init__(self, server: Server) -> None:
        self.found: dict[str, float] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(HERE / "prober.py"), str(server.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
        )

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        output, _nothing = self._process.communicate(timeout=PATIENCE_S)
        if self._process.returncode == 0:
            self.found = json.loads(output)
