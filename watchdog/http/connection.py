"""One connection: read its requests one after the other, disconnect slow callers, and close without losing an answer.

::

    new --> waits for a head --> answers a request --> reads the rest of its body --> waits for a head
                    |                                               |
                    +--> discards what arrives until the caller closes its side <--+

- A request is read only when the one before it is answered. Until then its bytes wait.
- If the server closes a connection while bytes from the caller are unread, the kernel resets the connection, and the
  caller may lose the answer. So the server closes its own side first. Then it discards bytes until the caller has
  closed its side, too, but only for a limited time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from ..logs.setup import get_logger
from ..system.tcp import acknowledged_bytes, has_ended, is_readable, reset, unacknowledged_bytes
from .http_message import Request, Response
from .idle_connections import IdleConnections
from .problem_document import PROBLEM_TYPE, problem_document
from .request_body import MalformedBody, RequestBody
from .request_head import Head, HeadTooLarge, MalformedRequest
from .request_reader import RequestReader

if TYPE_CHECKING:
    from .cors import Cors

log = get_logger("server")
# While the server does not read from a connection, it checks at this interval whether the caller has closed its side.
_END_CHECK_S = 0.5
# After an answer, the server discards further bytes of the caller for at most this time. This limit applies if the head
# of the request was refused, if the server closes the connection, and during a drain.
SHORT_LINGER_S = 3.0
# If a caller is answered before its body is complete (401, 413, 429), the server reads and discards the rest for this
# time. A reset could make the caller lose the answer.
LINGER_S = 30.0
# Proxies close their idle connections much earlier (Knative's queue-proxy: after 90 s). If the server closes a
# connection while a POST is on its way, the proxy does not send this POST again.
KEEP_ALIVE_S = 3600.0
# Before Python 3.12, a new task begins one turn of the event loop later.
_begin_task: Callable[..., asyncio.Task[None]] = asyncio.Task
if sys.version_info >= (3, 12):
    _begin_task = functools.partial(asyncio.Task, eager_start=True)

Handler = Callable[[Request], Awaitable[object]]


class Connection(asyncio.Protocol):
    """A connection.

    Args:
        handler: answers a request. If the caller disconnects, the handler is cancelled.
        idle: the idle connections of this process.
        connections: contains this connection as long as it is open.
        read_timeout_s: the longest time until the headers of a request are complete; 0 means no limit.
        write_timeout_s: a caller that reads no byte for this time is disconnected; 0 means no limit.
        cors: adds the headers for web pages to each answer; None if no page of another origin may call.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        idle: IdleConnections,
        connections: set[Connection],
        read_timeout_s: float,
        write_timeout_s: float,
        cors: Cors | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._handler = handler
        self._idle = idle
        self._connections = connections
        self._read_timeout_s = read_timeout_s
        self._write_timeout_s = write_timeout_s
        self._cors = cors
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._reader: RequestReader | None = None
        # The body of the current request, until it is complete and the request is answered.
        self._body: RequestBody | None = None
        self._request: Request | None = None  # the current request, until its handler is started
        self._task: asyncio.Task[None] | None = None
        self._requests = 0
        # The bytes after the end of the current request.
        self._next_bytes = b""
        self._is_answered = False
        self._keeps_open = True
        # Whether the caller has said that it sends nothing after the current request.
        self._is_last = False
        self._is_discarding = False
        self._is_reading = True
        self._is_half_closed = False
        self._reset_reason: str | None = None
        self._linger_s = LINGER_S
        self._writable: asyncio.Future[bool] | None = None  # the result: the kernel has taken all bytes
        self._head_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._end_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._idle_since_s = 0.0

    # ---- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._connections.add(self)
        self._transport = transport
        self._socket = sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # With this, a write waits until the kernel has all its bytes. So write_timeout applies to the last bytes, too.
        transport.set_write_buffer_limits(0)
        if self._write_timeout_s:
            self._reset_if_stalled(0, self._loop.time())
        self._start_head_timer()
        self._close_if_long_idle()
        self._idle.note_new(sock.fileno())
        self._begin_waiting()

    def data_received(self, data: bytes) -> None:
        if self._is_discarding:
            return
        if self._body is not None and self._body.is_complete:
            # Bytes of the next request. It is read when the current request is answered.
            self._next_bytes += data
            self._choose_reading()
            return
        self._read(data)

    def eof_received(self) -> None:
        """The caller has closed its side. asyncio then closes the connection, because this method returns None."""

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(True)
        self._writable = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._idle.note_end(self)
        for timer in (self._head_timer, self._linger_timer, self._stall_timer, self._end_timer, self._idle_timer):
            if timer is not None:
                timer.cancel()
        self._transport = None
        lost = ConnectionResetError("the connection ended")
        if self._body is not None:
            self._body.end(lost)
        # The body and the request refer to this connection. Without these cycles, the memory is freed at once.
        self._body = self._request = None
        self._forget_reader()
        if self._writable is not None and not self._writable.done():
            # Not an exception: Python 3.14 reports it as an error of the program if no task waits for it any more.
            self._writable.set_result(False)
        if self._task is not None:
            self._task.cancel(self._reset_reason)

    # ---- read requests

    def _read(self, data: bytes) -> None:
        if self._reader is None:
            # Some callers send an empty line after a body. It does not begin a request (RFC 9112, section 2.2).
            data = data.lstrip(b"\r\n")
            if not data:
                self._choose_reading()
                return
            self._reader = RequestReader(self._begin_request)
        try:
            self._next_bytes = self._reader.feed(data)
        except MalformedBody as error:
            assert self._body is not None
            self._body.end(error)
            self._discard()
            if self._is_answered:
                self._close_own_side()
        except (MalformedRequest, HeadTooLarge) as error:
            self._refuse(error)
            return
        if self._body is None:
            self._idle.note_head_memory(self, self._reader.head_memory_bytes)
            self._start_head_timer()
        elif self._request is not None:
            request, self._request = self._request, None
            self._start_handler(request)
        elif self._is_answered and self._body.is_complete:
            self._end_request()
        self._choose_reading()

    def _begin_request(self, head: Head) -> RequestBody:
        self._stop_head_timer()
        self._idle.discard(self)
        self._requests += 1
        self._body = body = RequestBody(self._choose_reading)
        self._request = Request(self, head, body)
        self._is_answered = False
        self._linger_s = LINGER_S
        # If the end of the request is not certain, nothing after it is read.
        is_end_certain = head.refused is None and head.method != "CONNECT"
        self._keeps_open = is_end_certain and head.keep_alive
        self._is_last = is_end_certain and not head.keep_alive
        return body

    def _start_handler(self, request: Request) -> None:
        task = _begin_task(self._handle(request), loop=self._loop)
        if not task.done():
            self._task = task

    async def _handle(self, request: Request) -> None:
        try:
            await self._handler(request)
        except ConnectionError:
            self.close()
        except asyncio.CancelledError:
            self.close()
            raise
        except Exception as error:
            log.error("internal error", reason=repr(error), exc_info=error)
            if request.sent_bytes:
                self.reset()  # only this shows the caller that bytes of the answer are missing
            else:
                detail = "the server failed to answer this call; see its log for the reason"
                self._send_problem(500, "Internal error", detail, request=request, has_body=request.method != "HEAD")
                self._keeps_open = False
        finally:
            self._task = None
            self._is_answered = True
            self._finish(request)

    def _finish(self, request: Request) -> None:
        """The answer is sent. If the body is not complete, read and discard the rest of it first."""
        if not self.is_open:
            return
        request.content.discard()
        if request.content.is_complete:
            self._end_request()
            return
        # The rest may take long. So the connection counts as idle.
        self._idle.add(self)
        if self._is_discarding:  # the body is malformed
            self._close_own_side()
        elif not self._linger_s:
            self.close()
        else:
            self._start_linger_timer(self._linger_s)
        self._choose_reading()

    def _end_request(self) -> None:
        """The current request is answered, and its body is complete."""
        self._reader = None
        self._body = None
        self._stop_linger_timer()
        if self._is_last and not self._next_bytes:
            self.close()
            return
        self._begin_waiting()
        if not self._keeps_open:
            self._discard()
            self._close_own_side()
        elif self._next_bytes:
            # Do not call `_read_next` here: with very many small requests, these calls would nest too deeply.
            self._loop.call_soon(self._read_next)
        else:
            self._choose_reading()

    def _read_next(self) -> None:
        if self._transport is not None and not self._is_discarding and self._body is None:
            data, self._next_bytes = self._next_bytes, b""
            self._read(data)

    def _begin_waiting(self) -> None:
        self._idle_since_s = self._loop.time()
        self._idle.add(self)

    def _choose_reading(self) -> None:
        """Read from the connection only if there is room for the bytes. The kernel then slows down the caller."""
        has_room = self._body is None or self._body.has_room
        may_read = self._is_discarding or (has_room and not self._next_bytes)
        if may_read == self._is_reading:
            return
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._is_reading = may_read
        if may_read:
            transport.resume_reading()
            return
        transport.pause_reading()
        if self._end_timer is None:
            self._end_timer = self._loop.call_later(_END_CHECK_S, self._check_for_end)

    def _check_for_end(self) -> None:
        """Check regularly whether the caller has closed its side, while the server does not read from the connection.

        In this state asyncio does not notice the end of the connection. It occurs if a classic function does not read a
        large body, and if a call waits for its place.
        """
        self._end_timer = None
        if self._transport is None or self._transport.is_closing() or self._is_reading:
            return
        if self._socket is not None and has_ended(self._socket):
            self._transport.close()  # as asyncio does when it reads the end of the stream
        else:
            self._end_timer = self._loop.call_later(_END_CHECK_S, self._check_for_end)

    # ---- refuse requests

    def _refuse(self, error: MalformedRequest | HeadTooLarge) -> None:
        """Answer a head that is malformed or too large, and discard all that follows."""
        self._stop_head_timer()
        if isinstance(error, HeadTooLarge):
            # The log must not have any headers, because they may have secrets.
            log.warning("request refused", status=error.status, reason=str(error))
            self._send_problem(error.status, error.title, str(error), has_body=not error.is_head)
        else:
            self._send_problem(400, "Bad request", f"the request is malformed: {error}")
        self._discard()
        self._close_own_side()

    def _start_head_timer(self) -> None:
        if self._head_timer is None and self._read_timeout_s:
            self._head_timer = self._loop.call_later(self._read_timeout_s, self._head_too_slow)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_too_slow(self) -> None:
        self._head_timer = None
        self._answer_408_to_part(f"the headers were not complete after {self._read_timeout_s:g} s (read_timeout)")
        self.close()

    def _answer_408_to_part(self, detail: str) -> None:
        """Answer 408 if a part of a head has arrived."""
        if self._reader is not None and self._body is None:
            self._send_problem(408, "Request timed out", detail)

    def _send_problem(
        self, status: int, title: str, detail: str, *, request: Request | None = None, has_body: bool = True
    ) -> None:
        """Send an answer that needs no handler. The connection is closed after it.

        Args:
            request: None if the server could not read the head of the request.
        """
        if self._transport is None or self._transport.is_closing():
            return
        body = problem_document(status, title, detail)
        response = Response(status, [("Content-Type", PROBLEM_TYPE)], body)
        if self._cors is not None:
            self._cors.add_headers(response, request)
        self._transport.write(response.head(is_http_1_0=False, keep_alive=False) + (body if has_body else b""))

    # ---- send answers

    def begin_answer(self, request: Request, response: Response) -> bytes:
        """Decide whether the connection stays open after this response, and return its head."""
        given = response.headers.get("Connection")
        self._keeps_open = self._keeps_open and not response.must_close and (given or "").lower() != "close"
        if request.is_http_1_0 and not response.has_length:
            self._keeps_open = False  # only the end of the connection shows the end of the body
        # If a caller waits for "100 Continue" and gets another answer, it is free to send its body or not. So the
        # server cannot know where the next request on this connection would begin.
        if not request.content.is_complete and "Expect" in request.headers:
            self._keeps_open = False
        if self._cors is not None:
            self._cors.add_headers(response, request)
        return response.head(is_http_1_0=request.is_http_1_0, keep_alive=self._keeps_open)

    def write(self, data: bytes | memoryview) -> None:
        """Give bytes to the kernel. If it does not take all at once, :attr:`is_blocked` is true.

        Raises:
            ConnectionResetError: the connection has ended.
        """
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the connection ended")
        self._transport.write(data)
        if self._transport.is_closing():  # the caller has reset the connection, so all of these bytes are lost
            raise ConnectionResetError("the connection ended")

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_blocked(self) -> bool:
        """Whether a part of an answer is still in this process. It would be lost if the process ended now."""
        return self._writable is not None

    async def until_written(self) -> None:
        """Wait until the kernel has all bytes.

        Raises:
            ConnectionResetError: the connection has ended.
        """
        if self._writable is not None and not await asyncio.shield(self._writable):
            raise ConnectionResetError("the connection ended")

    def unread_bytes(self) -> int:
        """Return the number of sent bytes that the caller has not acknowledged, in this process or in the kernel."""
        if self._transport is None or self._socket is None:
            return 0
        count: int = self._transport.get_write_buffer_size()
        with contextlib.suppress(OSError, ValueError):
            count += unacknowledged_bytes(self._socket)
        return count

    def _reset_if_stalled(self, read_bytes: int, since_s: float) -> None:
        """Check regularly whether the caller reads the bytes that the kernel has for it. If not, reset the connection.

        This also ends connections whose answer is complete. TCP_USER_TIMEOUT cannot be used: the kernel does not
        restart that timeout when a slow reader reads a few bytes.

        Args:
            read_bytes: the number of bytes that the caller had read at the last check that showed progress.
            since_s: the time of that check.
        """
        assert self._socket is not None
        with contextlib.suppress(OSError, ValueError):
            now_read_bytes = acknowledged_bytes(self._socket)
            if now_read_bytes != read_bytes or not unacknowledged_bytes(self._socket):
                read_bytes, since_s = now_read_bytes, self._loop.time()
            elif self._loop.time() - since_s > self._write_timeout_s:
                self.reset(f"the caller read nothing for {self._write_timeout_s:g} s (write_timeout)")
                return
        self._stall_timer = self._loop.call_later(
            self._write_timeout_s / 4, self._reset_if_stalled, read_bytes, since_s
        )

    # ---- close

    def close(self) -> None:
        """Close the connection when the kernel has all bytes of the answer."""
        if self._transport is not None:
            self._transport.close()

    def reset(self, reason: str | None = None) -> None:
        """End the connection at once. A normal close would still deliver bytes, as if nothing had failed.

        Args:
            reason: is the text of the ``CancelledError`` with which the handler is cancelled.
        """
        self._reset_reason = reason
        if self._transport is not None:
            reset(self._socket, self._transport)

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task that answers the current request."""
        return self._task

    def linger(self, limit_s: float) -> None:
        """Wait at most ``limit_s`` for the rest of the body after the answer."""
        self._linger_s = limit_s

    @property
    def is_lingering(self) -> bool:
        """Whether the answer is sent and the rest of the body is still being read and discarded."""
        return self._linger_timer is not None and not self._is_half_closed

    @property
    def is_fresh(self) -> bool:
        """Whether the connection is open and no request has arrived on it yet."""
        return not self._requests and self.is_open

    @property
    def _is_waiting(self) -> bool:
        """Whether the connection waits for its next request, and no byte of that request has arrived."""
        return self._body is None and self._reader is None and not self._next_bytes and not self._is_discarding

    def close_if_idle(self) -> None:
        if self._requests and self._is_waiting:
            self.half_close()

    def close_if_unused(self, *, also_unread: bool = False) -> bool:
        """Close the connection at once, unless it has a request. Return whether it was closed.

        This frees its descriptor and its memory for other calls.

        Args:
            also_unread: close the connection even if bytes have arrived that the server has not read yet.
        """
        is_used = (self._body is not None and not self._is_answered) or bool(self._next_bytes)
        is_used = is_used or (
            not also_unread and not self._is_discarding and not self.is_lingering and self._has_unread_bytes()
        )
        if is_used:
            return False
        self._answer_408_to_part("the headers were not complete when the server needed the resources for another call")
        self.close()
        return True

    def half_close(self) -> None:
        """Close the server's side, and discard bytes until the caller closes its side, too.

        Do nothing as long as a request is being answered or has arrived.
        """
        is_busy = self._body is not None or bool(self._next_bytes) or self._has_unread_bytes()
        if self._is_half_closed or is_busy or self.is_lingering or not self.is_open:
            return
        self._discard()
        self._close_own_side(limit_s=None)

    def _discard(self) -> None:
        """Read no more requests, and discard all bytes that arrive."""
        self._is_discarding = True
        self._keeps_open = False
        self._next_bytes = b""
        self._forget_reader()

    def _forget_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _close_own_side(self, limit_s: float | None = SHORT_LINGER_S) -> None:
        """Send the end of the stream. The connection is closed when the caller does the same.

        Args:
            limit_s: the time after which this side ends the connection; None means that the calling code ends it.
        """
        if self._transport is None or self._transport.is_closing():
            return
        self._is_half_closed = True
        try:
            self._transport.write_eof()
        except OSError:  # the caller has already reset the connection
            self._transport.abort()
            return
        self._is_reading = True
        self._transport.resume_reading()
        if limit_s is not None:
            self._start_linger_timer(limit_s)

    def _start_linger_timer(self, limit_s: float) -> None:
        self._stop_linger_timer()
        self._linger_timer = self._loop.call_later(limit_s, self.close)

    def _stop_linger_timer(self) -> None:
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None

    def _close_if_long_idle(self) -> None:
        left_s = self._idle_since_s + KEEP_ALIVE_S - self._loop.time() if self._is_waiting else KEEP_ALIVE_S
        if self._requests and left_s <= 0:
            self.close()
        else:
            self._idle_timer = self._loop.call_later(max(left_s, 1.0), self._close_if_long_idle)

    def _has_unread_bytes(self) -> bool:
        return self.is_open and self._socket is not None and is_readable(self._socket)
