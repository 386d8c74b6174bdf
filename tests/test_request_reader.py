"""Reading requests from the bytes of a connection, however the network cuts them."""

from __future__ import annotations

import contextlib
import gc
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchdog.http.request_body import MalformedBody, RequestBody
from watchdog.http.request_head import MOST_HEAD_BYTES, Head, HeadTooLarge, MalformedRequest
from watchdog.http.request_reader import RequestReader

PLAIN = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\nA:\r\n\r\n"
WITH_LENGTH = b"POST /l HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n\r\n\r\n456789"
CHUNKED = (
    b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"6\r\na\r\n\r\nb\r\n1;x=y\r\nc\r\n0\r\nTrailer: t\r\n\r\n"
)
UPGRADE = b"POST /u HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi"
UPGRADE_CHUNKED = UPGRADE.replace(
    b"Content-Length: 2\r\n\r\nhi", b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
)
BLANK_LINES = b"\r\n\r\n" + PLAIN
# Each request with its target and its body.
REQUESTS = {
    PLAIN: ("/a?b=c", b""),
    WITH_LENGTH: ("/l", b"\r\n\r\n456789"),
    CHUNKED: ("/c", b"a\r\n\r\nbc"),
    UPGRADE: ("/u", b"hi"),
    UPGRADE_CHUNKED: ("/u", b"hi"),
    BLANK_LINES: ("/a?b=c", b""),
}


def read(pieces: list[bytes]) -> tuple[list[tuple[str, bytes]], bytes]:
    """Read all requests as a connection does. Return their targets and bodies, and the bytes of an incomplete one."""
    found: list[tuple[str, RequestBody]] = []

    def begin(head: Head) -> RequestBody:
        found.append((head.target, RequestBody(lambda: None)))
        return found[-1][1]

    reader = RequestReader(begin)
    unread = b""
    for piece in pieces:
        unread = piece
        while unread:
            unread = reader.feed(unread)
            if not reader.is_complete:
                assert not unread
                break
            reader = RequestReader(begin)
    return [(target, body.read_nowait()) for target, body in found], unread


def cut_at(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


@given(st.lists(st.sampled_from(list(REQUESTS)), min_size=1, max_size=5), st.lists(st.integers(0, 10_000), max_size=12))
def test_requests_in_a_row_are_read_whole_wherever_they_are_cut(requests: list[bytes], cuts: list[int]) -> None:
    found, unread = read(cut_at(b"".join(requests), cuts))
    assert found == [REQUESTS[request] for request in requests]
    assert unread == b""


@pytest.mark.parametrize("request_", REQUESTS)
def test_bytes_after_a_request_are_given_back(request_: bytes) -> None:
    bodies: list[RequestBody] = []

    def begin(head: Head) -> RequestBody:
        bodies.append(RequestBody(lambda: None))
        return bodies[-1]

    reader = RequestReader(begin)
    rest = reader.feed(request_ + b"GET /next")
    if request_ == BLANK_LINES:
        assert bodies
    assert rest == b"GET /next"
    assert reader.is_complete
    assert bodies[-1].is_complete


@given(st.binary(max_size=200), st.lists(st.integers(0, 300), max_size=5), st.booleans())
def test_any_bytes_are_read_or_refused(data: bytes, cuts: list[int], is_body: bool) -> None:
    start = CHUNKED.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if is_body else b""
    reader = RequestReader(lambda head: RequestBody(lambda: None))
    with contextlib.suppress(MalformedRequest, HeadTooLarge, MalformedBody):
        for piece in cut_at(start + data, cuts):
            if reader.feed(piece):
                break


@pytest.mark.parametrize("cut", [1, 1000, MOST_HEAD_BYTES, 1 << 20])
def test_a_body_in_the_same_bytes_does_not_count_as_head(cut: int) -> None:
    body = bytes(3 * MOST_HEAD_BYTES)
    data = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    found, _ = read([data[at : at + cut] for at in range(0, len(data), cut)])
    assert found == [("/", body)]


def test_a_head_that_ends_in_bare_line_feeds_is_refused() -> None:
    reader = RequestReader(lambda head: RequestBody(lambda: None))
    with pytest.raises(MalformedRequest):
        reader.feed(b"GET / HTTP/1.1\nHost: x\n\n")


def test_spaces_around_a_header_are_not_a_part_of_its_value() -> None:
    heads: list[Head] = []

    def begin(head: Head) -> RequestBody:
        heads.append(head)
        return RequestBody(lambda: None)

    RequestReader(begin).feed(b"GET / HTTP/1.1\r\nHost: \t x \t\r\nA: b  c \r\nB: \t \r\n\r\n")
    assert list(heads[0].headers.items()) == [("Host", "x"), ("A", "b  c"), ("B", "")]


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_request_that_was_read_leaves_no_cycle_of_references(request_: bytes) -> None:
    gc.collect()
    gc.disable()
    try:
        RequestReader(lambda head: RequestBody(lambda: None)).feed(request_)
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("request_", [PLAIN[:-3], WITH_LENGTH[:-3], CHUNKED[:-3]], ids=["head", "length", "chunks"])
def test_a_request_that_was_not_read_to_its_end_leaves_no_cycle_of_references(request_: bytes) -> None:
    gc.collect()
    gc.disable()
    try:
        reader = RequestReader(lambda head: RequestBody(lambda: None))
        reader.feed(request_)
        reader.close()
        del reader
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_memory_of_many_small_pieces_of_a_body_is_bounded() -> None:
    body = RequestBody(lambda: None)
    while body.has_room:
        body.feed(b"x")
    assert body.total_bytes < 4096
