"""A proxy in front of a real server, with the faults of networks and servers."""

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
    """One request as it arrived. The names of headers are in lower case."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Faults:
    """The faults of the first ``times`` requests for which ``applies`` is true. All others pass.

    ``status``: the proxy answers with it in place of the server. ``is_silent``: the proxy reads the request and answers
    nothing. ``is_unheard``: the server does what was asked, but its answer is lost with the connection. ``cut_…``: the
    connection ends at this byte of the body. ``stall_…``: nothing is passed on from this byte on. ``bytes_per_s``: the
    speed of bodies, for all requests.
    """

    times: int = 1_000_000
    applies: Callable[[Seen], bool] = lambda seen: True
    status: int | None = None
    is_silent: bool = False
    is_unheard: bool = False
    cut_request_at: int | None = None
    cut_response_at: int | None = None
    stall_request_at: int | None = None
    stall_response_at: int | None = None
    bytes_per_s: int | None = None


class FaultProxy:
    """``requests``: all requests. ``happened``: the number of faults. ``standing_still``: a silence has begun."""

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
        """End the silence, and continue as if there had been none."""
        self.standing_still.clear()
        self._may_go_on.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection of a client, with a separate connection to the server."""
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
        """Pass on a request and its answer. If one of them is cut, the other one ends, too."""

        async def request() -> None:
            to_server.write(head)
            pieces = _body(reader, seen.headers)
            stall = functools.partial(self._stand_still, writer)
            await _move(
                pieces, to_server, faults.bytes_per_s, (faults.cut_request_at, _cut), (faults.stall_request_at, stall)
            )

        async def response() -> None:
            while answer := await _head(from_server):
                if faults.is_unheard:
                    raise _Cut
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
        """Do nothing until :meth:`go_on` is called, or the client has disconnected.

        The proxy does not read from the client, so it must ask the kernel for the end of the connection.
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
            # Compute the pause from the clock. With a fixed pause for each piece, the link would be too slow on a busy
            # machine. Bytes still on their way after the client has sent all would then look like silence.
            await asyncio.sleep(began_s + moved_bytes / bytes_per_s - time.monotonic())


@contextlib.asynccontextmanager
async def fault_proxy(endpoint: str, **faults: Any) -> AsyncIterator[FaultProxy]:
    """Run a proxy before the server at ``http://127.0.0.1:PORT[/path]``. Its own ``endpoint`` has the same path."""
    host, _, path = endpoint.removeprefix("http://").partition("/")
    proxy = FaultProxy(int(host.rpartition(":")[2]), Faults(**faults))
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(proxy.serve(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    listener = socket.create_server(("127.0.0.1", 0))
    # A small buffer, so that clients notice how slow the link is.
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
    """Return a start line and headers; nothing at the end of the connection."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name}


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """Yield the body as it is on the wire: chunks have their sizes."""
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
