"""Count failed loads, choose the pause before the next load, and make the error for calls that come meanwhile.

The pause is 1 s after the first failure, and doubles with each further one. A worker that was ready and ends before its
first call is replaced at once. With N places, this may happen N times. Each further time counts as a failed load.

As soon as a worker has served a call, failures that came before it was ready do not count any more. A ready worker is
not enough for this: it may be one that always ends before its first call. Later failures still count: if the memory is
enough for one model but not for two, the second worker must not be loaded again each second. For the same reason, they
count if the worker is the next one in the place of a worker that has served calls: they happened in other places.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import msgspec

from ..errors import WorkerNotLoaded
from ..logs.setup import get_logger
from ..process.ended import Ended
from .worker import Worker

log = get_logger("worker")
_LONGEST_PAUSE_S = 60.0
_MOST_DOUBLINGS = 6  # 2 ** 6 s is longer than the longest pause


class LoadFailure(msgspec.Struct, frozen=True):
    """Why a worker was not loaded. ``state``: the state of the script's file at that time."""

    text: str
    exit_code: int | None = None
    stderr: str = ""
    state: object = None

    @classmethod
    def of(cls, worker: Worker, ended: Ended, hint: Callable[[Ended], str]) -> LoadFailure:
        """Return why a worker ended before it served a call. ``hint``: see :class:`LoadFailures`."""
        if worker.broken is not None:
            text = worker.broken
        elif worker.end_reason == "start_timeout":
            text = (
                f"the script did not write `ready` to descriptor 4 in {worker.start_timeout_s:g} s (warm_start_timeout)"
            )
        elif worker.load_s:
            text = f"the worker was ready, but ended with {_end_of(ended)} before it served a call"
        elif ended.exit_code == 0:
            text = (
                "the script ended without writing `ready` to descriptor 4, so it is not a script for warm functions; "
                "change it, or unset WATCHDOG_WARM"
            )
        else:
            text = f"the script ended while it loaded, with {_end_of(ended)}{hint(ended)}"
        return cls(text, ended.exit_code, worker.log.tail.text(), worker.state)


class LoadFailures:
    """The failed loads of the workers of one function.

    Args:
        places: the number of workers.
        hint: returns a likely reason why a load ended in this way, as the end of a sentence; empty if none is known.

    Attributes:
        last: the last failed load; None if a worker was ready after it.
        pause_until_s: the time of the event loop before which no worker is loaded.
    """

    def __init__(self, places: int, hint: Callable[[Ended], str]) -> None:
        self._loop = asyncio.get_running_loop()
        self._places = places
        self._hint = hint
        self.last: LoadFailure | None = None
        self.pause_until_s = 0.0
        # The number of failed loads. A load that fails during a pause does not count.
        self._count = 0
        # The number of workers that were ready but ended before their first call.
        self._unused = 0
        self._last_s = 0.0  # the time of the event loop when a load last failed, or when such a worker last ended

    def must_pause(self) -> bool:
        """Return whether the keepers must load one worker at a time, and only when the pause is over."""
        return self._count > 0 or self._loop.time() < self.pause_until_s

    def note(self, failure: LoadFailure) -> None:
        """Note that a load has failed. The next one begins after a pause."""
        self._last_s = now_s = self._loop.time()
        if now_s >= self.pause_until_s:
            self.pause_until_s = now_s + min(2.0 ** min(self._count, _MOST_DOUBLINGS), _LONGEST_PAUSE_S)
            self._count += 1
        self.last = failure
        log.error(
            "worker not loaded",
            reason=failure.text,
            exit_code=failure.exit_code,
            retry_in_s=round(self.pause_until_s - now_s, 1),
        )

    def note_unused(self, worker: Worker, ended: Ended) -> None:
        """Note that a worker has ended before its first call."""
        if worker.load_s:
            self._last_s = self._loop.time()
            self._unused += 1
            if self._unused <= self._places:
                return
        self.note(LoadFailure.of(worker, ended, self._hint))

    def note_ready(self) -> None:
        """Note that a worker has loaded."""
        self.last = None

    def note_ended(self, worker: Worker) -> None:
        """Note that a worker that was ready has ended. A long life counts like a served call."""
        if self._loop.time() - worker.ready_s > _LONGEST_PAUSE_S:
            self.note_served(worker)

    def note_served(self, worker: Worker) -> None:
        """Note that a worker has served a call."""
        if worker.ready_s > self._last_s and not worker.replaces_served:
            self._count = self._unused = 0

    def forget_other_script(self, state: object) -> bool:
        """Forget all failures if the script has changed since the last one. Return whether it has.

        Args:
            state: the state of the script's file now.
        """
        if self.last is None or self.last.state == state:
            return False
        self.last, self.pause_until_s, self._count, self._unused = None, 0.0, 0, 0
        return True

    def error(self) -> WorkerNotLoaded | None:
        """Return the error of a call that comes now; None if no load has failed."""
        if self.last is None:
            return None
        retry_after_s = max(1, math.ceil(self.pause_until_s - self._loop.time()))
        return WorkerNotLoaded(
            self.last.text,
            exit_code=self.last.exit_code,
            retry_after_s=retry_after_s,
            stderr=self.last.stderr,
        )


def _end_of(ended: Ended) -> str:
    return f"exit code {ended.exit_code}" if ended.signal is None else ended.signal
