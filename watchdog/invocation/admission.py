"""Give places to invocations, and bound the queue of the calls that wait for a place.

- A call *enters* before its body is read. So calls over the limit are rejected before they fill the disk.
- It gets its *place* when its input is complete. Calls get places in the order in which their inputs were complete. So
  no other call waits for a slow sender.
- It *leaves* when the processes of its script are gone. So no other call waits for a slow reader.
- From then on it counts as an *answer* that is being sent. The server bounds the sum of the calls inside and the
  answers, because each of them has files in ``tmp_dir``. The bytes of the answers are bounded for the same reason.

If a new call exceeds one of these bounds, the server gives up its slowest caller: it stops waiting for this caller, and
the new call may enter. If this caller was sending a body, it gets the status 429. If it was reading an answer, the
server disconnects it.

Some calls keep their place while the server waits for their callers: a caller sends its body to a classic function, or
it reads an answer whose outputs other scripts must not see. If another call has waited for a place for some seconds,
the server gives up the slowest of these callers.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from ..errors import Draining, Overloaded
from .pace import Paces

_LONGEST_RETRY_AFTER_S = 300
DRAINING_RETRY_AFTER_S = 5
# If the answers that are being sent have fewer bytes than this, the server does not compare them with the free space of
# the disk. This saves a system call.
_SMALL_ANSWERS_BYTES = 16 << 20
# A call waits for a place for this time before the server gives up a slow caller that has a place. A slow caller may be
# honest, and most places become free sooner. If queue_timeout is short, the call waits for half of it.
_WAIT_FOR_SLOW_S = 5.0
# If there is no slow caller then, the server looks for one again after this time.
_LOOK_AGAIN_S = 1.0
# The time between two reports of the positions of waiting calls.
_REPORT_S = 0.5


class Admission:
    """Decides which calls may enter and which may run.

    Args:
        max_inflight: the largest number of invocations at a time; 0 means no limit.
        max_queue: the number of calls that may be inside in addition to these.
        queue_timeout_s: the longest wait for a place.
        free_bytes: returns the free space of the disk that holds the answers.
        do_senders_have_places: a call has a place while its body is read, because the function reads the body.
    """

    def __init__(
        self,
        *,
        max_inflight: int,
        max_queue: int,
        queue_timeout_s: float,
        free_bytes: Callable[[], float] = lambda: math.inf,
        do_senders_have_places: bool = False,
    ) -> None:
        self.max_inflight = max_inflight
        self.max_queue = max_queue
        self.queue_timeout_s = queue_timeout_s
        self.inside = 0
        self.running = 0
        self.answers = 0
        self.answer_bytes = 0
        self.senders = Paces()
        self.readers = Paces()
        # The readers whose calls keep their places until their answers are sent.
        self.readers_with_place = Paces()
        self._senders_with_place = self.senders if do_senders_have_places else Paces()
        # How many slow callers were given up while they sent a body, or while they read an answer.
        self.given_up = {"body": 0, "answer": 0}
        self._free_bytes = free_bytes
        self._waiting: deque[asyncio.Future[None]] = deque()
        # The waiting calls that want to know their position, and the timer of their next report.
        self._report_to: dict[asyncio.Future[None], Callable[[int], None]] = {}
        self._report: asyncio.TimerHandle | None = None
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._usual_run_s = 1.0

    @property
    def waiting(self) -> int:
        """The number of calls that wait for a place now."""
        return len(self._waiting)

    @property
    def has_free_place(self) -> bool:
        return not self.max_inflight or self.running < self.max_inflight

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._draining

    @property
    def is_full(self) -> bool:
        """Whether a call that came now would be rejected."""
        callers, reason = self._exceeded_bound()
        return bool(reason) and callers.slowest() is None

    def enter(self) -> Ticket:
        """Let a call enter, or reject it at once.

        Raises:
            Overloaded: all places and the whole queue are taken, or too many answers are still being sent.
            Draining: :meth:`close` was called.
        """
        if self._draining:
            raise self.refusal()
        callers, reason = self._exceeded_bound()
        if reason:
            slowest = callers.slowest()
            if slowest is None:
                raise Overloaded(reason, self.retry_after_s())
            self.given_up["body" if callers is self.senders else "answer"] += 1
            slowest.give_up()
        self.inside += 1
        self._idle.clear()
        return Ticket(self)

    def _exceeded_bound(self) -> tuple[Paces, str]:
        """Return the bound that one more call would exceed.

        The first value is a set of callers: the slowest of them may be given up for the new call. The second value is
        the reason, as text. It is empty if the call may enter.
        """
        most = self.max_inflight + self.max_queue
        if self.max_inflight and self.inside >= most:
            return self.senders, (
                f"all {self.max_inflight} places are taken and {self.max_queue} calls wait already; "
                "try again later, or raise max_inflight or max_queue"
            )
        if self.max_inflight and self.inside + self.answers >= 2 * most:
            return self.readers, (
                f"{self.answers} answers are still being sent to callers that read them slowly; try again later"
            )
        if self.answer_bytes > _SMALL_ANSWERS_BYTES and self.answer_bytes > self._free_bytes():
            return self.readers, (
                f"the answers that are still being sent have {self.answer_bytes} bytes, more than is free in tmp_dir; "
                "try again later, or give tmp_dir more space"
            )
        return self.senders, ""

    def close(self) -> None:
        """Let no more calls enter, and reject the calls that wait for a place. Calls that have a place continue."""
        self._draining = True
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(self.refusal())

    async def empty(self) -> None:
        """Return when no call is inside any more."""
        await self._idle.wait()

    def _takes_free_place(self) -> bool:
        """Take a place if one is free. Return whether this was done."""
        if self._draining or self._waiting or (self.max_inflight and self.running >= self.max_inflight):
            return False
        self.running += 1
        return True

    async def _wait_for_place(self, report_position: Callable[[int], None] | None) -> None:
        if self._draining:
            raise self.refusal()
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiting.append(waiter)
        if report_position is not None:
            self._report_to[waiter] = report_position
            report_position(len(self._waiting))
        look = loop.call_later(min(_WAIT_FOR_SLOW_S, self.queue_timeout_s / 2), self._look_for_slow, waiter)
        try:
            async with asyncio.timeout(self.queue_timeout_s):
                await waiter
        except BaseException as error:
            # Race: this call may have got a place just when its wait ended.
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._give_place_back()
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
                self._positions_changed()
            if isinstance(error, TimeoutError):
                raise Overloaded(
                    f"no place became free in {self.queue_timeout_s:g} s (queue_timeout); try again later",
                    self.retry_after_s(),
                ) from None
            raise
        finally:
            look.cancel()
            self._report_to.pop(waiter, None)

    def _positions_changed(self) -> None:
        """Report the new positions of waiting calls soon. A report for each change would take too long."""
        if self._report_to and self._report is None:
            self._report = asyncio.get_running_loop().call_later(_REPORT_S, self._report_positions)

    def _report_positions(self) -> None:
        self._report = None
        for position, waiter in enumerate(self._waiting, 1):
            if (report := self._report_to.get(waiter)) is not None and not waiter.done():
                report(position)

    def _look_for_slow(self, waiter: asyncio.Future[None]) -> None:
        """Give up the slowest caller that has a place, so that a waiting call gets this place.

        Do nothing if all callers are fast, and look again later.
        """
        if waiter.done():
            return
        pause_s = _LOOK_AGAIN_S
        for direction, callers in (("answer", self.readers_with_place), ("body", self._senders_with_place)):
            if (slowest := callers.slowest()) is not None:
                self.given_up[direction] += 1
                slowest.give_up()
                # The place becomes free only when the script has ended, so allow some time for that.
                pause_s = _WAIT_FOR_SLOW_S
                break
        asyncio.get_running_loop().call_later(pause_s, self._look_for_slow, waiter)

    def _give_place_back(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                # The place passes directly to the waiting call, so that no other call can take it first.
                waiter.set_result(None)
                self._positions_changed()
                return
        self.running -= 1

    def _leave_place(self, run_s: float) -> None:
        self._usual_run_s += 0.2 * (run_s - self._usual_run_s)
        self._give_place_back()

    def _leave(self) -> None:
        self.inside -= 1
        if not self.inside:
            self._idle.set()

    def refusal(self) -> Draining:
        """Return the error of a call that is rejected because the server is stopping."""
        return Draining("the server is stopping; send the call again to another server", DRAINING_RETRY_AFTER_S)

    def retry_after_s(self) -> int:
        """Return the number of seconds after which a rejected call may try again."""
        rounds = (len(self._waiting) + 1) / (self.max_inflight or 1)
        return max(1, min(_LONGEST_RETRY_AFTER_S, math.ceil(rounds * self._usual_run_s)))


class Ticket:
    """A call that has entered. Use it as a context manager: the call leaves when the context ends."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._has_place = False
        self._inside = True
        self._is_answer = False
        self._answer_bytes = 0
        self._since_s = 0.0
        self.waited_s = 0.0

    async def place(self, report_position: Callable[[int], None] | None = None) -> float:
        """Wait for a place, and return the length of the wait in seconds. ``waited_s`` has it after an error, too.

        Args:
            report_position: is called with the position of the call if the call has to wait, and again when its
                position may have changed. The position is 1 for the call that gets the next place.

        Raises:
            Overloaded: ``queue_timeout_s`` passed.
            Draining: the server is stopping.
        """
        asked_s = self._since_s = time.monotonic()
        if self._admission._takes_free_place():
            self._has_place = True
            return 0.0
        try:
            await self._admission._wait_for_place(report_position)
            self._has_place = True
        finally:
            self._since_s = time.monotonic()
            self.waited_s = self._since_s - asked_s
        return self.waited_s

    def leave_place(self) -> None:
        """Give the place back, but stay inside. The call still counts when a new call asks to enter."""
        if self._has_place:
            self._has_place = False
            self._admission._leave_place(time.monotonic() - self._since_s)

    def hand_over(self) -> None:
        """Give the place back and leave. From now on the call counts as an answer. Repeating this has no effect."""
        if self._inside:
            self._is_answer = True
            self._admission.answers += 1
            self._leave()

    def holds(self, count: int) -> None:
        """Note that this call has ``count`` more bytes in ``tmp_dir`` until its answer is sent."""
        self._answer_bytes += count
        self._admission.answer_bytes += count

    def leave(self) -> None:
        """Give back the place. The call is then neither inside nor an answer. Repeating this has no effect."""
        self._leave()
        if self._is_answer:
            self._is_answer = False
            self._admission.answers -= 1
        self._admission.answer_bytes -= self._answer_bytes
        self._answer_bytes = 0

    def _leave(self) -> None:
        self.leave_place()
        if self._inside:
            self._inside = False
            self._admission._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
