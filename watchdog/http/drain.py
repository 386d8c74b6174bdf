"""Stop the server gracefully (drain). ``Drain._run`` does these steps, each with its own configured time::

    probes are answered 503, and the lock file is removed
    -> the server stays reachable for healthcheck_interval, if a platform may still send calls
    -> no new connection is accepted, and calls in the queue are answered 503
    -> running invocations finish, for write_timeout at most
    -> scripts that still run are ended, with kill_grace, and their calls are answered 503; uploads are cancelled
    -> callers read the last answers

The whole drain has a bound (``_longest_s``). At the start, the log says when the drain will be over at the latest.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import Awaitable

from ..invocation.admission import Admission
from ..invocation.invocation import Invocations
from ..logs.formats import time_in
from ..logs.setup import get_logger
from ..process.supervisor import Supervisor
from ..settings.declarations import Settings
from ..storage.base import CLEANUP_S
from .body import Bodies
from .calls import Calls
from .health import Health
from .http_server import HttpServer
from .listener import Listener

log = get_logger("server")
# A drain takes this time in addition to its configured times: to close the listening socket (listener.py), and to let
# callers read the last answers, such as the 503 of a script that was ended.
_CLOSING_S = 1.0
_LAST_ANSWERS_S = 2.0
_LOOK_S = 0.02
UNKILLABLE_S = 10.0  # longer than the supervisor waits for a process that SIGKILL does not end


class Drain:
    """Stops one server gracefully.

    Args:
        http: the server that has the connections.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        health: Health,
        listener: Listener,
        http: HttpServer,
        calls: Calls,
        bodies: Bodies,
        invocations: Invocations,
        admission: Admission,
        supervisor: Supervisor,
    ) -> None:
        self._settings = settings
        self._health = health
        self._listener = listener
        self._http = http
        self._calls = calls
        self._bodies = bodies
        self._invocations = invocations
        self._admission = admission
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()

    async def run_at_signal(self, signals: asyncio.Queue[int]) -> None:
        """Wait for SIGTERM, SIGHUP or SIGINT, then drain. A second signal or a fault stops the server at once."""
        first = await signals.get()
        name = signal.Signals(first).name
        drain = asyncio.ensure_future(self._run(name))
        if first == signal.SIGINT and _is_at_a_terminal():
            log.info("stopping at once", signal=name, running=self._invocations.running)
            signals.put_nowait(first)
        second = asyncio.ensure_future(signals.get())
        await asyncio.wait({drain, second}, return_when=asyncio.FIRST_COMPLETED)
        second.cancel()
        if not drain.done():
            drain.cancel()
            await asyncio.wait({drain})
        elif (error := drain.exception()) is not None:
            log.error("internal error", reason=repr(error), exc_info=error)
        else:
            return
        self.refuse_all(at_once=True)
        self._supervisor.end_all(at_once=True)
        # All scripts are killed now. Give callers one second to read their answers: some callers never read.
        await within(1.0, self._admission.empty(), self._calls.all_answered())

    async def _run(self, signal_name: str) -> None:
        self._health.drain()
        began_s = self._loop.time()
        stays_s = self._settings.healthcheck_interval_s if self._health.may_get_calls() else 0.0
        longest_s = self._longest_s(stays_s)
        log.info(
            "draining",
            signal=signal_name,
            running=self._invocations.running,
            waiting=self._admission.waiting,
            **({"longest_s": longest_s, "over_by": time_in(longest_s)} if longest_s < math.inf else {}),
        )
        await asyncio.sleep(stays_s)
        await self._listener.drain()
        self.refuse_all()
        await self._http.close_idle()
        if not await within(self._settings.write_timeout_s, self._admission.empty()):
            if self._invocations.running:
                log.warning("running invocations are ended", count=self._invocations.running)
            self._supervisor.end_all(at_once=False)
            self._invocations.refuse_waiting(of_all=True)
            # A call that keeps its place for a slow reader is inside, too. It has the rest of the drain.
            await within(self._settings.kill_grace_s + UNKILLABLE_S, self._no_function_runs())
        # Callers have the rest of the drain to read their answers. This time may be over if a script did not end soon
        # after SIGKILL. Then callers get some more time.
        until_s = max(began_s + longest_s, self._loop.time() + _LAST_ANSWERS_S)
        await within(until_s - self._loop.time(), self._calls.all_answered(), self._invocations.function.close())
        await self._http.close_gracefully(until_s - self._loop.time())

    async def _no_function_runs(self) -> None:
        while self._invocations.running:
            await asyncio.sleep(_LOOK_S)

    def _longest_s(self, stays_s: float) -> float:
        """Return the bound of the whole drain. It is infinite without ``write_timeout``.

        Args:
            stays_s: the time for which the server stays reachable.
        """
        if not self._settings.write_timeout_s:
            return math.inf
        ends_s = self._settings.kill_grace_s
        if self._invocations.stores:  # what is left of cancelled uploads is removed while scripts are ended
            ends_s = max(ends_s, CLEANUP_S)
        return stays_s + self._settings.write_timeout_s + ends_s + _CLOSING_S + _LAST_ANSWERS_S

    def refuse_all(self, *, at_once: bool = False) -> None:
        """Start no more calls. Answer 503 to calls that wait for a place, and to calls whose body is not complete.

        Args:
            at_once: also end all transfers from and to storages, and do not wait for the rest of any body.
        """
        self._admission.close()
        self._invocations.refuse_waiting(of_all=at_once)
        self._bodies.refuse(at_once=at_once)


async def within(limit_s: float, *steps: Awaitable[None]) -> bool:
    """Run all steps at the same time, and return whether they ended within ``limit_s`` (0 means no limit)."""
    try:
        async with asyncio.timeout(limit_s or None):
            await asyncio.gather(*steps)
    except TimeoutError:
        return False
    return True


def _is_at_a_terminal() -> bool:
    return os.isatty(0) or os.isatty(2)
