"""Add strict bounds to aiohttp's low-level server, and close connections without a reset.

This module adds what aiohttp (3.14) does not do:

- It bounds the time until the headers are complete. It also disconnects a caller that stops reading its answer.
- It bounds the size of a request's first line and headers together. aiohttp limits only the size of each line and the
  number of lines.
- It checks where a request ends, because aiohttp's parser has several faults. The parser reads the last trailer of a
  chunked body as a header of the next request. It loses bytes that arrive in one segment with a request for an upgrade.
  It ignores the length of a CONNECT and unknown transfer codings. It does not report a malformed body to the reader of
  the body. If the end of a request is not certain, the connection is closed after the answer.
- It sends errors as ``application/problem+json`` (RFC 9457).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Any

from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.http_exceptions import PayloadEncodingError
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from ..logs.setup import get_logger
from ..system.tcp import acknowledged_bytes, has_ended, is_readable, reset, unacknowledged_bytes
from .idle_connections import IdleConnections
from .problem_document import PROBLEM_TYPE, problem_document
from .request_head import (
    HEADER_MEMORY_BYTES,
    MOST_HEAD_BYTES,
    MOST_HEADERS,
    HeadTooLarge,
    head_too_large,
    memory_of_head,
    why_refused,
)

log = get_logger("server")
# Without this header, a browser may run text that a script printed (WHATWG Fetch, section 3.6).
NO_SNIFFING = ("X-Content-Type-Options", "nosniff")
# While the server does not read from a connection, it checks at this interval whether the caller has closed its side.
_END_CHECK_S = 0.5
# If the head of a request is too large or the server drains, the server reads and discards the rest of the request for
# at most this time after the answer. A reset could make the caller lose the answer.
SHORT_LINGER_S = 3.0
_HEAD_METHOD = b"HEAD "
_END_OF_CHUNKS = b"\r\n0\r\n\r\n"  # without trailers


class Request(web.BaseRequest):
    """A request. Its answer gets the header that makes browsers trust the content type (:data:`NO_SNIFFING`)."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        response.headers.setdefault(*NO_SNIFFING)


def make_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    """Return a request. If the end of the request is not certain, the connection is closed after the answer."""
    reason = why_refused(message)
    # aiohttp loses bytes that arrive in one segment with a request for an upgrade, and ignores the length of a CONNECT.
    if reason or message.upgrade or message.method == "CONNECT":
        message = message._replace(should_close=True)
    if message.version not in (HttpVersion10, HttpVersion11):
        message = message._replace(version=HttpVersion11)
    if isinstance(protocol, Connection):
        protocol.begin_request()
    request = Request(message, payload, protocol, writer, task, protocol._loop)
    if reason:
        request["refused"] = reason
    return request


def refusal_of(request: web.BaseRequest) -> web.Response | None:
    """Return the error for a malformed request that aiohttp's parser has accepted. Otherwise return None."""
    if (reason := request.get("refused")) is None:
        return None
    body = problem_document(400, "Bad request", f"the request is malformed: {reason}")
    return web.Response(status=400, body=body, headers={"Content-Type": PROBLEM_TYPE})


