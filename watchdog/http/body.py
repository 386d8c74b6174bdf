"""Read the body of a request from the caller, in a bounded time."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from ..errors import BadInput, CallerGone, CallerSilent, Overloaded, WatchdogError
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
        self._read_timeout_s = settings.read_timeout_s
        self._write_timeout_s = settings.write_timeout_s
        self._least_rate = settings.min_data_rate_bytes
        self._is_classic = settings.fprocess is not None
        # The waits for the end of bodies that classic functions did not read.
        self._discard_waits = BoundedWaits(_REST_OF_BODY_S)

    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the pieces of the body as they arrive.

        Raises:
            BadInput: the body is malformed.
            CallerGone: the connection ended before the body was complete.
            CallerSilent: the body arrived too slowly.
            Overloaded: the body arrived slowly, and another call needed this call's place.
            Draining: the server is stopping and does not wait for the rest of the body.
        """
        pace: Pace | None = None
        # This is sent only now, because the admission has let the call enter. If a call is rejected, a caller that
        # waits for "100 Continue" does not send its body.
        _send_continue(request)
        try:
            while True:
                if self._are_refused:
                    raise self._admission.refusal()
                # A small body has usually arrived already, so it needs no timer for each piece and for its end.
                piece = request.content.read_nowait()
                if not piece and not request.content.is_complete:
                    pace = pace or self._pace(request)
                    async with pace.waiting(self._admission.senders):
                        piece = await request.content.read()
                if not piece:
                    return
                yield piece
        except TimeoutError:
            if self._are_refused:
                raise self._admission.refusal() from None
            assert pace is not None
            raise self._too_slow(pace) from None
        except MalformedBody as error:
            raise BadInput(f"the body is malformed: {error}") from None
        except ConnectionError as error:
            raise CallerGone("the connection ended before the body was complete") from error

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
        for pace in self._admission.senders if self._are_refused else ():
            pace.end()
        half_s = self._write_timeout_s / 2
        self._discard_waits.shorten(0.0 if at_once else min(SHORT_LINGER_S, half_s or SHORT_LINGER_S))

    @property
    def _are_refused(self) -> bool:
        """Whether calls with an incomplete body are rejected. A classic function already runs, so it may finish."""
        return self._admission.is_closed and not self._is_classic

    def _pace(self, request: Request) -> Pace:
        content = request.content
        return Pace(
            lambda: content.total_bytes,
            silence_s=self._read_timeout_s,
            least_rate=self._least_rate,
            judged_after_s=_JUDGED_AFTER_S,
        )

    def _too_slow(self, pace: Pace) -> WatchdogError:
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


def _send_continue(request: Request) -> None:
    """Send "100 Continue" if the caller waits for it before it sends the body (RFC 9110, section 10.1.1)."""
    if "Expect" in request.headers and not request.is_http_1_0:
        request.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
