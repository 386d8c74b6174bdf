"""The strict base64 reader, compared with a reference: it accepts the texts of encoders, and nothing else."""

from __future__ import annotations

import base64
import binascii
import itertools
import random
import re
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from watchdog.errors import BadInput
from watchdog.http.openapi.request import BASE64_PATTERNS
from watchdog.system.base64_reader import Base64Reader, decoded_text

many = settings(max_examples=400)
MIB = 1 << 20


class Decoded:
    """A file in memory."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    def close(self) -> None: ...


def read(pieces: Iterable[bytes], **options: object) -> bytes | str:
    """Return the decoded bytes, or the message of the error."""
    decoded = Decoded()
    reader = Base64Reader(decoded, **options)  # type: ignore[arg-type]
    try:
        for piece in pieces:
            reader.feed(piece)
        reader.finish()
    except BadInput as error:
        return str(error)
    return b"".join(decoded.pieces)


def reference(text: bytes) -> bytes | None:
    """Return the bytes whose base64 is ``text``, in one of its four forms and in lines; None if there are none."""
    lines = [line.strip(b" \t") for line in re.split(rb"\r\n|\r|\n", text)]
    characters = b"".join(lines)
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        standard = characters.translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
        try:
            data = base64.b64decode(standard + b"=" * (-len(standard) % 4), validate=True)
        except binascii.Error:
            continue
        if characters in (encode(data), encode(data).rstrip(b"=")):
            return data
    return None


def cut_at(text: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    return [text[a:b] for a, b in itertools.pairwise(places)]


def lines_of(text: bytes, width: int, line_end: bytes) -> bytes:
    return line_end.join(text[at : at + width] for at in range(0, len(text), width)) if width else text


def offset_in(message: bytes | str) -> int:
    assert isinstance(message, str), f"decoded to {message[:50]!r}"
    found = re.search(r"at offset (\d+)", message)
    assert found, message
    return int(found[1])


# ---- accepted texts


@many
@given(st.lists(st.sampled_from(["QUJD", "Q", "QQ", "g", "+", "/", "-", "_", "=", " ", "\t", "\r", "\n", "!"])))
def test_any_text_is_decoded_as_by_the_reference_wherever_it_is_cut(parts: list[str]) -> None:
    text = "".join(parts).encode()
    expected = reference(text)
    whole = read([text])
    assert whole == expected if expected is not None else isinstance(whole, str)
    for cut in range(len(text) + 1):
        assert read([text[:cut], text[cut:]]) == whole
    assert read(text[at : at + 1] for at in range(len(text))) == whole


@many
@given(
    data=st.binary(max_size=5000),
    encode=st.sampled_from([base64.b64encode, base64.urlsafe_b64encode]),
    padded=st.booleans(),
    width=st.sampled_from([0, 1, 3, 4, 63, 64, 76]),
    line_end=st.sampled_from([b"\n", b"\r\n", b"\r", b" \t\n", b"\n   ", b"\r\n\n \r"]),
    around=st.sampled_from([b"", b"\n", b" ", b"\t\r\n "]),
    cuts=st.lists(st.integers(0, 9000), max_size=8),
)
def test_what_an_encoder_emits_is_decoded(
    data: bytes,
    encode: Callable[[bytes], bytes],
    padded: bool,
    width: int,
    line_end: bytes,
    around: bytes,
    cuts: list[int],
) -> None:
    text = encode(data) if padded else encode(data).rstrip(b"=")
    text = around + lines_of(text, width, line_end) + around
    assert read(cut_at(text, cuts)) == data == reference(text)


@pytest.mark.parametrize("line_end", [b"", b"\n", b"\r\n", b"\n  "])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("piece_bytes", [1000, 65_536, 300_001, 8 * MIB])
def test_megabytes_are_decoded(line_end: bytes, encode: Callable[[bytes], bytes], piece_bytes: int) -> None:
    data = random.Random(0).randbytes(3 * MIB + 1)
    text = lines_of(encode(data), 76 if line_end else 0, line_end)
    assert read(text[at : at + piece_bytes] for at in range(0, len(text), piece_bytes)) == data


def test_line_ends_blanks_and_the_alphabet_may_show_late() -> None:
    zeros = base64.b64encode(bytes(3 * MIB))
    text = zeros + b"\n" + zeros + b"\r\n" + zeros + b" \t\n  " + zeros + b"__--"
    expected = bytes(12 * MIB) + base64.b64decode(b"//++")
    assert read([text]) == read(text[at : at + 65_536] for at in range(0, len(text), 65_536)) == expected


@many
@given(st.lists(st.sampled_from(["QUJD", "Q", "QQ", "g", "+", "-", "=", " ", "\r", "\n", "!"]), max_size=12))
def test_the_openapi_document_describes_what_is_accepted(parts: list[str]) -> None:
    text = "".join(parts)
    described = any(re.search(pattern.replace("$", r"\Z"), text) for pattern in BASE64_PATTERNS[:2])
    assert described == isinstance(read([text.encode()]), bytes)


# ---- refused texts, and the positions of their faults


@many
@given(
    data=st.binary(min_size=30, max_size=4000),
    url_safe=st.booleans(),
    fault=st.sampled_from([b"!", b"\0", b"\xff", b"\v", b"\f", b",", b" ", b"\t", b"   ", b"other", b"="]),
    at=st.integers(0, 10_000),
    width=st.sampled_from([0, 5, 64, 76]),
    line_end=st.sampled_from([b"\n", b"\r\n", b"\r", b"\n "]),
    cuts=st.lists(st.integers(0, 7000), max_size=6),
)
def test_the_first_fault_is_named_with_its_offset(
    data: bytes, url_safe: bool, fault: bytes, at: int, width: int, line_end: bytes, cuts: list[int]
) -> None:
    # The first four characters show the alphabet.
    text = (base64.urlsafe_b64encode if url_safe else base64.b64encode)(b"\xff\xff\xff" + data)
    text = text[: len(text) // 4 * 4 - 4]
    # Padding could stand after 2 or 3 characters of a group; a blank could stand at the start of a line.
    step = 4 if fault == b"=" else 1
    places = [place for place in range(4, len(text), step) if place % (width or len(text))]
    place = places[at % len(places)]
    line_start = place - place % (width or len(text))
    wrapped = lines_of(text[:place], width, line_end)
    rest = lines_of(text[line_start:], width, line_end)[place - line_start :]
    assert wrapped + rest == lines_of(text, width, line_end)
    if fault == b"other":
        fault = b"+" if url_safe else b"-"
    body = wrapped + fault + rest
    assert reference(body) is None
    whole = read([body])
    assert offset_in(whole) == len(wrapped)
    assert read(cut_at(body, cuts)) == whole


@pytest.mark.parametrize("fault", [b"!", b" ", b"-", b"=", b"\t\t"])
@pytest.mark.parametrize("where", ["start", "middle", "end"])
@pytest.mark.parametrize("line_end", [b"", b"\n", b"\r\n"])
def test_a_fault_in_megabytes_is_named_with_its_offset(fault: bytes, where: str, line_end: bytes) -> None:
    data = b"\xff\xff\xff" + random.Random(0).randbytes(3 * MIB)
    text = lines_of(base64.b64encode(data), 76 if line_end else 0, line_end)
    # The position after the second group of a line, where neither padding nor a blank is allowed.
    line_bytes = 76 + len(line_end)
    lines = len(text) // line_bytes
    at = {"start": 0, "middle": lines // 2, "end": lines - 1}[where] * line_bytes + 8
    at += 0 if line_end else -at % 4
    body = text[:at] + fault + text[at:]
    for piece_bytes in (len(body), 65_536, 99_999):
        message = read(body[i : i + piece_bytes] for i in range(0, len(body), piece_bytes))
        assert offset_in(message) == at


def test_the_second_alphabet_is_seen_megabytes_after_the_first() -> None:
    zeros = base64.b64encode(bytes(3 * MIB))
    for first, second, title in ((b"+++/", b"-", "URL-safe"), (b"__--", b"/", "standard")):
        body = first + zeros + second + zeros
        for piece_bytes in (len(body), 65_536):
            message = read(body[i : i + piece_bytes] for i in range(0, len(body), piece_bytes))
            assert offset_in(message) == 4 + len(zeros)
            assert f"belongs to the {title} alphabet" in str(message)


@pytest.mark.parametrize("count", [1, 7, 300_000])
def test_a_run_of_blanks_is_judged_by_what_follows_it(count: int) -> None:
    for blank, name in ((b" ", "space"), (b"\t", "tab")):
        run = blank + b" " * (count - 1)
        message = f"a {name} at offset 4"
        for cut in {0, 1, 4, 5, 4 + count // 2, 4 + count}:
            for follows in (b"QUJD", b"!", b"=="):
                body = b"QUJD" + run + follows
                assert message in str(read([body[:cut], body[cut:]])), (cut, follows)
            for follows in (b"\nQUJD", b"\rQUJD", b"\r\nQUJD"):
                body = b"QUJD" + run + follows
                assert read([body[:cut], body[cut:]]) == b"ABCABC"
            body = b"QUJD" + run
            assert read([body[:cut], body[cut:]]) == b"ABC"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"QUJ=", "'J' at offset 2 of the body, has bits that no encoder sets: was the body cut off or changed?"),
        (b"QUJ", "'J' at offset 2 of the body, has bits that no encoder sets"),
        (b"QUJD\r\nQR  \n=\n=", "'R' at offset 7 of the body, has bits that no encoder sets"),
        (b"a__", "'_' at offset 2 of the body, has bits that no encoder sets"),
        (b"QUJDR", "ends at byte 5 of the body in the middle of a group"),
        (b"QQ=", "ends at byte 3 of the body in the middle of its padding: it has 1 of 2"),
        (b"QQ===", "'=' at offset 4 of the body comes after the end"),
        (b"QUI==", "'=' at offset 4 of the body comes after the end"),
        (b"QQ==\nQUJD", "'Q' at offset 5 of the body comes after the end"),
        (b"QUJD=", "'=' at offset 4 of the body is padding that does not fit"),
        (b"QUJDQ=", "'=' at offset 5 of the body is padding that does not fit"),
        (b"=", "'=' at offset 0 of the body is padding that does not fit"),
        (b"QQ= =", "a space at offset 3"),
        (b"SGVs bG8=", "a space at offset 4; was a `+` lost in a form?"),
        (b"the quick brown fox", "a space at offset 3; was a `+` lost in a form?"),
        (b"QUJD\x0bQUJD", "0x0b at offset 4"),
    ],
)
def test_what_no_encoder_emits_is_refused_with_the_reason(text: bytes, message: str) -> None:
    for cut in range(len(text) + 1):
        assert message in str(read([text[:cut], text[cut:]]))


CERTIFICATE = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(bytes(99)) + b"-----END CERTIFICATE-----\n"
LETTERS = base64.encodebytes(bytes(6000))
SIGNS = base64.encodebytes(b"\xff" * 6000)


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        (CERTIFICATE, 0),
        (CERTIFICATE.replace(b"\n", b"\r\n"), 0),
        (CERTIFICATE.replace(b"\n", b""), 0),
        (CERTIFICATE.partition(b"\n")[2].replace(b"=", b""), 134),
        (b"\n\n" + CERTIFICATE, 2),
        (LETTERS + CERTIFICATE, len(LETTERS)),
        (SIGNS + CERTIFICATE, len(SIGNS)),
        (base64.encodebytes(bytes(64)) + CERTIFICATE, len(base64.encodebytes(bytes(64)))),
    ],
)
def test_the_armour_of_pem_is_named_wherever_it_stands(text: bytes, offset: int) -> None:
    whole = read([text])
    assert "armour" in str(whole)
    assert "?input=raw, or send the base64 without the armour lines" in str(whole)
    assert offset_in(whole) == offset
    for cut in range(offset, min(offset + 40, len(text))):
        assert read([text[:cut], text[cut:]]) == whole


def test_offsets_count_from_where_the_reader_begins_and_name_what_they_count_in() -> None:
    assert "'!' at offset 104 of the part 'a'" in str(read([b"QUJD!"], offset=100, where="the part 'a'"))
    assert "at byte 105 of the part 'a'" in str(read([b"QUJDQ"], offset=100, where="the part 'a'"))


def test_a_quote_ends_the_text() -> None:
    assert read([b'QUJD "\r\n '], quoted=True) == b"ABC"
    assert read([b'QQ==\n"'], quoted=True) == b"A"
    assert "in the middle of its padding" in str(read([b'QQ="'], quoted=True))
    assert "'=' at offset 5" in str(read([b'QUJD"='], quoted=True))
    assert "'\"' at offset 4" in str(read([b'QUJD"']))


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (b"QQ==", b"A"),
        (b"QQ", b"A"),
        (b" QU JD\r\nQUJD\n", b"ABCABC"),
        (b"ab+/", b"i\xbf\xbf"),
        (b"ab-_", b"i\xbf\xbf"),
        (b"", b""),
        (b"ab+/ab-_", None),
        (b"QUJ", None),
        (b"QR==", None),
        (b"QUJDQ", None),
        (b"QUJD!", None),
        (b"QQ=Q", None),
    ],
)
def test_a_short_text_is_decoded_only_if_an_encoder_emits_it(text: bytes, data: bytes | None) -> None:
    assert decoded_text(text) == data
