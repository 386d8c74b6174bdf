"""The body of a request, on its way from the caller, in a bounded time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.client_exceptions import ClientError
from aiohttp.http_exceptions import HttpProcessingError

from ..errors import BadInput, CallerGone, CallerSilent, Overloaded, WatchdogError
from ..invocation.admission import Admission
from ..invocation.pace import Pace
from ..settings.declarations import Settings
from .connection import LAST_WORDS_S, say_continue

_REST_OF_BODY_S = 30.0
# The server judges a caller as slow only after it has waited for this time. A round trip to the other side of the world
# takes less.
_JUDGED_AFTER_S = 0.5


class Bodies:
    """Reads the bodies of calls.

    Args:
        admission: has the callers that the server waits for now, and is closed when the server drains.
    """

    def __init__(self, settings: Settings, admission: Admission) -> None:
        self._admission = admission
        self._read_timeout_s = settings.read_timeout_s
        self._write_timeout_s = settings.write_timeout_s
        self._least_rate = settings.min_data_rate_bytes
        self._is_classic = settings.fprocess is not None
        self._rests = _Rests()

    async def read(self, request: web.BaseRequest) -> AsyncIterator[bytes]:
        """Yield the pieces of the body as they come.

        Raises:
            BadInput, CallerGone: the body is malformed or was cut off.
            CallerSilent, Overloaded: it came too slowly.
            Draining: the server ends and does not wait for the rest.
        """
        pace: Pace | None = None
        # Only now, when the call is admitted: a caller that waits for "100 Continue" need not send what is refused.
        await say_continue(request)
        try:
            while True:
                if self._are_refused:
                    raise self._admission.refusal()
                # A small body is there already: no need of a timer for each of its pieces and its end.
                piece = request.content.read_nowait()
                if not piece and not request.content.at_eof():
                    pace = pace or self._pace(request)
                    async with pace.waiting(self._admission.senders):
                        piece = await request.content.readany()
                if not piece:
                    # Race: the end of a chunk wakes the reader, which then sees the end of the body. It does not see
                    # that what came after the chunk is malformed.
                    if (malformed := request.content.exception()) is not None:
                        raise malformed
                    return
                yield piece
        except TimeoutError:
            if self._are_refused:
                raise self._admission.refusal() from None
            assert pace is not None
            raise self._too_slow(pace) from None
        except (ClientError, HttpProcessingError) as error:
            # The text of aiohttp's own error begins with "400, message:" and a line end.
            reason = error.message if isinstance(error, HttpProcessingError) else str(error)
            raise BadInput(f"the body is malformed: {' '.join(reason.split())}") from None
        except ConnectionError as error:
            raise CallerGone("the connection ended before the body did") from error

    async def discard_rest(self, request: web.BaseRequest) -> None:
        """Read what a classic function did not read: proxies written in Go break a call that is answered before."""
        with contextlib.suppress(TimeoutError, ClientError, HttpProcessingError, ConnectionError):
            async with self._rests.wait():
                while await request.content.readany():
                    pass

    def refuse(self, *, at_once: bool) -> None:
        """Wait no longer for bodies, except for those that a classic function reads. Admission is closed already.

        A caller that still sends what a classic function did not read is answered in good time before the end of the
        drain, or, ``at_once``, without delay.
        """
        for pace in self._admission.senders if self._are_refused else ():
            pace.end()
        half_s = self._write_timeout_s / 2
        self._rests.cut_short(0.0 if at_once else min(LAST_WORDS_S, half_s or LAST_WORDS_S))

    @property
    def _are_refused(self) -> bool:
        """Whether callers that still send are refused. A classic function that reads its body runs: it may finish."""
        return self._admission.is_closed and not self._is_classic

    def _pace(self, request: web.BaseRequest) -> Pace:
        content = request.content
        return Pace(
            lambda: content.total_bytes,
            silence_s=self._read_timeout_s,
            least_rate=self._least_rate,
            judged_after_s=_JUDGED_AFTER_S,
        )

    def _too_slow(self, pace: Pace) -> WatchdogError:
        """Return why the server does not wait any more for the rest of a body."""
        if pace.is_given_up:
            return Overloaded(
                f"the body came at {pace.rate:.0f} bytes a second while another call needed the room; "
                "try again later, or send it faster",
                self._admission.retry_after_s(),
            )
        if pace.is_too_slow:
            return CallerSilent(
                f"only {pace.moved_bytes} bytes of the body came in {pace.waited_s:.0f} s, less than "
                f"{self._least_rate} a second (min_data_rate); send it faster"
            )
        return CallerSilent(f"nothing of the body came for {self._read_timeout_s:g} s (read_timeout)")


class _Rests:
    """The waits for the end of bodies that classic functions did not read. A drain cuts them short."""

    def __init__(self) -> None:
        self._limit_s = _REST_OF_BODY_S
        self._bounds: set[asyncio.Timeout] = set()

    @contextlib.asynccontextmanager
    async def wait(self) -> AsyncIterator[None]:
        """Wait inside this context.

        Raises:
            TimeoutError: the wait took too long, or a drain ended it.
        """
        async with asyncio.timeout(self._limit_s) as bound:
            self._bounds.add(bound)
            try:
                yield
            finally:
                self._bounds.discard(bound)

    def cut_short(self, limit_s: float) -> None:
        """End all waits after at most this time, which is also the limit of waits that begin later."""
        self._limit_s = limit_s
        until_s = asyncio.get_running_loop().time() + limit_s
        for bound in self._bounds:
            if not bound.expired():
                bound.reschedule(min(until_s, bound.when() or until_s))
