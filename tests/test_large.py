"""Large bodies, up to a gigabyte, through the server: byte for byte, in constant memory, while health is answered."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import random
import threading
import zlib
from collections.abc import Iterator
from typing import Self

import pytest
from running_server import RunningServer, StartServer

BLOCK = random.Random(7).randbytes(3 * 1024 * 1024)
# Numbers of blocks. They make 258 MiB, which is more memory than the server may use, and 1,026 MiB.
COUNTS = [86, pytest.param(342, marks=pytest.mark.nightly)]
KEEP = 'mv "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/out"'


def send(
    connection: http.client.HTTPConnection, path: str, headers: dict[str, str], block: bytes, count: int
) -> http.client.HTTPResponse:
    connection.putrequest("POST", path)
    for name, value in {"Content-Length": str(len(block) * count), **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    for _ in range(count):
        connection.send(block)
    return connection.getresponse()


def decoded(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield the pieces of a base64 answer. Each has a multiple of 4 characters."""
    while piece := response.read(4 * 1024 * 1024):
        yield base64.b64decode(piece.strip())


def raw(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while piece := response.read(4 * 1024 * 1024):
        yield piece


class Prober:
    """Asks for health again and again, and counts the answers."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._end = threading.Event()
        self.statuses: list[int] = []
        self._thread = threading.Thread(target=self._probe)

    def _probe(self) -> None:
        while not self._end.wait(0.02):
            self.statuses.append(self._server.call(None, "/_/health", "GET").status)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("form", ["base64", "raw"])
@pytest.mark.parametrize("count", COUNTS)
def test_a_large_body_in_and_out(start_server: StartServer, form: str, count: int) -> None:
    server = start_server(KEEP, WATCHDOG_HEALTHCHECK_INTERVAL="0")
    block = base64.b64encode(BLOCK) if form == "base64" else BLOCK
    headers = {} if form == "base64" else {"Content-Type": "image/x"}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    with Prober(server) as prober, contextlib.closing(connection):
        response = send(connection, f"/?output={form}", headers, block, count)
        assert response.status == 200
        checksum, size = hashlib.sha256(), 0
        for piece in decoded(response) if form == "base64" else raw(response):
            checksum.update(piece)
            size += len(piece)
    expected = hashlib.sha256()
    for _ in range(count):
        expected.update(BLOCK)
    assert (size, checksum.digest()) == (len(BLOCK) * count, expected.digest())
    assert server.memory_mib("VmHWM") < 96
    assert set(prober.statuses) == {200}
    assert server.stop() == 0
    assert server.leftovers() == []


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("mib", [256, pytest.param(1024, marks=pytest.mark.nightly)])
def test_a_large_gzip_stream(start_server: StartServer, mib: int) -> None:
    """A body that is a thousand times smaller than its content is written in bounded pieces."""
    server = start_server('stat -c %s "$INPUT_FILE_PATH"')
    squeezer = zlib.compressobj(wbits=31)
    body = b"".join(squeezer.compress(bytes(1 << 20)) for _ in range(mib)) + squeezer.flush()
    headers = {"Content-Type": "image/x", "Content-Encoding": "gzip"}
    assert server.call(body, headers=headers).body == b"%d\n" % (mib << 20)
    assert server.memory_mib("VmHWM") < 96
