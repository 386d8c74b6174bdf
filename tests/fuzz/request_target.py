"""The fuzz target ``request``: the bytes of a connection, for the reader of requests."""

from __future__ import annotations

from typing import NamedTuple

from watchdog.http.request_body import MalformedBody, RequestBody
from watchdog.http.request_head import Head, HeadTooLarge, MalformedRequest
from watchdog.http.request_reader import RequestReader


class _Read(NamedTuple):
    """A request that was read: its head, and its body if it is complete."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    refused: str | None
    body: bytes | None


def check_request(data: bytes) -> None:
    """Bytes of a connection give the same requests and the same error, wherever the network cuts them."""
    size, stream = 1 + data[:1].ljust(1, b"a")[0] % 16, data[1:]
    whole, error = _read([stream])
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert _read(pieces) == (whole, error)
    for read in whole:
        assert read.method
        assert read.method.isascii()
        assert read.target
        for name, value in read.headers:
            assert name
            assert not {"\r", "\n", "\0"} & {*name, *value}


def _read(pieces: list[bytes]) -> tuple[list[_Read], type[Exception] | None]:
    heads: list[Head] = []
    bodies: list[RequestBody] = []

    def begin(head: Head) -> RequestBody:
        heads.append(head)
        bodies.append(RequestBody(lambda: None))
        return bodies[-1]

    reader, error = RequestReader(begin), None
    try:
        for piece in pieces:
            rest = piece
            while rest:
                rest = reader.feed(rest)
                if not reader.is_complete:
                    assert not rest, "bytes of an incomplete request were given back"
                    break
                if heads[-1].refused is not None or heads[-1].method == "CONNECT":
                    raise _EndOfConnection
                reader = RequestReader(begin)
    except (MalformedRequest, HeadTooLarge, MalformedBody, _EndOfConnection) as raised:
        error = type(raised)
    return [
        _Read(
            head.method,
            head.target,
            list(head.headers.items()),
            head.refused,
            body.read_nowait() if body.is_complete else None,
        )
        for head, body in zip(heads, bodies, strict=True)
    ], error


class _EndOfConnection(Exception):
    """After such a request, the connection reads nothing."""
