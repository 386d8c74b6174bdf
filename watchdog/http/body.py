"""Read the body of a request from the caller, in a bounded time."""

from __future__ import annotations

import contextlib
from typing import Self

from ..errors import BadInput, CallerGone, CallerSilent, Draining, Overloaded, WatchdogError
from ..invocation.admission import Admission
from ..invocation.pace import Pace
from ..settings.declarations import Settings
from ..system.bounded_waits import BoundedWaits
from .connection import SHORT_LINGER_S
from .http_message import Request
from .request_body import MalformedBody

# The longest time in which the server discards the rest of a body that a classic function did not read.
_REST_OF_BODY_S = 30.0
# The server waits for a caller for at least this time before it judges the caller slow. A round trip to the other side
# of the world takes less.
_JUDGED_AFTER_S = 0.5


class Bodies:
    """Reads the bodies of calls.

    Args:
        admission: knows the callers that the server waits for now. It is closed when the server stops.
    """

    def __init__(self, settings: Settings, admission: Admission) -> None:
        self._admission = admission
        self.senders = admission.senders  # the callers that the server waits for now
        self._read_timeout_s = settings.read_timeout_s
        self._write_timeout_s = settings.write_timeout_s
        self._least_rate = settings.min_data_rate_bytes
        self._is_classic = settings.fprocess is not None
        # The waits for the end of bodies that classic functions did not read.
        self._discard_waits = BoundedWaits(_REST_OF_BODY_S)

    def read(self, request: Request) -> _Pieces:
        """Return the pieces of the body, as they arrive."""
        return _Pieces(self, request)

    async def discard_rest(self, request: Request) -> None:
        """Read and discard the rest of a body that a classic function did not read.

        Proxies written in Go abort a call that is answered before its body is complete.
        """
        with contextlib.suppress(TimeoutError, MalformedBody, ConnectionError):
            async with self._discard_waits.wait():
                while await request.content.read():
                    pass

    def refuse(self, *, at_once: bool) -> None:
        """Stop waiting for bodies, except for bodies that a classic function reads. The admission is already closed.

        Args:
            at_once: stop discarding the rest of bodies that classic functions did not read. Without ``at_once``, the
                server discards bytes for a few more seconds at most. It then has time to send the answers before the
                drain ends.
        """
        for pace in self.senders if self.are_refused else ():
            pace.end()
        half_s = self._write_timeout_s / 2
        self._discard_waits.shorten(0.0 if at_once else min(SHORT_LINGER_S, half_s or SHORT_LINGER_S))

    @property
    def are_refused(self) -> bool:
        """Whether calls with an incomplete body are rejected.

        A classic function already runs while its body arrives, so its calls may finish.
        """
        return self._admission.is_closed and not self._is_classic

    def refusal(self) -> Draining:
        """Return the error of a call whose body the server does not wait for any more."""
        return self._admission.refusal()

    def pace_of(self, request: Request) -> Pace:
        """Return how fast the caller sends its body."""
        content = request.content
        return Pace(
            lambda: content.total_bytes,
            silence_s=self._read_timeout_s,
            least_rate=self._least_rate,
            judged_after_s=_JUDGED_AFTER_S,
        )

    def too_slow(self, pace: Pace) -> WatchdogError:
        """Return the reason why the server stopped waiting for the rest of a body."""
        if pace.is_given_up:
            return Overloaded(
                f"the body arrived at {pace.rate:.0f} bytes a second while another call needed its place; "
                "try again later, or send it faster",
                self._admission.retry_after_s(),
            )
        if pace.is_too_slow:
            return CallerSilent(
                f"only {pace.moved_bytes} bytes of the body arrived in {pace.waited_s:.0f} s, less than "
                f"{self._least_rate} a second (min_data_rate); send it faster"
            )
        return CallerSilent(f"no byte of the body arrived for {self._read_timeout_s:g} s (read_timeout)")


class _Pieces:
    """The pieces of one body, as they arrive.

    This is not an asynchronous generator. For each of those, asyncio does extra work at the start and at the end.
    """

    __slots__ = ("_bodies", "_is_begun", "_pace", "_request")

    def __init__(self, bodies: Bodies, request: Request) -> None:
        self._bodies = bodies
        self._request = request
        self._pace: Pace | None = None
        self._is_begun = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Return the next piece.

        Raises:
            BadInput: the body is malformed.
            CallerGone: the connection ended before the body was complete.
            CallerSilent: the body arrived too slowly.
            Overloaded: the body arrived slowly, and another call needed this call's place.
            Draining: the server is stopping and does not wait for the rest of the body.
        """
        bodies, request, content = self._bodies, self._request, self._request.content
        if not self._is_begun:
            # "100 Continue" is sent only now, when the admission has let the call enter. If a call is rejected, a
            # caller that waits for "100 Continue" does not send its body.
            self._is_begun = True
            request.send_continue()
        try:
            if not content.is_complete and bodies.are_refused:
                raise bodies.refusal()
            # A small body has usually arrived already, so it needs no timer for each piece and for its end.
            piece = content.read_nowait()
            if not piece and not content.is_complete:
                self._pace = self._pace or bodies.pace_of(request)
                async with self._pace.waiting(bodies.senders):
                    piece = await content.read()
        except TimeoutError:
            if bodies.are_refused:
                raise bodies.refusal() from None
            assert self._pace is not None
            raise bodies.too_slow(self._pace) from None
        except MalformedBody as error:
            raise BadInput(f"the body is malformed: {error}") from None
        except ConnectionError as error:
            raise CallerGone("the connection ended before the body was complete") from error
        if not piece:
            raise StopAsyncIteration
        return piece
