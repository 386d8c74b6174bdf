"""The stream of a live call, for a caller that reads only when the test says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from live_call import Event
from multidict import CIMultiDict

from watchdog.http.http_message import Request, Response
from watchdog.http.live import LiveStream
from watchdog.http.request_body import RequestBody
from watchdog.http.request_head import Head
from watchdog.invocation.call import Record
from watchdog.output.event_stream import event


class Caller:
    """A connection. While the caller does not read, each byte is sent only when it reads again."""

    def __init__(self) -> None:
        self.is_open = True
        self.sent = b""
        self._writable: asyncio.Future[None] | None = None

    def stall(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    async def read_again(self) -> None:
        assert self._writable is not None
        self._writable.set_result(None)
        self._writable = None
        for _ in range(5):
            await asyncio.sleep(0)

    def events(self) -> list[Event]:
        """The events that were sent so far. Each chunk must be whole, and none may be the end of the stream."""
        text, rest = b"", self.sent
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            assert int(size, 16) > 0, "the stream was ended"
            text, rest = text + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        return [Event.read(each + b"\n\n") for each in text.split(b"\n\n") if each.startswith(b"event: ")]

    @property
    def is_blocked(self) -> bool:
        return self._writable is not None

    def begin_answer(self, request: Request, response: Response) -> bytes:
        assert not self.sent, "the head must come first"
        return b""

    def write(self, data: bytes | memoryview) -> None:
        self.sent += data

    async def until_written(self) -> None:
        if self._writable is not None:
            await self._writable

    def unread_bytes(self) -> int:
        return 0

    def linger(self, limit_s: float) -> None:
        raise AssertionError

    def reset(self) -> None:
        raise AssertionError


def watched(steps: Callable[[Caller, LiveStream], Awaitable[None]]) -> list[Event]:
    """Return the events that a caller gets for some steps."""

    async def run() -> list[Event]:
        caller = Caller()
        head = Head(method="POST", target="/", version="1.1", headers=CIMultiDict(), keep_alive=True)
        stream = LiveStream(Request(caller, head, RequestBody(lambda: None)), "mine")
        try:
            await steps(caller, stream)
        finally:
            stream.close()
        return caller.events()

    return asyncio.run(run())


def log(stream: LiveStream, *texts: str) -> None:
    stream.log_lines("stdout", [logging.INFO] * len(texts), texts)


def shown(events: list[Event]) -> list[object]:
    """Return the value of each event that distinguishes it from others."""
    keys = {"queued": "position", "log": "text", "dropped": "lines", "progress": "fraction", "started": "call_id"}
    return [event.data[keys[event.name]] for event in events]


def test_position_that_has_not_changed_is_not_sent_again() -> None:
    async def steps(caller: Caller, stream: LiveStream) -> None:
        for position in (3, 3, 2, 2, 1):
            stream.queued(position)

    assert shown(watched(steps)) == [3, 2, 1]


def test_events_that_waited_for_the_caller_come_after_the_head() -> None:
    async def steps(caller: Caller, stream: LiveStream) -> None:
        caller.stall()
        stream.queued(2)
        stream.progress(0.5, "")
        await caller.read_again()
        assert stream.is_open
        stream.started(None)

    assert shown(watched(steps)) == [2, 0.5, "mine"]


def test_caller_that_reads_again_gets_only_its_newest_position() -> None:
    async def steps(caller: Caller, stream: LiveStream) -> None:
        stream.queued(5000)
        caller.stall()
        for position in range(4999, 0, -1):
            stream.queued(position)
        await caller.read_again()

    assert shown(watched(steps)) == [5000, 1]


def test_start_comes_after_no_position_and_is_never_dropped() -> None:
    async def steps(caller: Caller, stream: LiveStream) -> None:
        stream.queued(2)
        caller.stall()
        stream.queued(1)
        stream.started(None)
        await caller.read_again()

    assert shown(watched(steps)) == [2, "mine"]


def test_newest_progress_comes_after_a_stall_in_which_lines_were_dropped() -> None:
    async def steps(caller: Caller, stream: LiveStream) -> None:
        stream.progress(0.0, "begin")
        caller.stall()
        for number in range(1, 10):
            log(stream, "x" * 10_000)
            stream.progress(number / 10, "")
        await caller.read_again()

    assert shown(watched(steps)) == [0.0, *["x" * 10_000] * 6, 3, 0.9]


def test_flood_of_progress_is_thinned_out_and_the_newest_is_sent() -> None:
    async def steps(caller: Caller, stream: LiveStream) -> None:
        for number in range(10_000):
            stream.progress(number / 10_000, "")
        while b"0.9999" not in caller.sent:
            await asyncio.sleep(0.01)

    assert shown(watched(steps)) == [0.0, 0.9999]


def test_progress_that_waits_is_not_overtaken_by_the_end() -> None:
    """The script has ended, so the newest progress comes at once, before the outputs."""

    async def steps(caller: Caller, stream: LiveStream) -> None:
        stream.progress(0.5, "")
        stream.progress(1.0, "")

        async def send(data: bytes) -> None:
            caller.write(data)

        async def pieces() -> AsyncIterator[bytes]:
            yield event("dropped", {"lines": 7})

        await stream.finish(pieces(), send, Record())
        assert caller.sent.endswith(b"0\r\n\r\n")
        caller.sent = caller.sent.removesuffix(b"0\r\n\r\n")

    assert shown(watched(steps)) == [0.5, 1.0, 7]


def test_caller_that_reads_again_does_not_end_the_stream() -> None:
    """A position is sent just when the kernel takes bytes again. The task that waited for this finds no event."""

    async def steps(caller: Caller, stream: LiveStream) -> None:
        log(stream, "first")
        caller.stall()
        stream.queued(3)
        await asyncio.sleep(0)
        reading = asyncio.ensure_future(caller.read_again())
        asyncio.get_running_loop().call_soon(stream.queued, 2)
        await reading
        log(stream, "last")

    assert shown(watched(steps)) == ["first", 2, "last"]
