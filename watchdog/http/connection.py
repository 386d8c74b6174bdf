"""Make aiohttp's low-level server strict: bounds for callers, and connections that end without a reset.

This module adds what aiohttp (3.14) does not do:

- It bounds the time that headers may take, and the time for which a caller may read nothing of its answer.
- It bounds the size of a request's first line and headers together. aiohttp limits only each line and their number.
- It finds where a request ends. aiohttp's parser takes the last trailer of a chunked body for a header of the next
  request. It loses bytes that arrive in one segment with a request for an upgrade. It ignores the length of a CONNECT
  and unknown transfer codings. It does not report to a reader that a body is malformed. If the end of a request is not
  certain, the connection is closed after the answer.
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
from .idle_connections import IdleConnections
from .listener import is_readable
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
from .tcp import acknowledged_bytes, has_ended, reset, unacknowledged_bytes

log = get_logger("server")
# Else a browser may run what a script printed as text (WHATWG Fetch, section 3.6).
NO_SNIFFING = ("X-Content-Type-Options", "nosniff")
_END_LOOK_S = 0.5
# After the last answer, for the rest of a body that is refused.
LAST_WORDS_S = 3.0
_HEAD_METHOD = b"HEAD "
_END_OF_CHUNKS = b"\r\n0\r\n\r\n"  # without trailers


class Request(web.BaseRequest):
    """A request whose answer tells browsers to trust its content type, unless the answer says so itself."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        response.headers.setdefault(*NO_SNIFFING)


def make_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    """A request after which the connection is not kept if it is not sure where it ends or what follows it."""
    reason = why_refused(message)
    # aiohttp loses what came in one segment with a request that asks for an upgrade, and ignores the length of CONNECT.
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
    """The answer to a request that the parser let pass although it is malformed, or None."""
    if (reason := request.get("refused")) is None:
        return None
    body = problem_document(400, "Bad request", f"the request is malformed: {reason}")
    return web.Response(status=400, body=body, headers={"Content-Type": PROBLEM_TYPE})


