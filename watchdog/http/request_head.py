"""The head of a request (its first line and headers): its limits, and the rules that the parser does not check."""

from __future__ import annotations

from multidict import CIMultiDict

from ..errors import quoted

# Bytes of a request's first line and headers together. The same limit applies to those lines of a chunked body that
# carry no data. It is more than proxies allow (nginx: 32 KiB, Envoy: 60 KiB), and less than Linux allows for one
# variable (128 KiB).
MOST_HEAD_BYTES = 65536
# Number of headers of a request, and of lines of an incomplete head. A short header takes 100 times as many bytes in
# memory as in the request.
MOST_HEADERS = 1024
# Memory of one header in addition to its bytes, measured with names of two characters (Python 3.11).
HEADER_MEMORY_BYTES = 360
_MOST_DIGITS = 100
VERSIONS = ("1.0", "1.1")


class MalformedRequest(Exception):
    """The head of a request violates RFC 9112, so nothing after it can be read."""


class HeadTooLarge(Exception):
    """The head of a request exceeds a limit. The status is 414 if the first line alone exceeds it, else 431."""

    def __init__(self, *, is_first_line: bool, is_head: bool, has_many_headers: bool) -> None:
        self.is_head = is_head
        self.status = 414 if is_first_line else 431
        self.title = "Request line too long" if is_first_line else "Request headers too large"
        what = "the request line has" if is_first_line else "the request line and the headers together have"
        message = f"{what} more than {MOST_HEAD_BYTES} bytes; send large values in the body"
        if has_many_headers:
            message = f"the request has more than {MOST_HEADERS} headers; send their values in the body"
        super().__init__(message)


class Head:
    """A complete head.

    Args:
        target: the second word of the first line. The parser accepts only ASCII here.
        version: 1.1, for example.
        keep_alive: whether the caller may send another request on the connection.

    Attributes:
        content_length: the number of bytes of the body; None if the head does not say it.
        refused: why the server refuses the request although the parser accepts it; None if the server accepts it, too.
    """

    __slots__ = ("content_length", "headers", "is_chunked", "is_http_1_0", "keep_alive", "method", "refused", "target")

    def __init__(self, *, method: str, target: str, version: str, headers: CIMultiDict[str], keep_alive: bool) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.keep_alive = keep_alive
        self.is_http_1_0 = version == "1.0"
        length = headers.get("Content-Length")
        # The parser has checked that there is at most one length, and that it has only digits.
        self.content_length = None if length is None else int(length[:_MOST_DIGITS])
        self.is_chunked = "Transfer-Encoding" in headers
        self.refused = _why_refused(method, target, version, headers)


def _why_refused(method: str, target: str, version: str, headers: CIMultiDict[str]) -> str | None:
    if "Transfer-Encoding" in headers:
        if version == "1.0":
            return "HTTP/1.0 has no Transfer-Encoding (RFC 9112, section 6.1)"
        codings = ", ".join(headers.getall("Transfer-Encoding"))
        if codings.strip(" \t,").lower() != "chunked":
            return f"the Transfer-Encoding {quoted(codings)} is not supported; use chunked"
    if len(headers.get("Content-Length", "")) > _MOST_DIGITS:
        return f"its Content-Length has more than {_MOST_DIGITS} digits"
    hosts = len(headers.getall("Host", ()))
    if hosts > 1 or (not hosts and version == "1.1"):
        return f"it has {hosts} headers Host, not one (RFC 9112, section 3.2)"
    if target == "*" and method != "OPTIONS":
        return "the target * is only for OPTIONS (RFC 9112, section 3.2.4)"
    return None
