"""Forms of key=value pairs: read in any pieces, in constant memory, bounded while they come in."""

from __future__ import annotations

import json
import os
import random
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running_server import StartServer, problem

from watchdog.errors import BadInput, InputTooLarge
from watchdog.input import form
from watchdog.input.detect import BodyHints
from watchdog.input.receive import Receiver
from watchdog.workspace.held_input import HeldInput

FORM = "application/x-www-form-urlencoded"
MIB = 1024 * 1024


def receive(directory: Path, pieces: Iterable[bytes], max_size_bytes: int = 0) -> bytes:
    held = HeldInput(str(directory))
    receiver = Receiver(BodyHints(content_type=FORM, file_name="form"), held, max_size_bytes)
    try:
        for piece in pieces:
            receiver.feed(piece)
        receiver.finish()
        assert os.listdir(directory) == []
        return held.read()
    finally:
        receiver.close()
        held.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.lists(
        st.tuples(st.sampled_from(["a", "b", "\u00e9", "x y"]), st.text(max_size=40)), min_size=1, max_size=9
    ),
    piece_bytes=st.integers(1, 50),
    step_bytes=st.integers(3, 20),
    in_memory_bytes=st.sampled_from([0, 30, 1000]),
)
def test_form_in_any_pieces_becomes_the_json_that_it_means(
    tmp_path: Path, fields: list[tuple[str, str]], piece_bytes: int, step_bytes: int, in_memory_bytes: int
) -> None:
    text = "&".join(f"{quote_plus(key)}={quote_plus(value)}" for key, value in [("first", "1"), *fields]).encode()
    expected: dict[str, list[str]] = {"first": ["1"]}
    for key, value in fields:
        expected.setdefault(key, []).append(value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(form, "_STEP_BYTES", step_bytes)
        patch.setattr(form, "_IN_MEMORY_BYTES", in_memory_bytes)
        data = receive(tmp_path, (text[at : at + piece_bytes] for at in range(0, len(text), piece_bytes)))
    assert json.loads(data) == {key: each if len(each) > 1 else each[0] for key, each in expected.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "piece", "end", "value"),
    [
        (b"text=", b"%C3%A9+%2B" * 6_500, b"", "\u00e9 +" * 6_500),
        (b"text=", b"a" * 65_537, b" \n" * 100_000, "a" * 65_537),
        (b"text=", b" " * 65_537, b"x", " " * 65_537),
    ],
)
def test_large_field_takes_constant_memory(tmp_path: Path, start: bytes, piece: bytes, end: bytes, value: str) -> None:
    times = 160  # 4 MB and more, which is twice the memory that it may use
    tracemalloc.start()
    try:
        held = HeldInput(str(tmp_path))
        receiver = Receiver(BodyHints(content_type=FORM, file_name="form"), held)
        for each in (start, *[piece] * times, end):
            receiver.feed(each)
        receiver.finish()
        receiver.close()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held.read().decode() == '{"text":"' + value * times + end.decode().strip() + '"}'
    held.close()
    assert peak < 2 * MIB


def test_many_large_fields_with_one_key_take_constant_memory(tmp_path: Path) -> None:
    fields = [
        b"%d=" % (number % 100) + random.Random(number).randbytes(4_000).hex().encode() for number in range(2_000)
    ]
    tracemalloc.start()
    try:
        held = HeldInput(str(tmp_path))
        receiver = Receiver(BodyHints(content_type=FORM, file_name="form"), held)
        for field in fields:
            receiver.feed(field + b"&")
        receiver.finish()
        receiver.close()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * MIB
    values = json.loads(held.read())
    held.close()
    assert len(values) == 100
    assert values["7"][3] == fields[307].decode().partition("=")[2]


@pytest.mark.parametrize("piece", [b"a" * 1000, b"%61" * 1000])
def test_form_over_max_input_size_is_refused_before_its_end(tmp_path: Path, piece: bytes) -> None:
    held = HeldInput(str(tmp_path))
    receiver = Receiver(BodyHints(content_type=FORM), held, 100_000)
    try:
        receiver.feed(b"name=")
        for _ in range(99):
            receiver.feed(piece)
        with pytest.raises(InputTooLarge, match="over 100000 bytes"):
            receiver.feed(piece * 2)
    finally:
        receiver.close()
        held.close()


def test_form_that_is_decoded_to_max_input_size_is_accepted(tmp_path: Path) -> None:
    assert receive(tmp_path, [b"n=" + b"%61" * 1000], 1008) == b'{"n":"' + b"a" * 1000 + b'"}'
    with pytest.raises(InputTooLarge):
        receive(tmp_path, [b"n=" + b"%61" * 1000], 1007)


def test_armour_that_is_cut_in_two_is_found(tmp_path: Path) -> None:
    text = b"pem=" + b"x" * 5000 + b"-----BEGIN CERTIFICATE-----"
    for cut in range(len(text) - 30, len(text)):
        with pytest.raises(BadInput, match=r"the armour of PEM .* is at offset 5004"):
            receive(tmp_path, [text[:cut], text[cut:]])
        for path in tmp_path.iterdir():
            path.unlink()


def test_text_that_is_not_utf_8_is_refused_with_its_field(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not UTF-8: invalid start byte in the text at offset 6 of the body"):
        receive(tmp_path, [b"a=1&b=\xff"])


@pytest.mark.guard("form-size")
def test_form_without_end_is_answered_413(start_server: StartServer) -> None:
    """It is refused while it comes in, and it is never whole in memory or on the disk."""
    server = start_server("true", WATCHDOG_MAX_INPUT_SIZE="1Mi", WATCHDOG_READ_TIMEOUT="2")
    head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\nContent-Length: 100000000\r\n\r\nname="
    with server.connect() as sock:
        sock.sendall(head.encode() + b"x" * (20 * MIB))
        assert sock.recv(20).startswith(b"HTTP/1.1 413 ")


def test_forms_leave_nothing_behind(start_server: StartServer) -> None:
    server = start_server('cat "$INPUT_FILE_PATH"')
    body = b"name=" + b"x" * MIB
    assert server.call(body, headers={"Content-Type": FORM}).body == b'{"name":"' + b"x" * MIB + b'"}'
    descriptors = server.descriptors_at_rest()
    for _ in range(20):
        assert server.call(body, headers={"Content-Type": FORM}).status == 200
        problem(server.call(body + b"&\xff", headers={"Content-Type": FORM}), 400)
    assert server.descriptors_at_rest() == descriptors
