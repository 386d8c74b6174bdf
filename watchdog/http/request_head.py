"""Check the head of a request (its first line and headers): its size, and faults that aiohttp's parser accepts."""

from __future__ import annotations

from typing import Any

from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError

from ..errors import quoted

# Bytes of a request's first line and headers together. The same limit applies to those lines of a chunked body that
# carry no data. It is more than proxies allow (nginx: 32 KiB, Envoy: 60 KiB), and less than Linux allows for one
# variable (128 KiB).
MOST_HEAD_BYTES = 65536
# Number of headers of a request, and of lines of an incomplete head. A short header takes 100 times as many bytes in
# memory as in the request.
MOST_HEADERS = 1024
# Memory of one header in addition to its bytes, measured with names of two characters (aiohttp 3.14, Python 3.11).
HEADER_MEMORY_BYTES = 360
_MOST_DIGITS = 100


class HeadTooLarge(HttpProcessingError):
    """The head of a request exceeds a limit. The status is 414 if the first line alone exceeds it, else 431."""

    def __init__(self, *, is_first_line: bool, is_head: bool, has_many_headers: bool = False) -> None:
        self.is_head = is_head
        what = "the request line has" if is_first_line else "the request line and the headers together have"
        message = f"{what} more than {MOST_HEAD_BYTES} bytes; send large values in the body"
        if has_many_headers:
            message = f"the request has more than {MOST_HEADERS} headers; send their values in the body"
        super().__init__(code=414 if is_first_line else 431, message=message)


def head_too_large(message: Any) -> HeadTooLarge | None:
    """Return the error if a complete head exceeds a limit, else None."""
    if len(message.raw_headers) > MOST_HEADERS:
        return HeadTooLarge(is_first_line=False, is_head=message.method == "HEAD", has_many_headers=True)
    size_bytes = len(f"{message.method} {message.path} HTTP/1.1\r\n".encode("utf-8", "surrogateescape"))
    if size_bytes > MOST_HEAD_BYTES:
        return HeadTooLarge(is_first_line=True, is_head=message.method == "HEAD")
    size_bytes += sum(len(name) + len(value) + len(": \r\n") for name, value in message.raw_headers)
    if size_bytes > MOST_HEAD_BYTES:
        return HeadTooLarge(is_first_line=False, is_head=message.method == "HEAD")
    return None


def memory_of_head(message: Any) -> int:
    """Return the approximate number of bytes of memory that the head of a request takes."""
    headers = message.raw_headers
    size_bytes = len(message.path) + sum(len(name) + len(value) for name, value in headers)
    return size_bytes + len(headers) * HEADER_MEMORY_BYTES


def why_refused(message: Any) -> str | None:
    """Return how a request violates RFC 9112, or None if there is no violation. aiohttp accepts this request."""
    if message.version not in (HttpVersion10, HttpVersion11):
        return "its version is neither HTTP/1.1 nor HTTP/1.0"
    if not message.headers:
        return None  # for a malformed request, aiohttp passes on a substitute whose headers are an empty dict
    codings = message.headers.getall("Transfer-Encoding", [])
    if codings and message.version == HttpVersion10:
        return "HTTP/1.0 has no Transfer-Encoding (RFC 9112, section 6.1)"
    if codings and ",".join(codings).strip(" \t,").lower() != "chunked":
        return f"the Transfer-Encoding {quoted(', '.join(codings))} is not supported; use chunked"
    length = message.headers.get("Content-Length", "0")
    if len(length) > _MOST_DIGITS or int(length) >= 1 << 63:
        return "its Content-Length is over 2^63 or has too many zeros"
    return None
