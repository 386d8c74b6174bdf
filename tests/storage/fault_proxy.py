"""A proxy before a real server that does what networks and servers do at bad times."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

_PIECE_BYTES = 16 * 1024
_ESTABLISHED = 1  # linux/tcp_states.h


@dataclass(frozen=True)
class Seen:
    """One request as it came; names of headers in lower case."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Faults:
    """What goes wrong with the first ``times`` requests that ``applies`` to; all others pass.

    ``status``: answered in the server's place. ``is_silent``: the request is taken, and nothing answered. Positions in
    bodies, in bytes: ``cut_…``: the connection ends there; ``stall_…``: nothing goes on from there. ``bytes_per_s``:
    the speed of bodies, for all requests.
    """

    times: int = 1_000_000
    applies: Callable[[Seen], bool] = lambda seen: True
    status: int | None = None
    is_silent: bool = False
    cut_request_at: int | None = None
    cut_response_at: int | None = None
    stall_request_at: int | None = None
    stall_response_at: int | None = None
    bytes_per_s: int | None = None


class FaultProxy:
    """``requests``: all that came. ``happened``: how often a fault did. ``standing_still``: a silence has begun."""

    def __init__(self, upstream_port: int, faults: Faults) -> None:
        self.faults = faults
        self.requests: list[Seen] = []
        self.happened = 0
        self.standing_still = asyncio.Event()
        self.endpoint = ""
        self._may_go_on = asyncio.Event()
        self._upstream_port = upstream_port

    def count(self, method: str) -> int:
        return sum(seen.method == method for seen in self.requests)

    def go_on(self) -> None:
        """End the silence, as if nothing had been."""
        self.standing_still.clear()
        self._may_go_on.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client, with one of its own to the server."""
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while head := await _head(reader):
                method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
                seen = Seen(method, path, _headers(head))
                self.requests.append(seen)
                faults = self._faults_for(seen)
                if faults.is_silent:
                    await self._stand_still(writer)
                if faults.status is not None:
                    await _answer(reader, writer, seen, faults.status)
                    return
                upstream = upstream or await asyncio.open_connection("127.0.0.1", self._upstream_port)
                await self._pass_on(reader, writer, *upstream, head, seen, faults)
        except (ConnectionError, asyncio.IncompleteReadError, _Cut):
            pass
        finally:
            writer.transport.abort()
            if upstream is not None:
                upstream[1].transport.abort()

    def _faults_for(self, seen: Seen) -> Faults:
        if self.happened < self.faults.times and self.faults.applies(seen):
            self.happened += 1
            return self.faults
        return Faults(bytes_per_s=self.faults.bytes_per_s)

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        from_server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
        head: bytes,
        seen: Seen,
        faults: Faults,
    ) -> None:
        """A request and its answer. Whichever is cut takes the other with it."""

        async def request() -> None:
            to_server.write(head)
            pieces = _body(reader, seen.headers)
            stall = functools.partial(self._stand_still, writer)
            await _move(
                pieces, to_server, faults.bytes_per_s, (faults.cut_request_at, _cut), (faults.stall_request_at, stall)
            )

        async def response() -> None:
            while answer := await _head(from_server):
                writer.write(answer)
                status = int(answer.split(b" ", 2)[1])
                if status >= 200:
                    break
            if not answer:
                raise _Cut
            if seen.method != "HEAD" and status not in (204, 304):
                pieces = _body(from_server, _headers(answer))
                stall = functools.partial(self._stand_still, writer)
                await _move(
                    pieces,
                    writer,
                    faults.bytes_per_s,
                    (faults.cut_response_at, _cut),
                    (faults.stall_response_at, stall),
                )
            await writer.drain()

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(request())
                group.create_task(response())
        except* (ConnectionError, asyncio.IncompleteReadError, _Cut):
            raise _Cut from None

    async def _stand_still(self, client: asyncio.StreamWriter) -> None:
        """Do nothing until it may go on, or the client has gone.

        What it sends is not read, so that its end must be asked for.
        """
        self.standing_still.set()
        while not self._may_go_on.is_set():
            if client.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED:
                raise _Cut
            await asyncio.sleep(0.01)
        self._may_go_on.clear()


class _Cut(Exception):
    pass


async def _cut() -> None:
    raise _Cut


async def _move(
    pieces: AsyncIterator[bytes],
    writer: asyncio.StreamWriter,
    bytes_per_s: int | None,
    *ends: tuple[int | None, Callable[[], Awaitable[None]]],
) -> None:
    moved_bytes = 0
    began_s = time.monotonic()
    async for piece in pieces:
        for end, finish in ends:
            if end is not None and moved_bytes <= end < moved_bytes + len(piece):
                before, piece = piece[: end - moved_bytes], piece[end - moved_bytes :]
                writer.write(before)
                await writer.drain()
                moved_bytes = end
                await finish()
        writer.write(piece)
        await writer.drain()
        moved_bytes += len(piece)
        if bytes_per_s:
            # By the clock: were it a pause for each piece, a busy machine would make the link slower than it says, and
            # what is on its way unseen, after the client has sent all, would look like silence.
            await asyncio.sleep(began_s + moved_bytes / bytes_per_s - time.monotonic())


@contextlib.asynccontextmanager
async def fault_proxy(endpoint: str, **faults: Any) -> AsyncIterator[FaultProxy]:
    """A proxy before the server at ``http://127.0.0.1:PORT[/path]``; its own ``endpoint`` has the same path."""
    host, _, path = endpoint.removeprefix("http://").partition("/")
    proxy = FaultProxy(int(host.rpartition(":")[2]), Faults(**faults))
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(proxy.serve(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    listener = socket.create_server(("127.0.0.1", 0))
    # Little is taken in ahead, so that clients see how slow the link is.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE_BYTES)
    server = await asyncio.start_server(connected, sock=listener, limit=_PIECE_BYTES)
    proxy.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{'/' + path if path else ''}"
    try:
        yield proxy
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _head(reader: asyncio.StreamReader) -> bytes:
    """A start line and headers; nothing at the end of the connection."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name}


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """As it is on the wire, chunks with their sizes."""
    if headers.get("transfer-encoding") == "chunked":
        while True:
            line = await reader.readuntil(b"\r\n")
            size_bytes = int(line.split(b";")[0], 16)
            yield line
            left_bytes = size_bytes + 2
            while left_bytes:
                piece = await reader.readexactly(min(left_bytes, _PIECE_BYTES))
                left_bytes -= len(piece)
                yield piece
            if not size_bytes:
                return
    left_bytes = int(headers.get("content-length", 0))
    while left_bytes:
        piece = await reader.read(min(left_bytes, _PIECE_BYTES))
        if not piece:
            raise _Cut
        left_bytes -= len(piece)
        yield piece


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Seen, status: int) -> None:
    if "expect" not in seen.headers:
        async for _ in _body(reader, seen.headers):
            pass
    writer.write(f"HTTP/1.1 {status} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    await writer.drain()
    writer.close()
    await writer.wait_closed()