class Connection(RequestHandler):
    """A connection with bounds for slow callers. It is closed as soon as the end of a request is not certain."""

    def __init__(
        self,
        server: web.Server,
        *,
        idle: IdleConnections,
        read_timeout_s: float,
        write_timeout_s: float,
        **options: Any,
    ) -> None:
        super().__init__(server, **options)
        self._idle = idle
        self._headers_timeout_s = read_timeout_s
        self._write_timeout_s = write_timeout_s
        self._headers_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._end_timer: asyncio.TimerHandle | None = None
        self._has_part_of_headers = False
        # aiohttp calls the handler in another task, one turn of the event loop after it has created the request.
        self.is_about_to_handle = False
        self._is_half_closed = False
        self._newest: tuple[Any, Any] | None = None
        self._last_bytes = b""
        # These three describe the bytes that arrived after the last complete head or the last byte of a body: their
        # number, the first few of them, and the number of line ends in them.
        self._head_bytes = 0
        self._head_start = b""
        self._head_lines = 0
        # The size of the segment in which that head or byte arrived. The segment may end with a part of the next head.
        self._shared_bytes = 0
        self._body_bytes = 0
        self._is_refusing = False
        # The memory of the newest head, complete or not. aiohttp keeps the head until the next request.
        self._head_memory_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(transport, asyncio.Transport)
        # With this, a write waits until the kernel has all its bytes. So write_timeout applies to the last bytes, too.
        transport.set_write_buffer_limits(0)
        if self._write_timeout_s:
            self._reset_if_stalled(transport, 0, self._loop.time())
        self._start_headers_timer()
        self._idle.note_new(transport.get_extra_info("socket").fileno())
        self._idle.add(self)

    def _reset_if_stalled(self, transport: asyncio.Transport, read_bytes: int, since_s: float) -> None:
        """Check regularly whether the caller reads the bytes that the kernel has for it. If not, reset the connection.

        This also ends connections for which aiohttp has finished its work. TCP_USER_TIMEOUT cannot be used: the kernel
        does not restart that timeout when a slow reader reads a few bytes.

        Args:
            read_bytes: the number of bytes that the caller had read at the last check that showed progress.
            since_s: the time of that check.
        """
        sock = transport.get_extra_info("socket")
        with contextlib.suppress(OSError, ValueError):
            now_read_bytes = acknowledged_bytes(sock)
            if now_read_bytes != read_bytes or not unacknowledged_bytes(sock):
                read_bytes, since_s = now_read_bytes, self._loop.time()
            elif self._loop.time() - since_s > self._write_timeout_s:
                reset(sock, transport)
                return
        self._stall_timer = self._loop.call_later(
            self._write_timeout_s / 4, self._reset_if_stalled, transport, read_bytes, since_s
        )

    def data_received(self, data: bytes) -> None:
        if self._is_half_closed or self._is_refusing:
            # Discard a request that arrives after the server has closed its side: it cannot be answered, so its script
            # must not run. Also discard the rest of a request whose head is too large.
            return
        # After an early answer (413, 429), the rest of the body still arrives. It is not the start of a new request.
        is_rest_of_body = self.is_lingering
        known = len(self._messages)
        body = None if self._newest is None else self._newest[1]
        super().data_received(data)
        # A body whose last bytes have just arrived has grown, too.
        has_body_grown = body is not None and body.total_bytes != self._body_bytes
        self._last_bytes = (self._last_bytes + data[-len(_END_OF_CHUNKS) :])[-len(_END_OF_CHUNKS) :]
        new = list(itertools.islice(self._messages, known, None))
        self._check_ends(new)
        self._bound_heads(data, new, has_body_grown)
        if self._messages or self._is_handling:
            self._stop_headers_timer()
        elif data and not is_rest_of_body:
            self._has_part_of_headers = True
            self._start_headers_timer()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._idle.discard(self)
        self._stop_headers_timer()
        for timer in (self._stall_timer, self._end_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _pause_transport_reading(self) -> None:
        super()._pause_transport_reading()
        if self._end_timer is None:
            self._end_timer = self._loop.call_later(_END_CHECK_S, self._check_for_end)

    def _check_for_end(self) -> None:
        """While the server does not read from the connection, check regularly whether the caller has closed its side.

        During this time asyncio does not notice the end of the connection. The server does not read while a classic
        function does not read a large body, or while a call waits for its place.
        """
        self._end_timer = None
        if self.transport is None or self.transport.is_closing() or self.transport.is_reading():
            return
        if has_ended(self.transport.get_extra_info("socket")):
            self.transport.close()  # as asyncio does when it reads the end of the stream
        else:
            self._end_timer = self._loop.call_later(_END_CHECK_S, self._check_for_end)

    def _check_ends(self, new: list[tuple[Any, Any]]) -> None:
        """Work around two faults of aiohttp's parser.

        The parser does not report a malformed body to the reader of the body. And it reads the last trailer of a
        request as a header of the next request, which may be from another caller if there is a proxy.
        """
        if new and isinstance(new[-1][0], _ErrInfo):
            if self._newest is not None and not self._newest[1].is_eof():
                self._messages.pop()
                if not self.is_lingering:  # a lingering body is only discarded, so its reader needs no error
                    self._newest[1].set_exception(new[-1][0].exc)
                self._newest[1].feed_eof()
                self.close()
            return
        parsed = new if self._newest is None else [self._newest, *new]
        for position, (message, payload) in enumerate(parsed):
            if not message.chunked or not payload.is_eof():
                continue
            later = len(parsed) - 1 - position
            if later or self._last_bytes != _END_OF_CHUNKS:
                for _ in range(later):
                    self._messages.pop()
                self.close()
                break
        # A request whose end has been checked is not checked again.
        self._newest = parsed[-1] if parsed and not parsed[-1][1].is_eof() else None

    def _bound_heads(self, data: bytes, new: list[tuple[Any, Any]], has_body_grown: bool) -> None:
        """Reject heads that exceed a limit, even if they are not complete yet.

        Also reject bodies with too many bytes that carry no data, such as trailers.
        """
        count = len(data)
        has_many_headers = False
        for message, _ in new:
            self._head_memory_bytes = 0 if isinstance(message, _ErrInfo) else memory_of_head(message)
            has_many_headers |= self._head_memory_bytes > MOST_HEADERS * HEADER_MEMORY_BYTES
        may_be_over = self._shared_bytes + self._head_bytes + count > MOST_HEAD_BYTES
        if may_be_over or has_many_headers:
            for position, (message, _) in enumerate(new):
                if not isinstance(message, _ErrInfo) and (error := head_too_large(message)) is not None:
                    self._refuse(error, unread=len(new) - position)
                    return
        body = None if self._newest is None else self._newest[1]
        self._body_bytes = 0 if body is None else body.total_bytes
        # If the parser pauses, it has not read all bytes that have arrived.
        if new or has_body_grown or self._reading_paused or self._buffer_paused or self._upgraded:
            self._shared_bytes = count or self._shared_bytes
            self._head_bytes = 0
            self._head_start = b""
            self._head_lines = 0
            return
        self._head_bytes += count
        if len(self._head_start) < len(_HEAD_METHOD):
            self._head_start = (self._head_start + data)[: len(_HEAD_METHOD)]
        self._head_lines += data.count(b"\n")
        if body is None:
            self._bound_part_of_head()
            return
        if self._head_bytes <= MOST_HEAD_BYTES:
            return
        if not self.is_lingering:
            body.set_exception(PayloadEncodingError(f"more than {MOST_HEAD_BYTES} bytes arrived that carry no data"))
        body.feed_eof()
        self.close()

    def _bound_part_of_head(self) -> None:
        self._head_memory_bytes = self._head_bytes + self._head_lines * HEADER_MEMORY_BYTES
        has_many_headers = self._head_lines > MOST_HEADERS + 1  # one more for the first line
        if has_many_headers or self._head_bytes > MOST_HEAD_BYTES:
            is_head = self._head_start == _HEAD_METHOD
            is_first_line = not self._head_lines
            error = HeadTooLarge(is_first_line=is_first_line, is_head=is_head, has_many_headers=has_many_headers)
            self._refuse(error, unread=0)
            return
        self._idle.note_head_memory(self, self._head_memory_bytes)

    def _refuse(self, error: HeadTooLarge, *, unread: int) -> None:
        """Answer the newest request with this error, and discard all later bytes.

        The bytes are read so that the caller does not lose the answer because of a reset.

        Args:
            unread: the number of waiting requests that are replaced by this error.
        """
        for _ in range(unread):
            self._messages.pop()
        self._is_refusing = True
        self._newest = None
        self.linger(SHORT_LINGER_S)
        # This body never ends. After the answer, aiohttp reads it until the caller closes its side or the time is over.
        rest = StreamReader(self, 0, loop=self._loop)
        self._messages.append((_ErrInfo(status=error.code, exc=error, message=error.message), rest))
        self._request_count += 1
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def begin_request(self) -> None:
        self.is_about_to_handle = True
        self._idle.discard(self)

    async def _handle_request(self, *arguments: Any) -> Any:
        self.is_about_to_handle = False
        try:
            return await super()._handle_request(*arguments)
        finally:
            # The connection counts as idle even if the rest of a body is still arriving. That may take long, and the
            # rest is only discarded.
            if self.transport is not None:
                self._idle.add(self)
                self._idle.note_head_memory(self, self._head_memory_bytes)

    def linger(self, limit_s: float) -> None:
        """Wait at most ``limit_s`` for the rest of the body after the answer."""
        self._lingering_time = limit_s

    @property
    def is_lingering(self) -> bool:
        """Whether the answer is sent and the rest of the body is still being read and discarded."""
        return not self._is_handling and self._waiter is None and self._request_count > 0

    @property
    def _is_handling(self) -> bool:
        return self.is_about_to_handle or self._current_request is not None

    @property
    def has_unsent_bytes(self) -> bool:
        """Whether a part of an answer is still in this process. It would be lost if the process ended now."""
        return self.transport is not None and self.transport.get_write_buffer_size() > 0

    @property
    def is_fresh(self) -> bool:
        """Whether the connection is open and no request has arrived on it yet."""
        return self._request_count == 0 and self.transport is not None and not self.transport.is_closing()

    def close_if_idle(self) -> None:
        # If the waiter is done, a request has arrived. It is handled in the next turn of the event loop.
        is_waiting = self._waiter is not None and not self._waiter.done()
        if is_waiting and self._request_count:
            self.half_close()

    def close_if_unused(self, *, also_unread: bool = False) -> bool:
        """Close the connection at once, unless it has a request. Return whether it was closed.

        This frees its descriptor and its memory for other calls.

        Args:
            also_unread: close the connection even if bytes have arrived that the server has not read yet.
        """
        is_used = self._is_handling or bool(self._messages)
        is_used |= not also_unread and not self.is_lingering and self._has_unread_bytes()
        if is_used:
            return False
        if self._has_part_of_headers:
            self._answer_408("the headers were not complete when the server needed the resources for another call")
        self.force_close()
        return True

    def half_close(self) -> None:
        """Close the server's side, and read until the caller closes its side, too.

        If the server closed a connection with unread bytes, the kernel would reset it. Do nothing as long as a request
        is being answered or has arrived.
        """
        is_busy = self._is_handling or bool(self._messages) or self._has_unread_bytes()
        if self._is_half_closed or is_busy or self.is_lingering:
            return
        if self.transport is not None and not self.transport.is_closing():
            self._is_half_closed = True
            self.transport.write_eof()
            self.transport.resume_reading()

    def _has_unread_bytes(self) -> bool:
        if self.transport is None or self.transport.is_closing():
            return False
        return is_readable(self.transport.get_extra_info("socket"))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the answer to malformed HTTP, or to a request that fails because of a defect in this program."""
        title = "Bad request" if status < 500 else "Internal error"
        if isinstance(exc, HeadTooLarge):
            title = "Request line too long" if status == 414 else "Request headers too large"
            detail = exc.message
            # The log must not have any headers, because they may have secrets.
            log.warning("request refused", status=status, reason=detail)
        elif isinstance(exc, ConnectionError):
            # The caller has disconnected, and the event at the end of its invocation says so. No answer can be sent.
            detail = "the connection ended"
        elif status >= 500:
            log.error("internal error", reason=repr(exc), exc_info=exc)
            detail = "the server failed to answer this call; see its log for the reason"
        else:
            detail = f"the request is malformed: {(message or str(exc)).splitlines()[0]}"
        body = problem_document(status, title, detail)
        if isinstance(exc, HeadTooLarge) and exc.is_head:
            body = b""
        response = web.Response(status=status, body=body, headers={"Content-Type": PROBLEM_TYPE})
        response.force_close()
        return response

    def _start_headers_timer(self) -> None:
        if self._headers_timer is None and self._headers_timeout_s:
            self._headers_timer = self._loop.call_later(self._headers_timeout_s, self._headers_too_slow)

    def _stop_headers_timer(self) -> None:
        self._has_part_of_headers = False
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None

    def _headers_too_slow(self) -> None:
        self._headers_timer = None
        if self._has_part_of_headers:
            self._answer_408(f"the headers were not complete after {self._headers_timeout_s:g} s (read_timeout)")
        self.force_close()

    def _answer_408(self, detail: str) -> None:
        if self.transport is not None:
            body = problem_document(408, "Request timed out", detail)
            self.transport.write(
                b"HTTP/1.1 408 Request Timeout\r\nContent-Type: %b\r\nX-Content-Type-Options: nosniff\r\n"
                b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (PROBLEM_TYPE.encode(), len(body), body)
            )


async def send_continue(request: web.BaseRequest) -> None:
    """Send "100 Continue" if the caller waits for it before it sends the body (RFC 9110, section 10.1.1)."""
    if request.headers.get("Expect") and request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # The interim answer does not count as a part of the final answer.
        request.writer.output_size = 0


def unread_bytes(request: web.BaseRequest) -> int:
    """Return the number of bytes that were sent to the caller, but that the caller has not acknowledged yet.

    They are in this process or in the kernel.
    """
    transport = request.transport
    if transport is None:
        return 0
    count: int = transport.get_write_buffer_size()
    with contextlib.suppress(OSError, ValueError):
        count += unacknowledged_bytes(transport.get_extra_info("socket"))
    return count


def abort(request: web.BaseRequest) -> None:
    """Reset the connection. A normal close would still deliver the bytes in the kernel, as if nothing had failed."""
    if request.transport is not None:
        reset(request.transport.get_extra_info("socket"), request.transport)
