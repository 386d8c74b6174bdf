"""Send one call over a socket, and receive its answer to the end."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
from collections.abc import Callable, Mapping

from running_server import Answer


class Lost(Exception):
    """A call got no answer (``none``), or only a part of it (``cut``)."""

    def __init__(self, how: str, detail: str) -> None:
        super().__init__(detail)
        self.how = how


def head(
    call_id: str,
    query: str,
    headers: Mapping[str, str],
    length: int | None,
) -> bytes:
    """Return the head of a request. Without a length, the body comes in chunks."""
    lines = [f"POST /?{query} HTTP/1.1", "Host: soak", f"X-Call-Id: {call_id}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += ["Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}", "", ""]
    return "\r\n".join(lines).encode()


def send(sock: socket.socket, data: bytes) -> None:
    """Send bytes. Ignore a closed connection, because the server may have answered already."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(data)


def receive(sock: socket.socket, method: str = "POST", pause: Callable[[], None] | None = None) -> Answer:
    """Return the answer. Raises Lost if it does not come, or is not complete."""
    response = http.client.HTTPResponse(sock, method=method)
    with contextlib.closing(response):
        try:
            response.begin()
        except (http.client.HTTPException, OSError) as error:
            raise Lost("none", repr(error)) from error
        pieces = []
        try:
            while piece := response.read(65536):
                pieces.append(piece)
                if pause is not None:
                    pause()
        except (http.client.HTTPException, OSError) as error:
            raise Lost("cut", f"status {response.status}, {len(b''.join(pieces))} bytes, then {error!r}") from error
        body = b"".join(pieces)
        if (announced := response.headers["Content-Length"]) != str(len(body)):
            raise Lost("cut", f"status {response.status}, {len(body)} bytes of {announced}")
        return Answer(response.status, response.headers, body)


def hang_up(sock: socket.socket, *, hard: bool) -> None:
    if hard:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
