"""Threads for work on files: how many there are, what happens without any, how the process gets rid of them."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Generator
from concurrent.futures import Future

import pytest

from watchdog.system import threads
from watchdog.system.threads import Abandoned, Threads, alone, in_steps, one_ahead


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def no_start(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_work_is_done_and_its_error_is_raised() -> None:
    some = Threads("some")
    assert some.submit(divmod, 7, 2).result(10) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        some.submit(divmod, 7, 0).result(10)


def test_one_thread_does_what_comes_one_after_the_other() -> None:
    some = Threads("one after the other")
    assert len({some.submit(threading.get_ident).result(10) for _ in range(100)}) == 1


def test_there_are_never_more_threads_than_allowed() -> None:
    some = Threads("at most three", 3)
    go_on = threading.Event()
    jobs = [some.submit(go_on.wait, 60) for _ in range(20)]
    assert names().count("at most three") == 3
    go_on.set()
    assert all(job.result(10) for job in jobs)
    assert names().count("at most three") == 3


def test_without_any_thread_the_work_is_refused_and_never_done(monkeypatch: pytest.MonkeyPatch) -> None:
    some = Threads("none")
    done: list[str] = []
    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", no_start)
        with pytest.raises(RuntimeError):
            some.submit(done.append, "refused")
    some.submit(done.append, "accepted").result(10)
    assert done == ["accepted"]


def test_if_no_further_thread_can_be_started_the_work_waits_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ThreadPoolExecutor raises an error, but still does the work later. A caller could then do the work again."""
    some = Threads("one")
    go_on = threading.Event()
    first = some.submit(go_on.wait, 60)
    done: list[str] = []
    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", no_start)
        second = some.submit(done.append, "once")
    go_on.set()
    assert first.result(10)
    second.result(10)
    assert done == ["once"]


def test_an_idle_thread_keeps_nothing_alive() -> None:
    class Large:
        def size(self) -> int:
            return 1

    some = Threads("idle")
    large = Large()
    gone = threading.Event()
    weakref.finalize(large, gone.set)
    assert some.submit(large.size).result(10) == 1
    del large
    assert gone.wait(10)


def test_work_that_hangs_is_abandoned() -> None:
    some = Threads("hanging", 1)
    is_in, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        is_in.set()
        go_on.wait(10)

    hanging = some.submit(hang)
    waiting = some.submit(threading.get_ident)
    assert is_in.wait(10)
    assert some.abandon() == 2
    with pytest.raises(Abandoned):
        hanging.result(10)
    assert waiting.cancelled()
    go_on.set()
    assert some.submit(str, 1).result(10) == "1"
    assert some.abandon() == 0


def test_all_groups_are_abandoned_at_once() -> None:
    groups = [
        threads.LISTINGS,
        threads.SEARCHES,
        threads.OUTPUTS,
        threads.REMOVALS,
        threads.PROCESSES,
        Threads("files"),
    ]
    go_on = threading.Event()
    jobs = [group.submit(go_on.wait, 60) for group in groups]
    assert threads.abandon() >= len(groups)
    assert all(job.done() for job in jobs)
    go_on.set()


async def test_alone_needs_none_of_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await alone(threading.get_ident) != threading.get_ident()
    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", no_start)
        assert await alone(threading.get_ident) == threading.get_ident()


async def test_without_any_thread_steps_are_done_in_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def run() -> Generator[bool, None, None]:
        for _ in range(3):
            done.append(threading.get_ident())
            yield True

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", no_start)
        await in_steps(run(), Threads("none"))
    assert done == [threading.get_ident()] * 3


class Steps:
    """Yield steps. Each of them waits until it may continue."""

    def __init__(self) -> None:
        self.entered, self.go_on, self.closed = (threading.Event() for _ in range(3))

    def run(self) -> Generator[bool, None, None]:
        try:
            while True:
                self.entered.set()
                self.go_on.wait(10)
                yield True
        finally:
            self.closed.set()


async def test_steps_that_are_cancelled_are_left_at_once_and_closed_after_the_step() -> None:
    steps = Steps()
    running = asyncio.create_task(in_steps(steps.run(), Threads("steps")))
    await asyncio.to_thread(steps.entered.wait, 60)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not steps.closed.is_set()
    steps.go_on.set()
    assert await asyncio.to_thread(steps.closed.wait, 60)


async def test_a_reader_of_steps_that_hang_ends_when_they_are_abandoned() -> None:
    steps, some = Steps(), Threads("steps")

    async def read() -> None:
        async for _ in one_ahead(steps.run(), some):
            pass

    reading = asyncio.create_task(read())
    await asyncio.to_thread(steps.entered.wait, 60)
    reading.cancel()
    assert some.abandon() == 1
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(reading, 60)
    steps.go_on.set()


async def test_the_error_of_a_step_is_raised() -> None:
    def fail() -> Generator[bool, None, None]:
        yield True
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        await in_steps(fail(), Threads("steps"))


def test_a_job_that_was_cancelled_in_the_queue_does_not_run() -> None:
    some = Threads("queue", 1)
    go_on = threading.Event()
    first = some.submit(go_on.wait, 60)
    done: list[str] = []
    second: Future[None] = some.submit(done.append, "x")
    assert second.cancel()
    go_on.set()
    assert first.result(10)
    some.submit(str).result(10)
    assert done == []
