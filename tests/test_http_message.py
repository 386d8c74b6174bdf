"""The head of a response, and the target of a request."""

from __future__ import annotations

import email.utils
import time
from typing import Any

import pytest
from multidict import CIMultiDict

from watchdog.http import http_message
from watchdog.http.http_message import Request, Response
from watchdog.http.request_body import RequestBody
from watchdog.http.request_head import Head


def request(target: str) -> Request:
    head = Head(method="GET", target=target, version="1.1", headers=CIMultiDict(Host="x"), keep_alive=True)
    no_connection: Any = None
    return Request(no_connection, head, RequestBody(lambda: None))


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/a/b?c=d", "/a/b", {"c": "d"}),
        ("/a%20b%2Fc", "/a b/c", {}),
        ("/?a=1&a=2&b=&c=%20+", "/", {"a": "1", "b": "", "c": "  "}),
        ("http://host:1/a?b=c", "/a", {"b": "c"}),
        ("http://host", "/", {}),
        ("http://host?b=c", "/", {"b": "c"}),
        ("http://[::1/a", "/a", {}),
        ("*", "*", {}),
        ("host:1", "host:1", {}),
        ("/a?b=http://c/d", "/a", {"b": "http://c/d"}),
        ("/%ff", "/\ufffd", {}),
    ],
)
def test_path_and_query_of_a_target(target: str, path: str, query: dict[str, str]) -> None:
    found = request(target)
    assert (found.path, found.query) == (path, query)


@pytest.mark.parametrize(
    ("is_http_1_0", "keep_alive", "line"),
    [
        (False, True, None),
        (False, False, "Connection: close"),
        (True, True, "Connection: keep-alive"),
        (True, False, None),
    ],
)
def test_header_connection_is_sent_if_it_is_not_the_default(
    is_http_1_0: bool, keep_alive: bool, line: str | None
) -> None:
    lines = Response(200).head(is_http_1_0=is_http_1_0, keep_alive=keep_alive).decode().split("\r\n")
    assert [each for each in lines if each.startswith("Connection")] == ([line] if line else [])


@pytest.mark.parametrize(
    ("status", "first_line"),
    [(200, b"HTTP/1.1 200 OK\r\n"), (507, b"HTTP/1.1 507 Insufficient Storage\r\n"), (599, b"HTTP/1.1 599 \r\n")],
)
def test_first_line(status: int, first_line: bytes) -> None:
    assert Response(status).head(is_http_1_0=False, keep_alive=True).startswith(first_line)


def test_no_content_has_no_length() -> None:
    assert b"Content-Length" not in Response(204).head(is_http_1_0=False, keep_alive=True)
    assert b"Content-Length: 0\r\n" in Response(200).head(is_http_1_0=False, keep_alive=True)


@pytest.mark.parametrize("bad", ["a\r\nB: c", "a\nb", "a\rb", "a\0b"])
@pytest.mark.parametrize("where", ["name", "value"])
def test_header_with_a_line_end_is_never_sent(bad: str, where: str) -> None:
    headers = [(bad, "x")] if where == "name" else [("X", bad)]
    with pytest.raises(ValueError, match="line end or a NUL"):
        Response(200, headers).head(is_http_1_0=False, keep_alive=True)


def test_date_is_in_the_form_of_http() -> None:
    now_s = int(time.time())
    for time_s in (0, 951_782_400, now_s):  # the second one is a leap day
        assert http_message._date_line(time_s) == f"Date: {email.utils.formatdate(time_s, usegmt=True)}\r\n"


@pytest.mark.parametrize(("status", "has_length"), [(200, True), (204, False), (205, True), (304, False)])
def test_a_status_without_a_body_has_a_length_only_if_it_is_0(status: int, has_length: bool) -> None:
    head = Response(status).head(is_http_1_0=False, keep_alive=True)
    assert (b"Content-Length: 0" in head) == has_length
