"""Requests and responses, as the connection passes them to handlers and gets them back."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Protocol

from multidict import CIMultiDict

from ..invocation.pace import Pace
from .request_body import RequestBody
from .request_head import Head

# With this header, no browser runs text that a script printed (WHATWG Fetch, section 3.6).
_NO_SNIFFING = "X-Content-Type-Options: nosniff\r\n"
_SERVER = "Server: oscar-watchdog\r\n"
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Caller(Protocol):
    """A connection, as the handler of a request sees it."""

    @property
    def is_open(self) -> bool: ...

    @property
    def is_blocked(self) -> bool: ...

    def begin_answer(self, request: Request, response: Response) -> bytes: ...

    def write(self, data: bytes | memoryview) -> None: ...

    async def until_written(self) -> None: ...

    def unread_bytes(self) -> int: ...

    def linger(self, limit_s: float) -> None: ...

    def reset(self) -> None: ...


class Request:
    """A request whose head is complete. Its body may still be arriving.

    Args:
        content: the body.
    """

    __slots__ = (
        "_has_continued",
        "_query",
        "connection",
        "content",
        "content_length",
        "headers",
        "is_chunked",
        "is_http_1_0",
        "method",
        "pace",
        "path",
        "query_string",
        "raw_path",
        "refused",
        "sent_bytes",
    )

    def __init__(self, connection: Caller, head: Head, content: RequestBody) -> None:
        self.connection = connection
        self.content = content
        self.method = head.method
        self.headers = head.headers
        self.content_length = head.content_length
        self.is_chunked = head.is_chunked
        self.is_http_1_0 = head.is_http_1_0
        self.refused = head.refused
        # The target of a request through a proxy may be a whole URL (RFC 9112, section 3.2.2).
        target = head.target if head.target.startswith("/") else _without_authority(head.target)
        # The path and the query, as the caller sent them.
        self.raw_path, _, self.query_string = target.partition("?")
        self.path = self.raw_path
        if "%" in self.path:
            from urllib.parse import unquote

            self.path = unquote(self.path)
        self._query: dict[str, str] | None = None
        self._has_continued = False
        # How fast the caller reads its answer, if the server has waited for the caller.
        self.pace: Pace | None = None
        # The number of bytes of the answer that the server has given to the connection.
        self.sent_bytes = 0

    @property
    def has_body(self) -> bool:
        return self.is_chunked or bool(self.content_length)

    def send_continue(self) -> None:
        """Send "100 Continue" if the caller waits for it before it sends the body (RFC 9110, section 10.1.1).

        Repeating this has no effect.
        """
        if not self._has_continued and "Expect" in self.headers and not self.is_http_1_0:
            self.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._has_continued = True

    @property
    def query(self) -> dict[str, str]:
        """The parameters of the query. If a name occurs several times, the first value counts."""
        if self._query is None:
            self._query = {}
            if self.query_string:
                from urllib.parse import parse_qsl

                self._query = dict(reversed(parse_qsl(self.query_string, keep_blank_values=True)))
        return self._query


class Response:
    """A response.

    Args:
        length: the number of bytes of the body; by default, the length of ``body``. If the body is sent in pieces,
            ``body`` is empty.
        must_close: the connection is closed after this response.
        has_length: False if the length of the body is not known yet. Its pieces are then sent as chunks (RFC 9112,
            section 7.1), or end with the connection in HTTP/1.0.
    """

    __slots__ = ("body", "has_length", "headers", "length", "must_close", "status")

    def __init__(
        self,
        status: int,
        headers: Iterable[tuple[str, str]] | CIMultiDict[str] = (),
        body: bytes = b"",
        *,
        length: int | None = None,
        must_close: bool = False,
        has_length: bool = True,
    ) -> None:
        self.status = status
        self.headers = headers if isinstance(headers, CIMultiDict) else CIMultiDict(headers)
        self.body = body
        self.length = len(body) if length is None else length
        self.must_close = must_close
        self.has_length = has_length

    @classmethod
    def of_text(cls, status: int, text: str, headers: Iterable[tuple[str, str]] = ()) -> Response:
        return cls(status, [("Content-Type", "text/plain; charset=utf-8"), *headers], text.encode())

    def head(self, *, is_http_1_0: bool, keep_alive: bool) -> bytes:
        """Return the first line and the headers.

        Args:
            keep_alive: whether the connection is kept open after this response.

        Raises:
            ValueError: a header has a character that would end its line.
        """
        version = "1.0" if is_http_1_0 else "1.1"
        lines = [f"HTTP/{version} {_STATUS_LINES.get(self.status) or f'{self.status} '}\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in self.headers.items()]
        # Responses with these statuses have no body. In a 304, Content-Length would be the length of the answer that
        # the caller already has (RFC 9110, 8.6).
        if not self.has_length:
            lines += [] if is_http_1_0 else ["Transfer-Encoding: chunked\r\n"]
        elif self.status not in _WITHOUT_LENGTH:
            lines.append(f"Content-Length: {self.length}\r\n")
        if "Connection" not in self.headers and keep_alive == is_http_1_0:
            lines.append("Connection: keep-alive\r\n" if keep_alive else "Connection: close\r\n")
        if "X-Content-Type-Options" not in self.headers:
            lines.append(_NO_SNIFFING)
        lines += [_date_line(int(time.time())), _SERVER, "\r\n"]
        text = "".join(lines)
        # Some parts of headers come from scripts and callers. Such a part must not begin a new line.
        if text.count("\n") != len(lines) or text.count("\r") != len(lines) or "\0" in text:
            raise ValueError(f"a header of the answer contains a line end or a NUL: {dict(self.headers)!r}")
        return text.encode("utf-8", "surrogateescape")


_WITHOUT_LENGTH = (HTTPStatus.NO_CONTENT.value, HTTPStatus.NOT_MODIFIED.value)
_STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}


@functools.lru_cache(maxsize=1)
def _date_line(time_s: int) -> str:
    """Return the header with the time, in the form of RFC 9110, section 5.6.7, whatever the locale is."""
    year, month, day, hour, minute, second, weekday, *_ = time.gmtime(time_s)
    return f"Date: {_WEEKDAYS[weekday]}, {day:02} {_MONTHS[month - 1]} {year} {hour:02}:{minute:02}:{second:02} GMT\r\n"


def _without_authority(target: str) -> str:
    """Return the path and the query of a URL; other targets (``*``, or host and port) as they are."""
    _, separator, rest = target.partition("://")
    if not separator:
        return target
    begin = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    path = rest[begin:]
    return path if path.startswith("/") else f"/{path}"
