"""From the bytes of a body to the input file: every encoding, cut into pieces at every position."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import itertools
import json
import random
import threading
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from watchdog.errors import BadInput, InputTooLarge
from watchdog.input.detect import BodyHints
from watchdog.input.receive import Input, Receiver, take_in
from watchdog.workspace.held_input import HeldInput

anew = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)


NOTHING_SAID = BodyHints()


def receive(directory: Path, pieces: Iterable[bytes], said: BodyHints = NOTHING_SAID, max_size_bytes: int = 0) -> Input:
    for old in directory.iterdir():
        old.unlink()
    held = HeldInput(str(directory))
    receiver = Receiver(said, held, max_size_bytes)
    try:
        for piece in pieces:
            receiver.feed(piece)
        taken = receiver.finish()
        assert list(directory.iterdir()) == [], "the files have no names yet"
        held.give_names(str(directory))
        return taken
    finally:
        receiver.close()
        held.close()


def content(directory: Path, *pieces: bytes, **said: str) -> bytes:
    return (directory / receive(directory, pieces, BodyHints(**said)).name).read_bytes()


def refusal(directory: Path, *pieces: bytes, **said: str) -> str:
    with pytest.raises(BadInput) as caught:
        receive(directory, pieces, BodyHints(**said))
    return str(caught.value)


@pytest.mark.parametrize("length", range(13))
def test_base64_cut_at_every_position_decodes_as_python_does(tmp_path: Path, length: int) -> None:
    data = random.Random(length).randbytes(length)
    encoded = base64.b64encode(data)
    for cut in range(len(encoded) + 1):
        assert content(tmp_path, encoded[:cut], encoded[cut:], encoding="base64") == data


@anew
@given(
    data=st.binary(max_size=20_000),
    width=st.sampled_from([0, 1, 4, 63, 64, 76]),
    end=st.sampled_from([b"\n", b"\r\n", b"\r", b" \n ", b"\t\n"]),
    url_safe=st.booleans(),
    padded=st.booleans(),
    cuts=st.lists(st.integers(0, 30_000), max_size=8),
)
def test_base64_of_any_look_in_any_pieces(
    tmp_path: Path, data: bytes, width: int, end: bytes, url_safe: bool, padded: bool, cuts: list[int]
) -> None:
    encoded = base64.urlsafe_b64encode(data) if url_safe else base64.b64encode(data)
    if not padded:
        encoded = encoded.rstrip(b"=")
    if width:
        encoded = end.join(encoded[at : at + width] for at in range(0, len(encoded), width)) + end
    places = sorted({0, len(encoded), *(cut for cut in cuts if cut < len(encoded))})
    pieces = [encoded[a:b] for a, b in itertools.pairwise(places)]
    assert content(tmp_path, *pieces, encoding="base64") == data


@anew
@given(
    data=st.binary(min_size=10, max_size=9_000),
    at=st.integers(0, 12_000),
    bad=st.sampled_from(list(b"!\x00\xff.,%&*")),
    wrapped=st.booleans(),
    cut=st.integers(0, 13_000),
)
def test_a_bad_byte_is_named_with_its_offset(
    tmp_path: Path, data: bytes, at: int, bad: int, wrapped: bool, cut: int
) -> None:
    encoded = base64.b64encode(data).rstrip(b"=")
    if wrapped:
        encoded = b"\n".join(encoded[i : i + 76] for i in range(0, len(encoded), 76))
    at %= len(encoded)
    body = encoded[:at] + bytes([bad]) + encoded[at:]
    message = refusal(tmp_path, body[:cut], body[cut:], encoding="base64")
    assert f"at offset {at} of the body" in message
    assert "?input=raw" in message


def test_a_bad_byte_behind_a_megabyte_in_one_piece_is_named(tmp_path: Path) -> None:
    encoded = base64.b64encode(bytes(1_000_000))
    body = encoded[:900_001] + b"\x80" + encoded[900_001:]
    assert "0x80 at offset 900001 of the body" in refusal(tmp_path, body)


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"QQ==QUJD", "'Q' at offset 4 of the body comes after the end"),
        (b"QQ===", "'=' at offset 4 of the body comes after the end"),
        (b"QUJD=", "'=' at offset 4 of the body is padding that does not fit"),
        (b"=", "'=' at offset 0 of the body is padding that does not fit"),
        (b"QUJDR", "ends at byte 5 of the body in the middle of a group"),
        (b'="QUJD', 'no " closes it'),
        (b'="QUJD" x', "'x' at offset 8"),
        (b"<html>", "'<' at offset 0"),
        (b"data:image/png,QUJD", "':' at offset 4"),
        (b"data:;base64,QUJD!", "'!' at offset 17 of the body"),
        (b'="QU D"', "a space at offset 4; was a `+` lost in a form?"),
        (b"QUJ=", "'J' at offset 2 of the body, has bits that no encoder sets"),
        (b"ab+/ab-_", "'-' at offset 6 of the body belongs to the URL-safe alphabet"),
    ],
)
def test_a_body_that_is_not_base64_is_rejected_with_the_reason(tmp_path: Path, body: bytes, part: str) -> None:
    assert part in refusal(tmp_path, body)


FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        # JSON, byte for byte
        (b' {"a": 1, "a": 2, "n": 1e400}\n', "", b' {"a": 1, "a": 2, "n": 1e400}\n'),
        (b"[1, 2]", "text/plain", b"[1, 2]"),
        (b'\xef\xbb\xbf{"bom": true}', "", b'\xef\xbb\xbf{"bom": true}'),
        (b'{"event": "x", "httpMethod": "y"}', "application/json", b'{"event": "x", "httpMethod": "y"}'),
        # base64
        (b"aGVsbG8=", "", b"hello"),
        (b"aGVsbG8=", "text/plain; charset=utf-8", b"hello"),
        (b"aGVsbG8=", FORM, b"hello"),
        (b"aGVsbG8=", "application/json", b"hello"),
        (b"aGVsbG8=", "application/octet-stream", b"hello"),
        (b"1234", "application/json", base64.b64decode(b"1234")),
        (b'="aGVsbG8="', FORM, b"hello"),
        (b'="aGVsbG8"\r\n', FORM, b"hello"),
        (b"data:image/png;base64,aGVsbG8=", "", b"hello"),
        (b"data:text/plain;charset=utf-8;base64,aGVsbG8", "text/plain", b"hello"),
        (b" \n", "", b""),
        (b"\xef\xbb\xbfaGVsbG8=", "", b"hello"),
        (b'\xef\xbb\xbf\n="aGVsbG8="', FORM, b"hello"),
        (b"\xef\xbb\xbfdata:;base64,aGVsbG8=", "text/plain", b"hello"),
        (b"\xef\xbb\xbf", "text/plain", b""),
        # forms
        (b"name=Quercus&n=3", FORM, b'{"name":"Quercus","n":"3"}'),
        (b"name=Quercus+robur&name=%C3%A9", "application/json", '{"name":["Quercus robur","é"]}'.encode()),
        (b"a=", FORM, b'{"a":""}'),
        (b"name=", FORM, b'{"name":""}'),
        (b"abcd==", FORM, b'{"abcd":"="}'),
        (b"a=1&&b=2&c", FORM, b'{"a":"1","b":"2","c":""}'),
        ("n\u00e4me=Jos\u00e9&x y=1".encode(), FORM, '{"n\u00e4me":"Jos\u00e9","x y":"1"}'.encode()),
        (b"a=%zz%2B+", FORM, b'{"a":"%zz+ "}'),
        (b"\xef\xbb\xbfname=1", FORM, b'{"name":"1"}'),
        (b"a=1&b=2", FORM, b'{"a":"1","b":"2"}'),
        (b"a=1&bcde=", FORM, b'{"a":"1","bcde":""}'),
        (b"key=&", FORM, b'{"key":""}'),
        (b"user.name=", FORM, b'{"user.name":""}'),
        (b"text=two+words", FORM, b'{"text":"two words"}'),
        (b"pem=-----BEGIN+X-----%0AQQ%3D%3D", FORM, b'{"pem":"-----BEGIN X-----\\nQQ=="}'),
        (b"pem=-----BEGIN%20X-----%0AQQ%2B%2B", FORM, b'{"pem":"-----BEGIN X-----\\nQQ++"}'),
        # scalars under a JSON type
        (b'"a text"', "application/json", b'"a text"'),
        (b"true", "application/json", b"true"),
        (b"false", "application/json", b"false"),
        (b"null\n", "application/json", b"null\n"),
        (b"3.14", "application/json", b"3.14"),
        (b"12", "application/json", b"12"),
        (b'\xef\xbb\xbf"a text"', "application/json", b'\xef\xbb\xbf"a text"'),
        (b'"aGVsbG8="', "application/json", b'"aGVsbG8="'),
        # raw
        (b"\x89PNG\r\n", "application/octet-stream", b"\x89PNG\r\n"),
        (b"\xff\xd8\xff\xe0", "image/jpeg", b"\xff\xd8\xff\xe0"),
        (b"aGVsbG8=", "image/jpeg", b"aGVsbG8="),
        (b"PK\x03\x04", "Application/ZIP", b"PK\x03\x04"),
        (b"a,b\n1,2\n", "text/csv", b"a,b\n1,2\n"),
        (b"ACGT", "text/x-fasta", b"ACGT"),
        (b"<a/>", "text/xml; charset=utf-8", b"<a/>"),
        (b"[x]", "text/markdown", b"[x]"),
        (b"\xff\xfea\x00", "text/csv", b"\xff\xfea\x00"),
        (b"\xef\xbb\xbfACGT", "text/csv", b"\xef\xbb\xbfACGT"),
        (b"two words", "application/octet-stream", b"two words"),
        (b"ab+/ab-_", "application/octet-stream", b"ab+/ab-_"),
        (b"abd", "application/octet-stream", b"abd"),
        (b"-----BEGIN X-----\nQUJD\n-----END X-----\n", "application/octet-stream", None),
        (b"\xff\xfe{\x00", "application/octet-stream", b"\xff\xfe{\x00"),
        (b"{\x00}\x00", "application/octet-stream", b"{\x00}\x00"),
        (b"", "", b""),
        (b"", "application/json", b""),
    ],
)
def test_rules(tmp_path: Path, body: bytes, content_type: str, expected: bytes | None) -> None:
    expected = body if expected is None else expected
    assert content(tmp_path, body, content_type=content_type) == expected
    assert content(tmp_path, *(body[i : i + 1] for i in range(len(body))), content_type=content_type) == expected


@pytest.mark.parametrize(
    ("body", "said", "encoding"),
    [
        (b"aGVsbG8=", BodyHints(), "base64"),
        (b'="aGVsbG8="', BodyHints(content_type=FORM), "base64"),
        (b"\n", BodyHints(), "base64"),
        (b"aGVsbG8=", BodyHints(content_type="image/x", encoding="base64"), "base64"),
        (base64.b64encode(bytes(9000)), BodyHints(), "base64"),
        (b"{}", BodyHints(), "json"),
        (b"true", BodyHints(content_type="application/json"), "json"),
        (b"any", BodyHints(encoding="json"), "json"),
        (b"a=1", BodyHints(content_type=FORM), "form"),
        (b"a=1&" * 3000, BodyHints(content_type=FORM), "form"),
        (b"a,b", BodyHints(content_type="text/csv"), "raw"),
        (b"[1]", BodyHints(content_type="image/x"), "raw"),
        (b"\x89PNG", BodyHints(content_type="application/octet-stream"), "raw"),
        (b"aGVsbG8=", BodyHints(encoding="raw"), "raw"),
        (b"", BodyHints(), "raw"),
        (b"", BodyHints(content_type="application/json"), "raw"),
        (b"", BodyHints(encoding="base64"), "base64"),
        (
            b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--B--',
            BodyHints("multipart/form-data; boundary=B"),
            "multipart",
        ),
    ],
)
def test_the_encoding_that_was_found_is_known(tmp_path: Path, body: bytes, said: BodyHints, encoding: str) -> None:
    assert receive(tmp_path, [body], said).encoding == encoding
    assert receive(tmp_path, (body[i : i + 1] for i in range(len(body))), said).encoding == encoding


@pytest.mark.parametrize("content_type", [FORM, "application/json"])
@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"SGVs!bG8=", "'!' at offset 4 of the body is not base64"),
        (b"SG!sbG8=", "'!' at offset 2 of the body is not base64"),
        (b"SGVs bG8=\r\n", "a space at offset 4; was a `+` lost in a form?"),
        (b"SGV!\r\nbG8=\r\n", "'!' at offset 3 of the body is not base64"),
        (b"\xef\xbb\xbfSGVs!!bG8=", "'!' at offset 7 of the body is not base64"),
        (b"S!VsbA==", "'!' at offset 1 of the body is not base64"),
        (b"QUJ=", "'J' at offset 2 of the body, has bits that no encoder sets"),
        (b"SGVsbG8=!", "'!' at offset 8 of the body comes after the end"),
        (b"SGVs bG8=!", "a space at offset 4"),
        (b"QUJ=!", "'!' at offset 4 of the body comes after the end"),
        ("SGVsbG8=\u2026".encode(), "0xe2 at offset 8 of the body comes after the end"),
        (b"SGVsbG8=%0A", "'%' at offset 8 of the body comes after the end"),
        (b"SGVsbG8=\\n", "at offset 8 of the body comes after the end"),
        (b"'SGVsbG8='", '"\'" at offset 0 of the body is not base64'),
        (b"b'SGVsbG8='", '"\'" at offset 1 of the body is not base64'),
        (b'SGVsbG8="', "'\"' at offset 8 of the body comes after the end"),
        (b"YWFhCg==\nYmJiYmIK", "'Y' at offset 9 of the body comes after the end"),
        (b"YWFhCg==YmJiYmIK", "'Y' at offset 8 of the body comes after the end"),
        (b"YWFhYWE=\r\nYmJi", "'Y' at offset 10 of the body comes after the end"),
        (b"aGVsbG8gd29ybGQhIQo=YmJiYmIK", "'Y' at offset 20 of the body comes after the end"),
        (b"fn5+Pj4+Pz8/fg=%3D", "'%' at offset 15 of the body comes after the end"),
        (b"SGVs%0AbG8=", "'%' at offset 4 of the body is not base64"),
        (b"SGVs%2BbG8=", "'%' at offset 4 of the body is not base64"),
        (b"SGVs\\nbG8=\\n", "at offset 4 of the body is not base64"),
        ("SGVs\u00e9bG8=".encode(), "0xc3 at offset 4 of the body is not base64"),
        (b"SGVs\xe9bG8=", "0xe9 at offset 4 of the body is not base64"),
        (b"S!G?V*sbG8=", "'!' at offset 1 of the body is not base64"),
        (b"SGVsbG8==", "'=' at offset 8 of the body comes after the end"),
        (b"aGVsbG8gd29ybGQh=", "'=' at offset 16 of the body is padding that does not fit"),
        (b"aGVsbG8gd29ybGQhaGVsbG8gd29ybGQhaGVsbG8gd29ybGQhaGVsbG8gd29ybGQh!=x", "'!' at offset 64"),
        (base64.b64encode(bytes(3070)).replace(b"AA=", b"!A=", 1), "'!' at offset 4092 of the body"),
        (base64.b64encode(bytes(3071))[:-3] + b"!A=\n\n\n", "'!' at offset 4093 of the body"),
    ],
)
def test_base64_but_for_a_stray_character_is_not_a_form(
    tmp_path: Path, body: bytes, part: str, content_type: str
) -> None:
    message = refusal(tmp_path, body, content_type=content_type)
    assert part in message
    assert refusal(tmp_path, *(body[i : i + 1] for i in range(len(body))), content_type=content_type) == message
    if len(body) < 4000 and b"\n" not in body.strip() and b"\xe9" not in body:
        assert "if it is a form of one field, end it with &" in message
        assert json.loads(content(tmp_path, body.rstrip() + b"&", content_type=content_type))


@pytest.mark.parametrize("content_type", [FORM, "application/json"])
@pytest.mark.parametrize(
    ("body", "key", "value"),
    [
        ("items[]=", "items[]", ""),
        ("%2A=", "*", ""),
        ("userIDs=%E6%97%A5", "userIDs", "\u65e5"),
        ("q%5B%5D=", "q[]", ""),
        ("my.names=", "my.names", ""),
        ("my.user=", "my.user", ""),
        ("a.b=", "a.b", ""),
        ("a b c d=", "a b c d", ""),
        ("first+name=", "first name", ""),
        ("userId=", "userId", ""),
        ("imageURL=", "imageURL", ""),
        ("sha256=", "sha256", ""),
        ("a\u00f1o=", "a\u00f1o", ""),
        ("description_text=", "description_text", ""),
        ("customerFirstName=", "customerFirstName", ""),
        ("message=!", "message", "!"),
        ("pattern=*", "pattern", "*"),
        ("path=/", "path", "/"),
        ("HTTPServer=x", "HTTPServer", "x"),
        ("aGVsbG8=abc", "aGVsbG8", "abc"),
    ],
)
def test_a_form_of_one_field_with_a_name_is_a_form(
    tmp_path: Path, body: str, key: str, value: str, content_type: str
) -> None:
    assert json.loads(content(tmp_path, body.encode(), content_type=content_type)) == {key: value}


def test_a_key_of_many_words_is_judged_in_a_moment(tmp_path: Path) -> None:
    """A search that goes back over each word would take years."""
    for word in (b"Ab ", b"1 ", b"aA", b"AB1"):
        body = word * (60 // len(word)) + b"!="
        assert refusal(tmp_path, body, content_type=FORM)


@pytest.mark.parametrize("content_type", [FORM, "application/json"])
@pytest.mark.parametrize(
    "body",
    [
        b'<?xml version="1.0"?><a/>',
        b"<a b=c>",
        b" <!DOCTYPE html><html lang=en>",
        b"#!/bin/shecho a=1",
        b"#!/bin/sh\na=1\n",
        b'say "a=1',
        b"a\nb=1",
    ],
)
def test_markup_and_scripts_are_not_forms(tmp_path: Path, body: bytes, content_type: str) -> None:
    message = refusal(tmp_path, body, content_type=content_type)
    assert "send base64, or the bytes themselves with their own content type" in message
    assert content(tmp_path, body, content_type="text/xml") == body


CERTIFICATE = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(bytes(98)) + b"-----END CERTIFICATE-----\n"


@pytest.mark.parametrize("said", [{}, {"content_type": FORM}, {"content_type": "text/plain"}, {"encoding": "base64"}])
@pytest.mark.parametrize(
    ("body", "armour", "offset"),
    [
        (CERTIFICATE, "-----BEGIN CERTIFICATE-----", 0),
        (b"\xef\xbb\xbf" + CERTIFICATE, "-----BEGIN CERTIFICATE-----", 3),
        (CERTIFICATE.replace(b"\n", b""), "-----BEGIN CERTIFICATE-----", 0),
        (b"Bag Attributes\n    localKeyID: 01\n" + CERTIFICATE, "-----BEGIN CERTIFICATE-----", 34),
        (b"---- BEGIN SSH2 PUBLIC KEY ----\nQQ==\n", "---- BEGIN SSH2 PUBLIC KEY ----", 0),
        (b"-----BEGIN PGP MESSAGE-----\n\nQQ==\n=abcd\n", "-----BEGIN PGP MESSAGE-----", 0),
        (base64.encodebytes(bytes(6000)) + CERTIFICATE, "-----BEGIN …", 8106),
    ],
)
def test_the_armour_of_pem_is_named(
    tmp_path: Path, body: bytes, armour: str, offset: int, said: dict[str, str]
) -> None:
    message = refusal(tmp_path, body, **said)
    assert f"the armour of PEM ({armour}) is at offset {offset} of the body" in message
    assert "?input=raw" in message
    assert "without the armour lines" in message
    assert refusal(tmp_path, body[:20], body[20:], **said) == message
    assert content(tmp_path, body, encoding="raw") == body


@pytest.mark.parametrize("content_type", [FORM, "application/json"])
@pytest.mark.parametrize(
    ("before", "offset"),
    [(b"subject=CN = x\n", 15), (b"cert=", 5), (b"a=1&cert=", 9), (b"\xef\xbb\xbfa=" + b"x" * 9000, 9005)],
)
def test_the_armour_of_pem_in_a_form_is_named(tmp_path: Path, before: bytes, offset: int, content_type: str) -> None:
    for certificate in (CERTIFICATE, CERTIFICATE.replace(b"\n", b"")):
        body = before + certificate
        message = refusal(tmp_path, body, content_type=content_type)
        assert f"the armour of PEM (-----BEGIN CERTIFICATE-----) is at offset {offset} of the body" in message
        assert refusal(tmp_path, *(body[i : i + 1] for i in range(len(body))), content_type=content_type) == message


@pytest.mark.parametrize(
    "said", [{}, {"content_type": FORM}, {"content_type": "application/json"}, {"encoding": "base64"}]
)
@pytest.mark.parametrize("text", ['"a"', "aGVsbG8=", '{"a": "\u2014"}', "a=1", "QQ"])
@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_utf_16_is_named(tmp_path: Path, codec: str, text: str, said: dict[str, str]) -> None:
    body = text.encode(codec)
    message = refusal(tmp_path, body, **said)
    assert f"the body is {codec[:6].upper()} text" in message
    assert "iconv" in message
    assert refusal(tmp_path, *(body[i : i + 1] for i in range(len(body))), **said) == message
    assert content(tmp_path, body, encoding="raw") == body
    assert content(tmp_path, body, content_type="text/csv") == body
    assert content(tmp_path, body, content_type="application/octet-stream") == body


@pytest.mark.parametrize(
    ("encoding", "body", "expected"),
    [("raw", b"aGVsbG8=", b"aGVsbG8="), ("json", b"42", b"42"), ("base64", b"eyJhIjoxfQ", b'{"a":1}')],
)
def test_an_explicit_encoding_wins(tmp_path: Path, encoding: str, body: bytes, expected: bytes) -> None:
    assert content(tmp_path, body, encoding=encoding, content_type="image/png") == expected


def test_only_the_first_4_kib_decide(tmp_path: Path) -> None:
    body = base64.b64encode(bytes(6000)) + b"!"
    assert "'!' at offset 8000" in refusal(tmp_path, body, content_type="application/octet-stream")
    assert content(tmp_path, body, content_type="application/octet-stream", encoding="raw") == body


@pytest.mark.parametrize("body", [b"a=%ff", b"a=\xff", b"a=1&" * 10_001])
def test_a_malformed_form_is_refused(tmp_path: Path, body: bytes) -> None:
    assert "the form" in refusal(tmp_path, body, content_type=FORM)


def multipart(*parts: tuple[str, bytes]) -> bytes:
    lines = b"".join(b"--B\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n" for head, data in parts)
    return lines + b"--B--\r\n"


def disposition(name: str, filename: str | None = None) -> str:
    return f'Content-Disposition: form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")


MULTIPART = "multipart/form-data; boundary=B"


def test_one_file_of_a_form_is_the_input(tmp_path: Path) -> None:
    body = multipart((disposition("text"), b"hello"), (disposition("file", "../../a/photo.jpg"), b"\xff\xd8\r\n--b"))
    for size in (1, 7, 1000):
        pieces = [body[i : i + size] for i in range(0, len(body), size)]
        taken = receive(tmp_path, pieces, BodyHints(content_type=MULTIPART))
        assert taken.name == "photo.jpg"
        assert (tmp_path / taken.name).read_bytes() == b"\xff\xd8\r\n--b"
        assert (tmp_path / "text").read_bytes() == b"hello"


def test_several_files_of_a_form_give_the_directory(tmp_path: Path) -> None:
    body = multipart(
        (disposition("a", "x.jpg"), b"1"),
        (disposition("b", "x.jpg"), b"2"),
        (disposition("c", "y") + "\r\nContent-Transfer-Encoding: base64", b"aGVs\r\nbG8="),
    )
    taken = receive(tmp_path, [body], BodyHints(content_type=MULTIPART))
    assert taken == Input("", 7, "multipart")
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert files == {"x.jpg": b"1", "x-2.jpg": b"2", "y": b"hello"}


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_base64_in_a_part_is_read_strictly_and_its_part_is_named(tmp_path: Path, size: int) -> None:
    head = disposition("a", "x.jpg") + "\r\nContent-Transfer-Encoding: base64"
    for text, part in (
        (b"aGVs bG8=", "a space at offset 4; was a `+` lost in a form? In the base64 of the part 'x.jpg'"),
        (b"aGVs!bG8=", "'!' at offset 4 of the part 'x.jpg'"),
        (b"ab+/ab-_", "'-' at offset 6 of the part 'x.jpg'"),
        (b"QUJ", "'J' at offset 2 of the part 'x.jpg'"),
        (b"\xef\xbb\xbfQU!J", "'!' at offset 5 of the part 'x.jpg'"),
        (b"-----BEGIN X-----\nQUJD\n", "leave out the part's Content-Transfer-Encoding"),
    ):
        body = multipart((disposition("b", "y"), b"1"), (head, text))
        pieces = [body[i : i + size] for i in range(0, len(body), size)]
        assert part in refusal(tmp_path, *pieces, content_type=MULTIPART)


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(("text", "expected"), [(b"", b""), (b"QQ", b"A"), (b"aGVs\r\nbG8=", b"hello")])
def test_a_byte_order_mark_before_base64_in_a_part_is_skipped(
    tmp_path: Path, text: bytes, expected: bytes, mark: bytes, size: int
) -> None:
    body = multipart((disposition("a", "x") + "\r\nContent-Transfer-Encoding: base64", mark + text))
    assert (
        content(tmp_path, *(body[i : i + size] for i in range(0, len(body), size)), content_type=MULTIPART) == expected
    )


def test_names_of_parts_outside_ascii_and_empty_ones(tmp_path: Path) -> None:
    extended = "Content-Disposition: form-data; name=f; filename=x; filename*=utf-8''%C3%B1.jpg"
    body = multipart((extended, b"1"), ('Content-Disposition: form-data; name="none"; filename=""', b""))
    assert receive(tmp_path, [body], BodyHints(content_type=MULTIPART)).name == "ñ.jpg"
    body = multipart(('Content-Disposition: form-data; name="f"; filename=""', b"nameless"))
    taken = receive(tmp_path, [body], BodyHints(content_type=MULTIPART))
    assert taken.name.startswith("event-file-")
    assert (tmp_path / taken.name).read_bytes() == b"nameless"


def test_ten_thousand_files_of_one_name(tmp_path: Path) -> None:
    body = multipart(*[(disposition("f", "a"), b"")] * 9_999)
    receive(tmp_path, [body], BodyHints(content_type=MULTIPART))
    assert (tmp_path / "a-9999").exists()


def test_a_large_form_takes_little_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        data = content(tmp_path, b"d=", *[b"%2B" * 10_000] * 100, content_type=FORM)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert data == b'{"d":"' + b"+" * 1_000_000 + b'"}'
    assert peak < 40_000_000


@pytest.mark.parametrize(
    ("body", "content_type", "part"),
    [
        (multipart((disposition("a", "x"), b"1"))[:-6], MULTIPART, "malformed"),
        (b"no boundary at all", MULTIPART, "malformed"),
        (b"--B--\r\n", MULTIPART, "no part"),
        (b"", MULTIPART, "malformed"),
        (b"x", "multipart/form-data", "no boundary"),
        (multipart((disposition("a", "x") + "\r\nContent-Transfer-Encoding: uu", b"")), MULTIPART, "'uu'"),
        (multipart(("Content-Type: text/plain", b"")), MULTIPART, "malformed"),
    ],
)
def test_a_malformed_multipart_form_is_refused(tmp_path: Path, body: bytes, content_type: str, part: str) -> None:
    assert part in refusal(tmp_path, body, content_type=content_type)


@pytest.mark.parametrize("size", [1, 100, 10**6])
@pytest.mark.parametrize(
    ("coding", "squeezed"),
    [
        ("gzip", gzip.compress(b"x" * 3_000_000, mtime=0)),
        ("gzip", gzip.compress(b"x" * 3_000_000, mtime=0) + bytes(1000)),
        ("gzip, identity", gzip.compress(b"x" * 3_000_000, mtime=0)),
        ("X-Gzip", gzip.compress(b"x" * 1_000_000, mtime=0) + gzip.compress(b"x" * 2_000_000, mtime=0)),
        ("deflate", zlib.compress(b"x" * 3_000_000)),
        ("deflate", zlib.compress(b"x" * 3_000_000)[2:-4]),
    ],
)
def test_content_encodings(tmp_path: Path, size: int, coding: str, squeezed: bytes) -> None:
    pieces = [squeezed[i : i + size] for i in range(0, len(squeezed), size)]
    taken = receive(tmp_path, pieces, BodyHints(content_encoding=coding, content_type="image/x"))
    assert (tmp_path / taken.name).read_bytes() == b"x" * 3_000_000


@pytest.mark.parametrize(
    ("coding", "body", "part"),
    [
        ("gzip", gzip.compress(b"hello", mtime=0)[:-1], "cut off"),
        ("gzip", b"hello", "not gzip"),
        ("deflate", zlib.compress(b"hello") + b"x", "follow the end"),
        ("gzip, gzip", gzip.compress(b"hello", mtime=0), "send gzip or deflate"),
        ("aws-chunked", b"hello", "send gzip or deflate"),
        ("br", b"hello", "send gzip or deflate"),
    ],
)
def test_a_bad_content_encoding_is_refused(tmp_path: Path, coding: str, body: bytes, part: str) -> None:
    assert part in refusal(tmp_path, body, content_encoding=coding, content_type="image/x")


def test_a_gzip_bomb_stops_at_max_input_size(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    with pytest.raises(InputTooLarge, match="over 5000000 bytes"):
        receive(tmp_path, [bomb], BodyHints(content_encoding="gzip", content_type="image/x"), 5_000_000)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 5_000_000


@pytest.mark.parametrize("body", [b"QUJDRA==", b"raw!", b"a=1234"])
def test_max_input_size_bounds_the_decoded_bytes(tmp_path: Path, body: bytes) -> None:
    content_type = "image/x" if body.startswith(b"raw") else FORM
    receive(tmp_path, [body], BodyHints(content_type=content_type), 12)
    with pytest.raises(InputTooLarge):
        receive(tmp_path, [body], BodyHints(content_type=content_type), 3)


def test_the_file_has_the_callers_name_or_oscars(tmp_path: Path) -> None:
    assert receive(tmp_path, [b""], BodyHints(file_name="a/b c.jpg")).name == "b c.jpg"
    assert receive(tmp_path, [b""]).name.startswith("event-file-")
    assert receive(tmp_path, [b""], BodyHints(file_name="..")).name.startswith("event-file-")


async def pieces_of(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


@pytest.mark.parametrize("size_bytes", [0, 10, 60_000, 200_000, 5_000_000])
async def test_take_in_in_a_thread_or_not(tmp_path: Path, size_bytes: int) -> None:
    data = random.Random(1).randbytes(size_bytes)
    body = pieces_of(base64.b64encode(data), 65_536)
    with contextlib.closing(HeldInput(str(tmp_path))) as held:
        taken = await take_in(body, BodyHints(), held)
        assert taken.size_bytes == size_bytes
        assert list(tmp_path.iterdir()) == []
        held.give_names(str(tmp_path))
    assert (tmp_path / taken.name).read_bytes() == data


async def test_an_error_in_the_thread_reaches_the_caller(tmp_path: Path) -> None:
    body = base64.b64encode(bytes(3_000_000)) + b"!"
    with contextlib.closing(HeldInput(str(tmp_path))) as held, pytest.raises(BadInput, match="offset 4000000"):
        await take_in(pieces_of(body, 65_536), BodyHints(), held)


async def test_a_cancelled_take_in_returns_only_when_its_thread_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, leave = threading.Event(), threading.Event()
    is_over = False

    def slowly(self: Receiver, pieces: list[bytes]) -> None:
        nonlocal is_over
        entered.set()
        leave.wait(10)
        is_over = True

    monkeypatch.setattr(Receiver, "feed_all", slowly)
    held = HeldInput(str(tmp_path))
    task = asyncio.ensure_future(take_in(pieces_of(bytes(1_000_000), 100_000), BodyHints(), held))
    await asyncio.to_thread(entered.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    leave.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_over


def test_json_is_kept_byte_for_byte(tmp_path: Path) -> None:
    body = b'{"k":' + b"9" * 400 + b', "k": [1e999, "\xc3\xa9"]}'
    assert content(tmp_path, body, content_type="application/json") == body
    assert json.loads(content(tmp_path, b"a=1&a=2&b=%26", content_type=FORM)) == {"a": ["1", "2"], "b": "&"}
