"""Bodies that are not what they look like: the right bytes or a clear 400, never other bytes under 200."""

from __future__ import annotations

import base64
import gzip

import pytest
from running_server import StartServer, problem

AS_IT_IS = 'cat "$INPUT_FILE_PATH"'
FORM = "application/x-www-form-urlencoded"


def refused(shared_server: StartServer, body: bytes, content_type: str, part: str) -> None:
    """The body is answered 400 with this part in the reason, and the script does not run."""
    server = shared_server("echo never")
    document = problem(server.call(body, headers={"Content-Type": content_type}), 400)
    detail = document["detail"]
    assert part in str(detail)
    ended = server.event("invocation ended", call_id=document["call_id"])
    assert (ended["outcome"], ended["reason"]) == ("bad_input", detail)


def accepted(shared_server: StartServer, body: bytes, content_type: str, expected: bytes, encoding: str) -> None:
    server = shared_server(AS_IT_IS)
    answer = server.call(body, headers={"Content-Type": content_type})
    assert (answer.status, answer.body) == (200, expected)
    assert answer.headers["X-Input-Encoding"] == encoding


@pytest.mark.guard("blanks-inside-base64")
@pytest.mark.parametrize("content_type", [FORM, "text/plain"])
@pytest.mark.parametrize(
    ("body", "offset"),
    [
        (b"the quick brown fox jumps over the lazy dogs", 3),
        (b"SGVs bG8=", 4),
        (base64.encodebytes(bytes(300_000)).replace(b"AAAA\n", b"AA A\n").rstrip(), 74),
    ],
    ids=["a sentence", "a lost plus", "in each line of many"],
)
def test_a_space_inside_base64_is_refused(
    shared_server: StartServer, body: bytes, offset: int, content_type: str
) -> None:
    refused(shared_server, body, content_type, f"a space at offset {offset}; was a `+` lost in a form?")


@pytest.mark.guard("one-alphabet")
@pytest.mark.parametrize("zeros", [0, 3_000_000])
@pytest.mark.parametrize(("first", "second"), [(b"ab+/", b"-"), (b"ab-_", b"+")])
def test_both_alphabets_in_one_body_are_refused(
    shared_server: StartServer, first: bytes, second: bytes, zeros: int
) -> None:
    body = first + base64.b64encode(bytes(zeros)) + second + b"AAA"
    offset = len(body) - 4
    refused(shared_server, body, "text/plain", f"'{second.decode()}' at offset {offset} of the body belongs to the")


@pytest.mark.guard("last-bits")
@pytest.mark.parametrize("body", [b"QUJDQUJ=", b"QUJDQUJ"])
def test_base64_with_bits_that_no_encoder_sets_is_refused(shared_server: StartServer, body: bytes) -> None:
    refused(shared_server, body, FORM, "'J' at offset 6 of the body, has bits that no encoder sets")


@pytest.mark.parametrize("content_type", [FORM, "text/plain"])
def test_the_armour_of_pem_is_refused_by_name(shared_server: StartServer, content_type: str) -> None:
    text = base64.encodebytes(bytes(48))
    body = b"-----BEGIN CERTIFICATE-----\n" + text + b"-----END CERTIFICATE-----\n"
    refused(shared_server, body, content_type, "the armour of PEM (-----BEGIN CERTIFICATE-----) is at offset 0")
    accepted(shared_server, body, "application/octet-stream", body, "raw")
    accepted(shared_server, text, content_type, bytes(48), "base64")


@pytest.mark.guard("types-that-say-what-the-body-is")
@pytest.mark.parametrize("content_type", ["text/csv", "text/x-fasta; charset=utf-8", "Text/XML"])
def test_a_type_that_says_what_the_body_is_means_the_bytes_themselves(
    shared_server: StartServer, content_type: str
) -> None:
    accepted(shared_server, b"ACGTACGT", content_type, b"ACGTACGT", "raw")


@pytest.mark.guard("base64-is-not-a-form")
@pytest.mark.parametrize(
    "body", [b"SGVs!bG8=", b"SG!sbG8=", b"SGVsbG8=!", base64.b64encode(bytes(1000)).replace(b"AA=", b"*A=")]
)
def test_padded_base64_with_a_wrong_byte_is_not_a_form(shared_server: StartServer, body: bytes) -> None:
    offset = next(at for at, byte in enumerate(body) if byte in b"!*")
    refused(shared_server, body, FORM, f"at offset {offset} of the body ")


@pytest.mark.guard("armour-is-not-a-form")
def test_the_armour_of_pem_in_a_form_is_refused_by_name(shared_server: StartServer) -> None:
    body = b"subject=CN = x\n-----BEGIN CERTIFICATE-----\nab+/\n-----END CERTIFICATE-----\n"
    refused(shared_server, body, FORM, "the armour of PEM (-----BEGIN CERTIFICATE-----) is at offset 15")


@pytest.mark.guard("markup-is-not-a-form")
@pytest.mark.parametrize("body", [b'<?xml version="1.0"?><a/>', b"#!/bin/shecho a=1"])
def test_markup_and_scripts_under_a_form_type_are_refused(shared_server: StartServer, body: bytes) -> None:
    refused(shared_server, body, FORM, "send base64, or the bytes themselves with their own content type")


@pytest.mark.guard("byte-order-mark")
@pytest.mark.parametrize(
    ("body", "expected", "encoding"),
    [
        (b"\xef\xbb\xbfaGVsbG8=", b"hello", "base64"),
        (b'\xef\xbb\xbf="aGVsbG8="', b"hello", "base64"),
        (b"\xef\xbb\xbfname=1", b'{"name":"1"}', "form"),
        (b"\xef\xbb\xbf{}", b"\xef\xbb\xbf{}", "json"),
    ],
)
def test_a_byte_order_mark_does_not_change_what_a_body_is(
    shared_server: StartServer, body: bytes, expected: bytes, encoding: str
) -> None:
    accepted(shared_server, body, FORM, expected, encoding)


@pytest.mark.guard("utf-16")
@pytest.mark.parametrize("codec", ["utf-16-le", "utf-32-le"])
def test_json_in_utf_16_is_refused_by_name(shared_server: StartServer, codec: str) -> None:
    refused(shared_server, '{"a": 1}'.encode(codec), "application/json", f"the body is {codec[:6].upper()} text")


@pytest.mark.guard("every-content-encoding")
def test_a_second_content_encoding_is_refused(shared_server: StartServer) -> None:
    server = shared_server(AS_IT_IS)
    body = gzip.compress(gzip.compress(b"hello"))
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: image/x\r\n"
    head += b"Content-Encoding: gzip\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = server.raw(head + body)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"the Content-Encoding 'gzip, gzip' is not supported" in answer
