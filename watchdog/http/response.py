"""Send responses to callers, also to callers that read slowly or not at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from multidict import CIMultiDict

from ..invocation.call import Record
from ..invocation.pace import Pace, Paces
from ..output.answer import Answer
from ..settings.declarations import Settings
from .http_message import Request, Response

# Number of pieces of 512 KiB that are read from a long answer at a time, before they are sent. If many long answers are
# sent at the same time, each has fewer pieces. The second value bounds their sum.
_MOST_PIECES_AHEAD = 4
_PIECES_AHEAD_OF_ALL = 32
# The server waits for a caller for at least this time before it judges the caller slow. A lost answer costs more than a
# lost body, so callers have more time here than in body.py.
_JUDGED_AFTER_S = 5.0
_STATUS_WITHOUT_BODY = (204, 205, 304)


def headers_of(call_id: str, record: Record) -> CIMultiDict[str]:
    """Return the headers that every answer to a call has."""
    headers = CIMultiDict({"X-Call-Id": call_id})
    if record.exit_code is not None:
        headers["X-Exit-Code"] = str(record.exit_code)
    if record.duration_s is not None:
        headers["X-Duration-Seconds"] = f"{record.duration_s:.6f}"
    if record.input_encoding is not None:
        headers["X-Input-Encoding"] = record.input_encoding
    if record.served_before is not None:
        headers["X-Warm"] = str(record.served_before)
    return headers


class Sender:
    """Sends responses. A caller that reads nothing for ``write_timeout``, or reads too slowly, is disconnected."""

    def __init__(self, settings: Settings) -> None:
        self._loop = asyncio.get_running_loop()
        self._write_timeout_s = settings.write_timeout_s
        self._least_rate = settings.min_data_rate_bytes
        self._long_answers = 0
        # The callers that read an error, or the answer to a probe. Such a caller occupies only a connection.
        self._other_readers = Paces()

    def give_up_other_reader(self) -> None:
        """Disconnect the slowest caller that reads anything except the answer of a script, if there is one."""
        if (slowest := self._other_readers.slowest()) is not None:
            slowest.give_up()

    async def send(self, request: Request, response: Response) -> None:
        """Send a response that is not the answer of a script."""
        head = request.connection.begin_answer(request, response)
        body = b"" if request.method == "HEAD" else response.body
        await self.send_in_time(request, head + body, self._other_readers)

    async def send_answer(
        self,
        request: Request,
        answer: Answer,
        *,
        status: int,
        headers: CIMultiDict[str],
        record: Record,
        readers: Paces,
    ) -> None:
        """Send the answer of a script, and note in ``record`` how much of it is sent.

        Args:
            readers: contains the caller while the server waits for it.
        """
        connection = request.connection
        if answer.body is not None or status in _STATUS_WITHOUT_BODY:
            body = answer.body if status not in _STATUS_WITHOUT_BODY and answer.body else b""
            record.output_bytes = answer.length if body else 0
            head = connection.begin_answer(request, Response(status, headers, body))
            try:
                await self.send_in_time(request, head + body, readers)
            except asyncio.CancelledError:
                record.is_handed_over = not connection.is_blocked  # what is still in this process is lost
                raise
            record.is_handed_over = True
            return
        response = Response(status, headers, length=answer.length)
        await self.send_in_time(request, connection.begin_answer(request, response), readers)
        record.is_begun = True
        with self.long_answer():
            async with contextlib.aclosing(answer.chunks(self.pieces_ahead)) as chunks:
                try:
                    async for piece in chunks:
                        record.output_bytes += len(piece)
                        await self.send_in_time(request, piece, readers)
                except asyncio.CancelledError:
                    record.is_handed_over = record.output_bytes == answer.length and not connection.is_blocked
                    raise
                record.is_handed_over = True

    @contextlib.contextmanager
    def long_answer(self) -> Iterator[None]:
        """Count one more long answer as long as the context lasts."""
        self._long_answers += 1
        try:
            yield
        finally:
            self._long_answers -= 1

    def pieces_ahead(self) -> int:
        """Return how many pieces of a long answer are read at a time. The fewer long answers, the more pieces."""
        return max(1, min(_MOST_PIECES_AHEAD, _PIECES_AHEAD_OF_ALL // max(1, self._long_answers)))

    async def send_in_time(self, request: Request, data: bytes | memoryview, readers: Paces) -> None:
        """Send bytes, and disconnect a caller that reads nothing for ``write_timeout``, or reads too slowly.

        One write may have megabytes, which take long on a slow line. So what counts is whether the caller has
        acknowledged any of these bytes.

        Args:
            readers: contains the caller while the server waits for it.

        Raises:
            ConnectionResetError: the connection has ended.
        """
        connection = request.connection
        connection.write(data)
        request.sent_bytes += len(data)
        if not connection.is_blocked:  # the kernel accepts most writes at once, and they need no timer
            return
        pace = request.pace = request.pace or self._pace(request)
        limit_s = self._write_timeout_s
        unread: int | None = None
        timer: asyncio.TimerHandle | None = None

        def check() -> None:
            nonlocal unread, timer
            if not pace.left_s:
                pace.is_too_slow = True
                pace.end()
                return
            before, unread = unread, connection.unread_bytes()
            if (before is None or unread < before) and not bound.expired():
                # A check may notice progress one interval too late. So the limit is extended by one interval.
                bound.reschedule(self._loop.time() + limit_s * 1.25)
            timer = self._loop.call_later(min(limit_s / 4, pace.left_s), check)

        try:
            async with pace.waiting(readers, is_watched=True) as bound:
                if limit_s:
                    timer = self._loop.call_later(min(limit_s / 4, pace.left_s), check)
                try:
                    await connection.until_written()
                finally:
                    if timer is not None:
                        timer.cancel()
        except TimeoutError:
            connection.reset()
            raise ConnectionResetError(self._reason_for_disconnect(pace)) from None

    def _pace(self, request: Request) -> Pace:
        return Pace(
            lambda: request.sent_bytes - request.connection.unread_bytes(),
            silence_s=self._write_timeout_s,
            least_rate=self._least_rate,
            judged_after_s=_JUDGED_AFTER_S,
        )

    def _reason_for_disconnect(self, pace: Pace) -> str:
        """Return the reason why the server stopped waiting for a caller to read the rest of its answer."""
        if pace.is_given_up:
            return f"the caller read {pace.rate:.0f} bytes a second while another call needed its place"
        if pace.is_too_slow:
            return (
                f"the caller read only {pace.moved_bytes} bytes in {pace.waited_s:.0f} s, less than "
                f"{self._least_rate} a second (min_data_rate)"
            )
        return f"the caller read nothing for {self._write_timeout_s:g} s (write_timeout)"
