"""Send the events of a live call to its caller while the call runs.

A slow caller never slows down the script. As long as the kernel accepts no bytes for the caller, the server holds some
events. If they become too many, lines are dropped, and the caller gets the number of these lines. A position in the
queue and a progress replace an earlier one that is still held. So the newest one is never lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

from multidict import CIMultiDict

from ..invocation.call import Record
from ..logs.level import LEVEL_NAMES
from ..output.event_stream import EVENT_STREAM_TYPE, HEARTBEAT, event, id_of_stream
from ..system.throttle import Throttle
from .http_message import Request, Response

# The largest size of the events that are held for a slow caller.
_MOST_HELD_BYTES = 64 * 1024
# Proxies close connections on which nothing was sent for 30 s (HAProxy's examples), 60 s (nginx, most load balancers)
# or longer.
_HEARTBEAT_S = 15.0
_SHORTEST_PAUSE_S = 1.0
# The time between two reports of progress. A script may report each of a million steps.
_PROGRESS_PAUSE_S = 0.1


class LiveStream:
    """The stream of one call. It is the :class:`Observer` of this call.

    The first event opens the stream. Before that, a call that fails is answered as any other call is. If the script has
    not started after 15 s, because a worker loads or the input is being fetched, a comment opens the stream.

    Attributes:
        is_open: the status and the headers are sent.
    """

    def __init__(self, request: Request, call_id: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._request = request
        self._connection = request.connection
        self._call_id = call_id
        self.is_open = False
        self._has_started = False
        self._takes_events = True
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._dropped_lines = 0
        self._position = 0
        self._newest: dict[str, Mapping[str, object]] = {}  # the newest position and progress that are not sent yet
        self._progress = Throttle(self._send_progress, _PROGRESS_PAUSE_S)
        self._flushing: asyncio.Task[None] | None = None
        self._written_s = self._loop.time()
        self._heartbeat = self._loop.call_later(_HEARTBEAT_S, self._beat)

    # The events of a call that runs.

    def queued(self, position: int) -> None:
        if position != self._position:
            self._position = position
            self._newest["queued"] = {"position": position}
            self._send_newest("queued")

    def started(self, served_before: int | None) -> None:
        if self._has_started:  # a call may have several runs, and a worker may end before it takes the call
            return
        self._has_started = True
        self._newest.pop("queued", None)
        about: dict[str, object] = {"call_id": self._call_id}
        if served_before is not None:
            about["worker"] = {"calls": served_before}
        self._put(event("started", about))

    def log_lines(self, stream: str, levels: Sequence[int], texts: Sequence[str]) -> None:
        if self._dropped_lines:
            self._dropped_lines += len(texts)
            return
        events = [
            event("log", {"level": LEVEL_NAMES[level], "stream": stream, "text": text})
            for level, text in zip(levels, texts, strict=True)
        ]
        self._put(b"".join(events), lines=len(events))

    def lines_dropped(self, count: int) -> None:
        if self._dropped_lines or self._is_blocked:
            self._dropped_lines += count
            self._flush_later()
        else:
            self._put(event("dropped", {"lines": count}))

    def progress(self, fraction: float, text: str) -> None:
        self._newest["progress"] = {"fraction": fraction, "text": text}
        self._progress.request()

    def ended(self) -> None:
        """Send nothing: the verdict follows."""

    # The end of the call.

    async def finish(
        self,
        pieces: AsyncIterator[bytes],
        send: Callable[[bytes], Awaitable[None]],
        record: Record,
        before_end: Awaitable[None] | None = None,
    ) -> None:
        """Send the last events, and the end of the stream.

        Args:
            send: sends bytes, and waits until the kernel has them.
            record: gets whether the answer is handed over.
            before_end: is awaited after the last event, before the end of the stream.

        Raises:
            ConnectionResetError: the connection has ended, or the caller reads too slowly.
            OutputUnreadable: see :func:`result_events`. Then call this again with the verdict.
        """
        self.close()
        if not self.is_open:
            self._open()
        if held := self._take_held():
            await send(self._framed(held))
        last = b""
        async for piece in pieces:
            if last:
                await send(self._framed(last))
            last = piece
        # The caller may disconnect as soon as it has the last event. So this event is sent only when no work is left.
        data, end = self._framed(last), self._framed(b"")
        try:
            await send(data if before_end is not None else data + end)
        except asyncio.CancelledError:
            record.is_handed_over = not self._connection.is_blocked
            raise
        record.is_handed_over = True
        if before_end is not None:
            await before_end
            await send(end)

    def close(self) -> None:
        """Take no more events."""
        self._takes_events = False
        if self._flushing is not None:
            self._flushing.cancel()
        self._progress.cancel()
        self._heartbeat.cancel()

    # Sending.

    @property
    def _is_blocked(self) -> bool:
        return bool(self._held) or self._connection.is_blocked

    def _open(self) -> None:
        self.is_open = True
        request = self._request
        # A classic function runs while its body arrives. "100 Continue" must not come after the head of the answer.
        request.send_continue()
        headers = CIMultiDict(
            {
                "X-Call-Id": self._call_id,
                "Content-Type": EVENT_STREAM_TYPE,
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",  # nginx then passes on each event at once
            }
        )
        head = self._connection.begin_answer(request, Response(200, headers, has_length=False))
        self._write(head + self._framed(id_of_stream(self._call_id)))

    def _put(self, data: bytes, *, lines: int = 0) -> None:
        """Send events, or hold them, or drop them.

        Args:
            lines: the number of lines in ``data``. Other events are few, and are never dropped.
        """
        if not self._takes_events or not self._connection.is_open:
            return
        if not self.is_open:
            self._open()
        if not self._is_blocked:
            self._write(self._framed(data))
        elif not lines or self._held_bytes + len(data) <= _MOST_HELD_BYTES:
            self._held.append(data)
            self._held_bytes += len(data)
            self._flush_later()
        else:
            self._dropped_lines += lines
            self._flush_later()

    def _send_newest(self, name: str) -> None:
        """Send the newest event with this name now, or as soon as the kernel takes bytes again."""
        if self._is_blocked:
            self._flush_later()
        else:
            self._put(event(name, self._newest.pop(name)))

    def _send_progress(self) -> None:
        if "progress" in self._newest:  # it may have been sent together with lines that were held
            self._send_newest("progress")

    def _flush_later(self) -> None:
        if self._flushing is None and self._takes_events and self._connection.is_open:
            self._flushing = self._loop.create_task(self._flush())

    async def _flush(self) -> None:
        """Send the events that are held, as soon as the kernel takes bytes again."""
        try:
            while self._held or self._dropped_lines or self._newest:
                await self._connection.until_written()
                if not self.is_open:
                    self._open()
                if held := self._take_held():  # an empty chunk would end the stream
                    self._write(self._framed(held))
        except ConnectionError:
            pass
        finally:
            self._flushing = None

    def _take_held(self) -> bytes:
        held = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        if self._dropped_lines:
            held += event("dropped", {"lines": self._dropped_lines})
            self._dropped_lines = 0
        held += b"".join(event(name, data) for name, data in self._newest.items())
        self._newest.clear()
        return held

    def _beat(self) -> None:
        """Send a comment if nothing was sent for a while."""
        silent_s = self._loop.time() - self._written_s
        # As long as the body arrives, the caller is not waiting for an answer. A body that cannot be read has its own
        # status.
        may_open = self._request.content.is_complete and self._connection.is_open
        if silent_s >= _HEARTBEAT_S and (self.is_open or may_open) and not self._is_blocked:
            if not self.is_open:
                self._open()
            self._write(self._framed(HEARTBEAT))
            silent_s = 0.0
        self._heartbeat = self._loop.call_later(max(_SHORTEST_PAUSE_S, _HEARTBEAT_S - silent_s), self._beat)

    def _framed(self, data: bytes) -> bytes:
        """Return a chunk (RFC 9112, section 7.1). Without data, return the end of the chunks."""
        return data if self._request.is_http_1_0 else b"%x\r\n%b\r\n" % (len(data), data)

    def _write(self, data: bytes) -> None:
        if self._connection.is_open:
            self._written_s = self._loop.time()
            self._request.sent_bytes += len(data)
            self._connection.write(data)
