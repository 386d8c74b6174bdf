"""Use threads for work that may block: on ``/proc``, on files that a script chose, and on files on a slow disk.

::

    LISTINGS    list the outputs of scripts, and follow links among them
    SEARCHES    search directories that scripts use for files that are not outputs
    OUTPUTS     keep what scripts print, read outputs and encode them
    REMOVALS    remove the workspaces of ended calls
    PROCESSES   read about process trees
    the loop's  write inputs, transfer files from and to a storage
    METRICS     make the text of the metrics
    alone()     work that must not wait for other work: the start and the stop

Each group has its own threads, so a million output files of one call do not delay the input or the end of another
call. Each group has few threads, so long work is done in steps (:func:`one_ahead`), and between two steps the threads
work for other calls. A script can lead LISTINGS and SEARCHES into a file system that hangs, so these threads do nothing
else.

A thread that hangs in the kernel (a dead network file system) cannot be ended. Python waits at exit for the threads of
``concurrent.futures``, so such a thread could prevent the end of the process forever. The threads here are daemons, and
:func:`abandon` ends the waits for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

_ALL: list[Threads] = []


class Abandoned(Exception):
    """The process is about to end, and the thread that does this work may hang."""


class Threads(ThreadPoolExecutor):
    """An executor with at most ``most`` daemon threads. It starts a new thread when all others have work.

    It is a subclass of ``ThreadPoolExecutor`` because asyncio accepts no other class for the default executor. It uses
    none of the code of that class.
    """

    def __init__(self, name: str, most: int | None = None) -> None:
        self._name = name
        self.most = most or min(32, (os.cpu_count() or 1) + 4)
        self._lock = threading.Lock()
        self._started = 0
        self._unfinished: set[Future[Any]] = set()
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        _ALL.append(self)

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Run a function in a thread.

        Raises:
            RuntimeError: there is no thread yet, and none can be started. The function does not run then.
        """
        job: Future[_T] = Future()
        with self._lock:
            if len(self._unfinished) >= self._started and self._started < self.most:
                try:
                    threading.Thread(target=self._work, name=self._name, daemon=True).start()
                except RuntimeError:
                    if not self._started:
                        raise
                else:
                    self._started += 1
            self._unfinished.add(job)
        self._queue.put((job, lambda: fn(*args, **kwargs)))
        return job

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do nothing: the threads end with the process, and the next event loop may use them."""

    def abandon(self) -> int:
        """End the waits for all unfinished work, and return the number of unfinished pieces of work."""
        with self._lock:
            jobs, self._unfinished = self._unfinished, set()
        for job in jobs:
            if not job.cancel():
                with contextlib.suppress(InvalidStateError):  # the work has finished meanwhile
                    job.set_exception(Abandoned("the process ends, and this work was not done in time"))
        return len(jobs)

    def _work(self) -> None:
        while True:
            job, function = self._queue.get()
            _do(job, function, self._finished)
            del job, function  # otherwise they may keep megabytes until the next work arrives

    def _finished(self, job: Future[Any]) -> None:
        # Called before the result is set. The code that waits for the result may submit new work at once, and this
        # thread must count as free by then.
        with self._lock:
            self._unfinished.discard(job)


LISTINGS = Threads("listings")
SEARCHES = Threads("searches")
OUTPUTS = Threads("outputs")
REMOVALS = Threads("removals", 4)
PROCESSES = Threads("processes")
METRICS = Threads("metrics", 1)


def abandon() -> int:
    """End all waits for unfinished work of these threads, because the process ends. Return the number of waits."""
    return sum(threads.abandon() for threads in _ALL)


async def alone(function: Callable[[], _T]) -> _T:
    """Run a function in a thread of its own. If no thread can be started, run the function here."""
    job: Future[_T] = Future()
    try:
        threading.Thread(target=_do, args=(job, function), name="alone", daemon=True).start()
    except RuntimeError:
        return function()
    return await asyncio.wrap_future(job)


async def to_its_end(job: asyncio.Future[_T]) -> _T:
    """Await the job of a thread. If this wait is cancelled, raise only when the thread has finished the job.

    Use this if the job uses a descriptor that its caller closes. Otherwise the thread could read or write another file
    that gets the same descriptor number.
    """
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        await settled(job)
        raise


async def settled(job: asyncio.Future[Any]) -> None:
    """Wait for the end of a job or task, even if this wait is cancelled several times. Its error is not raised.

    The error counts as retrieved, so asyncio does not log it.
    """
    while not job.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([job])
    take_error(job)


def take_error(job: asyncio.Future[Any]) -> None:
    """Retrieve the error of a finished job, so that asyncio does not log it. Call this if no task awaits the job."""
    if not job.cancelled():
        job.exception()


async def one_ahead(steps: Generator[_T, None, None], threads: Threads) -> AsyncGenerator[_T, None]:
    """Run a generator in threads, always one step ahead of the code that reads its items. None means the end."""
    loop = asyncio.get_running_loop()
    job = loop.run_in_executor(threads, next, steps, None)
    try:
        while True:
            # Do not `await job`: a cancellation would also cancel the job, and a cancelled job does not show when its
            # thread is done.
            await asyncio.wait((job,))
            step = job.result()
            if step is None:
                return
            job = loop.run_in_executor(threads, next, steps, None)
            yield step
    finally:
        # The generator owns a descriptor, and a thread may be running it. So wait for the thread, even if cancelled.
        # This takes one step at most.
        cancelled = None
        while not job.done():
            try:
                await asyncio.wait((job,))
            except asyncio.CancelledError as error:
                cancelled = error
        _close(steps, job)
        if cancelled is not None:
            raise cancelled


async def in_steps(steps: Generator[object, None, None], threads: Threads) -> None:
    """Run a generator to its end in threads, step by step.

    If this function is cancelled, it returns at once, even if a step hangs. The current step then runs to its end, and
    the generator is closed after that. So the rest of the step must do no harm.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            job = loop.run_in_executor(threads, next, steps, None)
        except RuntimeError:  # no thread can be started now
            await asyncio.sleep(0)
            if next(steps, None) is None:
                return
            continue
        try:
            # Do not `await job`: a cancellation would also cancel the job, and a cancelled job does not show when its
            # thread is done.
            await asyncio.wait((job,))
        except asyncio.CancelledError:
            job.add_done_callback(lambda job: _close(steps, job))
            raise
        if job.result() is None:
            return


def _close(steps: Generator[object, None, None], job: asyncio.Future[Any]) -> None:
    """Close a generator after its last step, except if a thread hangs in it."""
    if job.cancelled() or not isinstance(job.exception(), Abandoned):
        steps.close()


def _do(job: Future[_T], function: Callable[[], _T], finished: Callable[[Future[_T]], None] = lambda job: None) -> None:
    if not job.set_running_or_notify_cancel():
        finished(job)
        return
    try:
        result = function()
    except BaseException as error:
        finished(job)
        with contextlib.suppress(InvalidStateError):  # abandoned
            job.set_exception(error)
    else:
        finished(job)
        with contextlib.suppress(InvalidStateError):
            job.set_result(result)
