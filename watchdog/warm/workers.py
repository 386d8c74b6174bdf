"""Keep a fixed number of workers, and give each call one of them.

::

    each place:   load ──► ready ──► serve calls ──► ended ──► load …
                    │ failed
                    └────► pause: 1, 2, 4 … 60 s ──► load …

Each place has a keeper, a task that starts a worker only when the process tree of the last one is gone. So there are
never more workers than places. If a load has failed, the keepers load one worker at a time, until one has served a
call. ``load_failures.py`` decides how long they pause. A keeper whose last worker served calls does not pause: the
loads that fail in other places say nothing about its own.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Callable

from ..errors import Draining, Overloaded, WatchdogError
from ..logs.setup import get_logger
from ..process.ended import Ended
from ..process.pipes import set_done
from .load_failures import LoadFailure, LoadFailures
from .worker import NotTaken, Worker, WorkerCall

log = get_logger("worker")
# A caller may send a call again after this time, if no worker was ready in time.
_RETRY_AFTER_S = 5
STATES = ("loading", "idle", "busy", "ending")
# Why a worker was replaced.
REASONS = (
    "crashed",
    "load_failed",
    "start_timeout",
    "protocol",
    "timeout",
    "caller_gone",
    "max_calls",
    "max_memory",
    "script_changed",
)


class Workers:
    """The workers of one function.

    Args:
        count: the number of workers, at least 1.
        start: starts a worker. It may raise a ``WatchdogError``.
        script_state: returns the state of the script's file now. It may raise ``ScriptUnavailable``.
        max_calls: a worker is replaced after this number of calls; 0 means no limit.
        max_memory_bytes: a worker is replaced if it has more memory than this after a call; 0 means no limit.
        queue_timeout_s: the longest time for which a call waits, for its place and for a worker.
        note_loaded: is called with the duration of each successful load in seconds.
        note_ended: is called with each worker whose process tree is gone.
        hint: returns a likely reason why a load failed; see :class:`LoadFailures`.
    """

    def __init__(
        self,
        count: int,
        *,
        start: Callable[[], Worker],
        script_state: Callable[[], object],
        max_calls: int,
        max_memory_bytes: int,
        queue_timeout_s: float,
        note_loaded: Callable[[float], None],
        note_ended: Callable[[Worker], None],
        hint: Callable[[Ended], str],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._count = count
        self._start = start
        self._script_state = script_state
        self._max_calls = max_calls
        self._max_memory_bytes = max_memory_bytes
        self._queue_timeout_s = queue_timeout_s
        self._note_loaded = note_loaded
        self._note_ended = note_ended
        self._keepers: list[asyncio.Task[None]] = []
        self._looks: set[asyncio.Task[None]] = set()
        self._workers: set[Worker] = set()
        self._idle: list[Worker] = []  # the worker that was used last is at the end
        self._queue: deque[WorkerCall] = deque()  # the calls that wait for a worker
        self._waiting: set[asyncio.Future[None]] = set()
        self._turn = asyncio.Lock()
        self._failures = LoadFailures(count, hint)
        self._refusal: Callable[[], Draining] | None = None
        self._is_closing = False

    def start(self) -> None:
        """Begin to load all workers. A second call does nothing."""
        if not self._keepers:
            self._keepers = [self._loop.create_task(self._keep()) for _ in range(self._count)]
            for keeper in self._keepers:
                keeper.add_done_callback(_report_fault)

    async def until_loaded(self) -> None:
        """Wait until one worker is ready, or a load has failed."""
        while self.is_loading and not self._is_closing:
            await self._change(math.inf)

    @property
    def problem(self) -> str | None:
        """The reason why no call could be served now, or None."""
        if any(worker.is_ready for worker in self._workers):
            return None
        return "loading" if self._failures.last is None else self._failures.last.text

    @property
    def is_loading(self) -> bool:
        """Whether no worker is ready, and no load has failed since the last worker was ready."""
        return self.problem is not None and self._failures.last is None

    def states(self) -> dict[str, int]:
        """Return the number of workers in each of ``STATES``."""
        found = Counter(_state_of(worker) for worker in [*self._workers])  # a thread calls this
        return {state: found[state] for state in STATES}

    async def serve(self, call: WorkerCall, waited_for_place_s: float) -> Ended:
        """Let a worker serve a call, and return how the call ended.

        Args:
            waited_for_place_s: the time for which the call has waited for its place; ``queue_timeout_s`` limits both
                waits together.

        Raises:
            WorkerNotLoaded: no worker is loaded or loading.
            Overloaded: ``queue_timeout_s`` passed, and no worker was ready.
            Draining: :meth:`refuse` was called.
            ScriptUnavailable: the script's file is gone.
        """
        put, longest_s = self._queue.append, self._queue_timeout_s - waited_for_place_s
        while True:
            put(call)
            try:
                worker = await self._taken(call, longest_s)
            finally:
                self._queue.remove(call)
                self._wake_all()
            try:
                return await worker.serve(call)
            except NotTaken:
                # Its caller does not notice this: no later call overtakes it, and it may wait for the next load.
                put, longest_s = self._queue.appendleft, math.inf
            finally:
                self._give_back(worker)

    def refuse(self, refusal: Callable[[], Draining]) -> None:
        """Reject the calls that no idle worker can serve, now and later, and load no more workers.

        Args:
            refusal: makes the error of these calls.
        """
        self._refusal = refusal
        for worker in [*self._workers]:
            if worker.is_loading:
                worker.end("stopped")
        self._wake_all()

    async def close(self) -> None:
        """Let all workers read end-of-file, so that they exit. Return when their process trees are gone."""
        self._is_closing = True
        self._wake_all()
        for worker in [*self._workers]:
            worker.retire("stopped")
        if tasks := [*self._keepers, *self._looks]:
            await asyncio.wait(tasks)

    # One place.

    async def _keep(self) -> None:
        """Keep a worker in one place, until the workers are closed."""
        has_served = False
        while not self._is_over:
            if has_served or not self._failures.must_pause():
                worker = await self._load(replaces_served=has_served)
            else:
                async with self._turn:
                    await self._pause()
                    worker = await self._load() if self._failures.must_pause() else None
            has_served = False
            if worker is None:
                continue
            ended = await worker.ended()
            self._forget(worker)
            _log_end(worker, ended)
            has_served = worker.served > 0
            self._failures.note_ended(worker)
            if not has_served and worker.end_reason in ("crashed", "protocol"):
                self._note_unused(worker, ended)

    @property
    def _is_over(self) -> bool:
        """Whether no more workers are needed."""
        return self._is_closing or self._refusal is not None

    async def _pause(self) -> None:
        """Wait until the pause after a failed load is over, or no longer necessary."""
        while not self._is_over and self._loop.time() < self._failures.pause_until_s:
            await self._change(self._failures.pause_until_s)

    async def _load(self, *, replaces_served: bool = False) -> Worker | None:
        """Load a worker, and return it when it is ready; None if this failed, or if no more are needed."""
        if self._is_over:
            return None
        state: object = None
        try:
            state = self._script_state()
            worker = self._start()
        except WatchdogError as error:
            self._failures.note(LoadFailure(str(error), state=state))
            self._wake_all()
            return None
        worker.replaces_served = replaces_served
        self._workers.add(worker)
        if await worker.loaded():
            self._failures.note_ready()
            log.info("worker ready", pid=worker.pid, load_s=round(worker.load_s, 3))
            self._note_loaded(worker.load_s)
            self._idle.append(worker)
            self._wake_all()
            return worker
        ended = await worker.ended()
        if worker.end_reason == "crashed" and not worker.load_s:
            worker.end_reason = "load_failed"
        self._forget(worker)
        if worker.load_s:
            _log_end(worker, ended)
        if worker.end_reason not in ("stopped", "script_changed"):
            self._note_unused(worker, ended)
        return None

    def _note_unused(self, worker: Worker, ended: Ended) -> None:
        if not self._is_over:
            self._failures.note_unused(worker, ended)
            self._wake_all()

    def _forget(self, worker: Worker) -> None:
        self._workers.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        self._note_ended(worker)
        self._wake_all()

    # Workers for calls.

    async def _taken(self, call: WorkerCall, longest_s: float) -> Worker:
        """Return an idle worker that runs the current script. Wait for it if necessary, and for earlier calls.

        Args:
            longest_s: the longest time for which the call waits for a worker, in all.
        """
        while True:
            self._retire_stale(self._script_state())
            if self._idle and self._queue[0] is call:
                return self._idle.pop()
            # Do not reject the call while the server looks at a worker, because this worker may be idle soon. The call
            # may be the next record of an event that the server serves now. If a worker is idle, an earlier call is
            # about to take it, and there may be another one for this call.
            rest_s = math.inf
            if not self._looks and not self._idle:
                if self._refusal is not None:
                    raise self._refusal()
                if (error := self._failures.error()) is not None and not self._is_any_expected():
                    raise error
                rest_s = longest_s - call.waited_s
                if rest_s <= 0:
                    raise Overloaded(
                        f"no worker was ready in {self._queue_timeout_s:g} s (queue_timeout); try again later",
                        _RETRY_AFTER_S,
                    )
            began_s = self._loop.time()
            try:
                await self._change(began_s + rest_s)
            finally:
                call.waited_s += self._loop.time() - began_s

    def _is_any_expected(self) -> bool:
        """Return whether a worker is loading, loads as soon as another one has ended, or is ready."""
        return any(worker.served or not worker.is_ending for worker in self._workers)

    def _retire_stale(self, state: object) -> None:
        """Retire the idle workers that run an older script. Load again at once if the older script did not load."""
        for worker in [*self._workers]:
            if worker.state != state and not worker.is_ending and not worker.is_busy:
                if worker in self._idle:
                    self._idle.remove(worker)
                worker.retire("script_changed")
        self._idle = [worker for worker in self._idle if not worker.is_ending]
        if self._failures.forget_other_script(state):
            self._wake_all()

    def _give_back(self, worker: Worker) -> None:
        """Take a worker back after a call."""
        if worker.is_ending:
            return
        self._failures.note_served(worker)
        if self._max_memory_bytes or worker.may_have_left:
            look = self._loop.create_task(self._look_at(worker))
            self._looks.add(look)
            look.add_done_callback(self._end_look)
        else:
            self._offer_or_replace(worker, memory_bytes=0)

    async def _look_at(self, worker: Worker) -> None:
        """Look at the processes of a worker before it serves the next call."""
        memory_bytes = 0
        try:
            await worker.report_left()
            if self._max_memory_bytes:
                memory_bytes = await worker.memory_bytes()
        finally:
            self._offer_or_replace(worker, memory_bytes)

    def _end_look(self, look: asyncio.Task[None]) -> None:
        self._looks.discard(look)
        self._wake_all()

    def _offer_or_replace(self, worker: Worker, memory_bytes: int) -> None:
        reason = None
        if self._max_memory_bytes and memory_bytes > self._max_memory_bytes:
            reason = "max_memory"
        elif self._max_calls and worker.served >= self._max_calls:
            reason = "max_calls"
        # Replace one worker at a time, so that the others can serve calls meanwhile. Do not wait for a place whose load
        # has failed: its worker may never be ready.
        others = self._workers - {worker}
        are_all = len(others) == self._count - 1 or self._failures.must_pause()
        if reason is not None and are_all and all(other.is_ready for other in others):
            worker.retire(reason)
        elif not worker.is_ending:
            self._idle.append(worker)
        self._wake_all()

    # Waits.

    async def _change(self, until_s: float) -> None:
        """Wait until something has changed, or the time is over."""
        change = self._loop.create_future()
        self._waiting.add(change)
        timer = self._loop.call_at(until_s, set_done, change) if until_s < math.inf else None
        try:
            await change
        finally:
            self._waiting.discard(change)
            if timer is not None:
                timer.cancel()

    def _wake_all(self) -> None:
        for change in self._waiting:
            set_done(change)


def _log_end(worker: Worker, ended: Ended) -> None:
    """Log why a worker that was ready has ended. Nothing else in the log shows this if it served no call then."""
    if worker.end_reason not in REASONS:
        return
    how = {"exit_code": ended.exit_code} if ended.signal is None else {"signal": ended.signal}
    write = log.warning if worker.end_reason == "crashed" else log.info
    write("worker ended", pid=worker.pid, reason=worker.end_reason, calls=worker.served, **how)


def _report_fault(keeper: asyncio.Task[None]) -> None:
    """Report at once that a keeper has failed. Its place stays empty, and the server continues with the others."""
    if not keeper.cancelled() and (error := keeper.exception()) is not None:
        context = {"message": "a place for a worker is lost", "exception": error}
        keeper.get_loop().call_exception_handler(context)


def _state_of(worker: Worker) -> str:
    if worker.is_ending:
        return "ending"
    if worker.is_busy:
        return "busy"
    return "idle" if worker.is_ready else "loading"
