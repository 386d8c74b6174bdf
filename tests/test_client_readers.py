"""Texts of a service, read piece by piece: events that are cut anywhere, and names that lead anywhere."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from watchdog.client.event_stream import EventReader
from watchdog.client.names import parts_of
from watchdog.errors import AnswerBroken

LINES = st.lists(
    st.sampled_from([b"event: log", b"data: {}", b"data:x", b"", b": note", b"id: 7", b"data", b"\xff: \xff"])
)


@given(LINES, st.lists(st.integers(0, 200)), st.sampled_from([b"\n", b"\r\n"]))
def test_events_do_not_depend_on_the_pieces(lines: list[bytes], cuts: list[int], end: bytes) -> None:
    stream = b"".join(line + end for line in lines)
    whole = list(EventReader().feed(stream))
    reader, found, at = EventReader(), [], 0
    for cut in [*sorted(cuts), len(stream)]:
        found += list(reader.feed(stream[at:cut]))
        at = max(at, cut)
    assert found == whole


@given(st.binary(max_size=1000), st.integers(0, 1000))
def test_any_bytes_are_read(data: bytes, cut: int) -> None:
    reader = EventReader()
    for piece in (data[:cut], data[cut:]):
        for name, value in reader.feed(piece):
            assert isinstance(name, str)
            assert isinstance(value, bytes)


@given(st.lists(st.sampled_from(["..", ".", "/", "a", "\\", "\0", "//", "", "\udcff"]), max_size=8).map("".join))
def test_a_name_that_is_accepted_stays_below_the_directory(name: str) -> None:
    try:
        parts = parts_of(name)
    except AnswerBroken:
        return
    path = os.path.normpath(os.path.join("/directory", *parts))
    assert path.startswith("/directory/")
    assert path == f"/directory/{name}"