class Connection(RequestHandler):
    """One connection: bounded in time, trusted only as far as it is certain where its requests end."""

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
        self._look_timer: asyncio.TimerHandle | None = None
        self._end_timer: asyncio.TimerHandle | None = None
        self._has_part_of_headers = False
        # aiohttp calls the handler in a task of its own, a turn of the loop after it has made the request.
        self.is_about_to_handle = False
        self._is_half_closed = False
        self._newest: tuple[Any, Any] | None = None
        self._last_bytes = b""
        # Since the last whole head or byte of a body: bytes that came, whether a line ended in them, and how many bytes
        # came together with the end of what was before.
        self._head_bytes = 0
        self._head_start = b""
        self._head_lines = 0
        self._shared_bytes = 0
        self._body_bytes = 0
        self._is_refusing = False
        # Of the newest head, whole or not. aiohttp keeps it until the next request.
        self._head_memory_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(transport, asyncio.Transport)
        # What is written waits until the system has it, so that write_timeout bounds the last bytes, too.
        transport.set_write_buffer_limits(0)
        if self._write_timeout_s:
            self._look(transport, 0, self._loop.time())
        self._start_headers_timer()
        self._idle.look_at(transport.get_extra_info("socket").fileno())
        self._idle.add(self)

    def _look(self, transport: asyncio.Transport, taken_bytes: int, since_s: float) -> None:
        """Now and then, reset a caller that takes nothing of what the system holds for it, even if we are done with it.

        Not with TCP_USER_TIMEOUT: the kernel counts on through the moments in which a slow reader does take something.

        Args:
            taken_bytes, since_s: how much it had taken at the last look at which that was more, and when that was.
        """
        sock = transport.get_extra_info("socket")
        with contextlib.suppress(OSError, ValueError):
            taken = acknowledged_bytes(sock)
            if taken != taken_bytes or not unacknowledged_bytes(sock):
                taken_bytes, since_s = taken, self._loop.time()
            elif self._loop.time() - since_s > self._write_timeout_s:
                reset(sock, transport)
                return
        self._look_timer = self._loop.call_later(self._write_timeout_s / 4, self._look, transport, taken_bytes, since_s)

    def data_received(self, data: bytes) -> None:
        if self._is_half_closed or self._is_refusing:
            # A request that crossed with the close: it cannot be answered, so it must not be begun. Or the rest of one
            # whose headers are too large.
            return
        # After an early answer (413, 429) the rest of its body still comes: that is no next request.
        is_rest_of_body = self.is_lingering
        known = len(self._messages)
        body = None if self._newest is None else self._newest[1]
        super().data_received(data)
        # Also of a body that these bytes have ended.
        has_body_grown = body is not None and body.total_bytes != self._body_bytes
        self._last_bytes = (self._last_bytes + data[-len(_END_OF_CHUNKS) :])[-len(_END_OF_CHUNKS) :]
        new = list(itertools.islice(self._messages, known, None))
        self._distrust(new)
        self._bound_heads(data, new, has_body_grown)
        if self._messages or self._is_handling:
            self._stop_headers_timer()
        elif data and not is_rest_of_body:
            self._has_part_of_headers = True
            self._start_headers_timer()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._idle.discard(self)
        self._stop_headers_timer()
        for timer in (self._look_timer, self._end_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _pause_transport_reading(self) -> None:
        super()._pause_transport_reading()
        if self._end_timer is None:
            self._end_timer = self._loop.call_later(_END_LOOK_S, self._look_for_end)

    def _look_for_end(self) -> None:
        """Now and then, see whether the caller has hung up: what is not read for a time does not tell its end.

        So it is with a classic function that leaves a large body unread, and with a call that waits for its place.
        """
        self._end_timer = None
        if self.transport is None or self.transport.is_closing() or self.transport.is_reading():
            return
        if has_ended(self.transport.get_extra_info("socket")):
            self.transport.close()  # as when its end is read
        else:
            self._end_timer = self._loop.call_later(_END_LOOK_S, self._look_for_end)

    def _distrust(self, new: list[tuple[Any, Any]]) -> None:
        """Two faults of aiohttp's parser: it tells no reader that a body is malformed, and it takes the last trailer of
        a request for a header of the next one, which behind a proxy is another caller's."""
        if new and isinstance(new[-1][0], _ErrInfo):
            if self._newest is not None and not self._newest[1].is_eof():
                self._messages.pop()
                if not self.is_lingering:  # then nobody reads it but to throw it away
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
        # What was found well ended is not looked at again.
        self._newest = parsed[-1] if parsed and not parsed[-1][1].is_eof() else None

    def _bound_heads(self, data: bytes, new: list[tuple[Any, Any]], has_body_grown: bool) -> None:
        """Refuse first lines and headers that are over the limit, whole or not, and trailers and the like."""
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
        # A parser that pauses has not read all the bytes that came.
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
            body.set_exception(PayloadEncodingError(f"more than {MOST_HEAD_BYTES} bytes came that carry no data"))
        body.feed_eof()
        self.close()

    def _bound_part_of_head(self) -> None:
        self._head_memory_bytes = self._head_bytes + self._head_lines * HEADER_MEMORY_BYTES
        has_many_headers = self._head_lines > MOST_HEADERS + 1  # with the first line
        if has_many_headers or self._head_bytes > MOST_HEAD_BYTES:
            is_head = self._head_start == _HEAD_METHOD
            is_first_line = not self._head_lines
            error = HeadTooLarge(is_first_line=is_first_line, is_head=is_head, has_many_headers=has_many_headers)
            self._refuse(error, unread=0)
            return
        self._idle.weigh(self, self._head_memory_bytes)

    def _refuse(self, error: HeadTooLarge, *, unread: int) -> None:
        """Answer the newest requests with this error; discard what still comes, so that no reset loses the answer.

        Args:
            unread: how many of the waiting requests are to get no answer.
        """
        for _ in range(unread):
            self._messages.pop()
        self._is_refusing = True
        self._newest = None
        self.linger(LAST_WORDS_S)
        # A body without end: aiohttp reads it after the answer, until the caller closes or the time is over.
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
            # Also if the rest of a body is still awaited: that may take long, and nobody needs it.
            if self.transport is not None:
                self._idle.add(self)
                self._idle.weigh(self, self._head_memory_bytes)

    def linger(self, limit_s: float) -> None:
        """After the answer, wait no longer than this for the rest of the body."""
        self._lingering_time = limit_s

    @property
    def is_lingering(self) -> bool:
        """Whether its answer is sent and the rest of its body is still awaited."""
        return not self._is_handling and self._waiter is None and self._request_count > 0

    @property
    def _is_handling(self) -> bool:
        return self.is_about_to_handle or self._current_request is not None

    @property
    def has_unsent_bytes(self) -> bool:
        """Whether a part of an answer is still with this process: it would be lost with it."""
        return self.transport is not None and self.transport.get_write_buffer_size() > 0

    @property
    def is_fresh(self) -> bool:
        """Whether it is open and has sent no request yet."""
        return self._request_count == 0 and self.transport is not None and not self.transport.is_closing()

    def close_if_idle(self) -> None:
        # A waiter that is done: its request is there, and handled in the next turn of the loop.
        is_waiting = self._waiter is not None and not self._waiter.done()
        if is_waiting and self._request_count:
            self.half_close()

    def close_if_unused(self, *, also_unread: bool = False) -> bool:
        """Close it at once, because what it takes is needed, unless a request is being answered or is there.

        Args:
            also_unread: also if bytes have come that were not read yet.
        """
        is_used = self._is_handling or bool(self._messages)
        is_used |= not also_unread and not self.is_lingering and self._has_unread_bytes()
        if is_used:
            return False
        if self._has_part_of_headers:
            self._answer_408("the headers were not complete when the server needed the connection for another call")
        self.force_close()
        return True

    def half_close(self) -> None:
        """Send no more, and read until the caller ends too: to close with bytes unread would be a reset.

        Does nothing as long as a request is being answered, or is there to be read.
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
        """The answer to what is no HTTP, and to a defect of this program."""
        title = "Bad request" if status < 500 else "Internal error"
        if isinstance(exc, HeadTooLarge):
            title = "Request line too long" if status == 414 else "Request headers too large"
            detail = exc.message
            # Nothing of the headers: they may hold secrets.
            log.warning("request refused", status=status, reason=detail)
        elif isinstance(exc, ConnectionError):
            # The caller is gone, as the end of its invocation tells: nobody is left to be answered.
            detail = "the connection ended"
        elif status >= 500:
            log.error("internal error", reason=repr(exc), exc_info=exc)
            detail = "the server failed to answer this call; its log tells more"
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


async def say_continue(request: web.BaseRequest) -> None:
    """Ask a caller who waits for it to send the body (RFC 9110, section 10.1.1)."""
    if request.headers.get("Expect") and request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # The interim answer does not count as a part of the answer to come.
        request.writer.output_size = 0


def untaken_bytes(request: web.BaseRequest) -> int:
    """How much of what was sent is with us or in the kernel, not yet acknowledged by the caller."""
    transport = request.transport
    if transport is None:
        return 0
    count: int = transport.get_write_buffer_size()
    with contextlib.suppress(OSError, ValueError):
        count += unacknowledged_bytes(transport.get_extra_info("socket"))
    return count


def abort(request: web.BaseRequest) -> None:
    """Reset the connection: a mere close would still deliver what the kernel holds, as if all were well."""
    if request.transport is not None:
        reset(request.transport.get_extra_info("socket"), request.transport)
