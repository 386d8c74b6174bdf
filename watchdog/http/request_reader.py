"""Read one request from the bytes of a connection: find its head and the exact end of its body.

llhttp, the parser of Node.js, checks the syntax (package httptools). This module gives llhttp no byte beyond the end of
a head or of a chunked body. So no byte of the next request is ever read as a part of this request. The module also
bounds the size of a head, and the number of bytes of a body that carry no data.
"""

from __future__ import annotations

from collections.abc import Callable

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser
from multidict import CIMultiDict

from .request_body import MalformedBody, RequestBody
from .request_head import (
    HEADER_MEMORY_BYTES,
    MOST_HEAD_BYTES,
    MOST_HEADERS,
    VERSIONS,
    Head,
    HeadTooLarge,
    MalformedRequest,
)

_EMPTY_LINE = b"\r\n\r\n"
_HEAD_METHOD = b"HEAD "
_HEAD_OF_CHUNKS = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


class RequestReader:
    """Reads one request.

    Args:
        make_body: called when the head is complete; returns the body that gets the bytes after the head.
    """

    def __init__(self, make_body: Callable[[Head], RequestBody]) -> None:
        self._make_body = make_body
        self._parser: HttpRequestParser | None = HttpRequestParser(self)
        self._end = _EndFinder()
        self._target = b""
        self._headers: list[tuple[str, str]] = []
        self._head: Head | None = None
        self._start = b""
        self._lines = 0
        self._body: RequestBody | None = None
        self._left_bytes = 0
        self._chunks: _Chunks | None = None
        # The bytes of the head that have arrived.
        self.head_bytes = 0

    @property
    def is_complete(self) -> bool:
        return self._body is not None and not self._left_bytes and self._chunks is None

    @property
    def head_memory_bytes(self) -> int:
        """The approximate memory of the head so far, in bytes."""
        return self.head_bytes + self._lines * HEADER_MEMORY_BYTES

    def close(self) -> None:
        """Free the memory of a request that was not read to its end."""
        self._parser = None  # a cycle of references would stay until the next garbage collection
        if self._chunks is not None:
            self._chunks.close()

    def feed(self, data: bytes) -> bytes:
        """Read a part of the request, and return the bytes after its end.

        Raises:
            MalformedRequest: the head violates RFC 9112.
            HeadTooLarge: the head exceeds a limit.
            MalformedBody: the chunks of the body violate RFC 9112. The reader of the body gets this error, too.
        """
        while data and self._body is None:
            data = self._feed_head(data)
        if self._body is None or not data:
            return data
        if self._chunks is not None:
            data = self._chunks.feed(data)
            if self._chunks.is_complete:
                self._chunks = None
                self._body.end()
        elif self._left_bytes:
            piece = data[: self._left_bytes]
            self._left_bytes -= len(piece)
            self._body.feed(piece)
            data = data[len(piece) :]
            if not self._left_bytes:
                self._body.end()
        return data

    def _feed_head(self, data: bytes) -> bytes:
        end = self._end.find(data, 0)
        part = data if end < 0 else data[:end]
        self._bound(part)
        assert self._parser is not None
        try:
            self._parser.feed_data(part)
        except HttpParserUpgrade:
            pass  # the head is complete; the server declines the upgrade by answering in HTTP/1.1
        except HttpParserCallbackError as error:
            raise (error.__context__ or error) from None
        except HttpParserError as error:
            raise MalformedRequest(str(error)) from None
        if self._head is not None:
            if end < 0:
                raise MalformedRequest("a line of the head does not end with CR and LF")
            self._parser = None  # as in close()
            self._begin_body(self._head)
        elif self._lines > MOST_HEADERS + 1:  # `_lines` also counts the first line
            raise self._too_large(has_many_headers=True)
        return b"" if end < 0 else data[end:]

    def _bound(self, part: bytes) -> None:
        before = self.head_bytes
        self.head_bytes += len(part)
        if len(self._start) < len(_HEAD_METHOD):
            self._start = (self._start + part)[: len(_HEAD_METHOD)]
        # The empty line at the end does not count.
        if self.head_bytes > MOST_HEAD_BYTES + 2:
            is_first_line = not self._lines and b"\n" not in part[: MOST_HEAD_BYTES + 1 - before]
            raise self._too_large(is_first_line=is_first_line)
        self._lines += part.count(b"\n")

    def _too_large(self, *, is_first_line: bool = False, has_many_headers: bool = False) -> HeadTooLarge:
        is_head = self._start == _HEAD_METHOD
        return HeadTooLarge(is_first_line=is_first_line, is_head=is_head, has_many_headers=has_many_headers)

    def _begin_body(self, head: Head) -> None:
        if len(self._headers) > MOST_HEADERS:
            raise self._too_large(has_many_headers=True)
        self._body = self._make_body(head)
        self._head = None  # free the headers now: the body may take a long time to arrive
        self._headers = []
        # If the end of the request is not certain, no byte after its head is read.
        if head.refused is not None or head.method == "CONNECT":
            self._body.end()
        elif head.is_chunked:
            self._chunks = _Chunks(self._body)
        elif head.content_length:
            self._left_bytes = head.content_length
        else:
            self._body.end()

    # ---- called by the parser

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        # The parser removes spaces and tabs before a value, but not after it (RFC 9110, section 5.5).
        value = value.rstrip(b" \t")
        self._headers.append((name.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape")))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        if self._parser.get_http_version() not in VERSIONS:
            raise MalformedRequest("its version is neither HTTP/1.1 nor HTTP/1.0")
        self._head = Head(
            method=self._parser.get_method().decode(),
            target=self._target.decode("utf-8", "surrogateescape"),
            version=self._parser.get_http_version(),
            headers=CIMultiDict(self._headers),
            keep_alive=self._parser.should_keep_alive(),
        )


class _Chunks:
    """Reads a chunked body. Trailers are checked and discarded.

    The body has a parser of its own: the parser of the head would stop if the request also asks for an upgrade.
    """

    def __init__(self, body: RequestBody) -> None:
        self._body = body
        self._end = _EndFinder()
        self._bytes_without_data = 0
        self.is_complete = False
        self._parser: HttpRequestParser | None = HttpRequestParser(self)
        self._parser.feed_data(_HEAD_OF_CHUNKS)

    def feed(self, data: bytes) -> bytes:
        """Read a part of the body, and return the bytes after its end.

        Raises:
            MalformedBody: the bytes are not a chunked body, or too many of them carry no data.
        """
        begin = 0
        while begin < len(data) and not self.is_complete:
            # The last chunk and the trailers end with an empty line. Data may have empty lines, too.
            end = self._end.find(data, begin)
            if end < 0:
                end = len(data)
            total_bytes = self._body.total_bytes
            assert self._parser is not None
            try:
                self._parser.feed_data(data[begin:end])
            except HttpParserError as error:
                raise MalformedBody(str(error)) from None
            self._bytes_without_data += end - begin
            if self._body.total_bytes > total_bytes:
                self._bytes_without_data = 0
            if self._bytes_without_data > MOST_HEAD_BYTES:
                raise MalformedBody(f"more than {MOST_HEAD_BYTES} bytes arrived that carry no data")
            begin = end
        if self.is_complete:
            self.close()
        return data[begin:]

    def close(self) -> None:
        self._parser = None  # as in RequestReader

    # ---- called by the parser

    def on_body(self, piece: bytes) -> None:
        self._body.feed(piece)

    def on_message_complete(self) -> None:
        self.is_complete = True


class _EndFinder:
    """Finds the end of an empty line in bytes that arrive in pieces."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b""

    def find(self, data: bytes, begin: int) -> int:
        """Return the position after the next empty line, or -1. The line may have begun before ``data``.

        Args:
            begin: the position in ``data`` up to which earlier calls have searched. Bytes are searched once.
        """
        tail, self._tail = self._tail, b""
        if tail:
            at = (tail + data[:3]).find(_EMPTY_LINE)
            if at >= 0:
                return at + len(_EMPTY_LINE) - len(tail)
        at = data.find(_EMPTY_LINE, begin)
        if at >= 0:
            return at + len(_EMPTY_LINE)
        self._tail = (tail + data[begin:][-3:])[-3:]
        return -1
