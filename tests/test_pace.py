"""How fast a caller is, with a short window and without any socket."""

from __future__ import annotations

import asyncio

import pytest

from watchdog.invocation import pace
from watchdog.invocation.pace import Pace, Paces


class Moving:
    """A caller that moves bytes."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> int:
        return self.count


def pace_of(moving: Moving, *, silence_s: float = 60.0, least_rate: int = 0, judged_after_s: float = 0.0) -> Pace:
    return Pace(moving, silence_s=silence_s, least_rate=least_rate, judged_after_s=judged_after_s)


async def test_only_the_wait_counts() -> None:
    one = pace_of(Moving())
    await asyncio.sleep(0.01)
    assert one.waited_s == 0
    paces = Paces()
    async with one.waiting(paces):
        assert paces == {one}
        await asyncio.sleep(0.01)
        assert one.waited_s >= 0.01
    assert paces == set()


async def test_silence_ends_the_wait_and_is_not_slowness() -> None:
    one = pace_of(Moving(), silence_s=0.01, least_rate=1)
    with pytest.raises(TimeoutError):
        async with one.waiting(Paces()):
            await asyncio.sleep(60)
    assert not one.is_too_slow


async def test_a_caller_below_the_minimum_is_too_slow_after_several_short_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The test moves the clock on by a second in each wait, so a slow machine changes nothing."""
    loop = asyncio.get_running_loop()
    real_s, waits = loop.time, 0
    monkeypatch.setattr(loop, "time", lambda: real_s() + waits)
    moving = Moving()
    one = pace_of(moving, silence_s=300.0, least_rate=1_000_000)

    async def drip() -> None:
        nonlocal waits
        while True:
            async with one.waiting(Paces()):
                waits += 1
                moving.count += 1
                await asyncio.sleep(0)

    with pytest.raises(TimeoutError):
        await drip()
    assert one.is_too_slow
    assert 250 < one.moved_bytes <= 301


async def test_a_caller_above_the_minimum_may_continue_for_longer_than_the_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pace, "_SHORTEST_WINDOW_S", 0.0)
    moving = Moving()
    one = pace_of(moving, silence_s=2.0, least_rate=1)
    for _ in range(30):
        async with one.waiting(Paces()):
            await asyncio.sleep(0.1)
            moving.count += 1000


async def test_the_slowest_is_given_up_first_and_none_that_is_fast() -> None:
    moving = [Moving(), Moving(), Moving()]
    slow, slower, fast = [pace_of(each) for each in moving]
    paces = Paces()
    async with asyncio.TaskGroup() as tasks:

        async def wait(one: Pace) -> None:
            async with one.waiting(paces):
                await asyncio.sleep(60)

        waits = [tasks.create_task(wait(one)) for one in (slow, slower, fast)]
        while len(paces) < 3:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        moving[0].count, moving[2].count = 2, 1 << 40
        assert paces.slowest() is slower
        slower.is_given_up = True
        assert paces.slowest() is slow
        slow.is_given_up = True
        assert paces.slowest() is None
        for each in waits:
            each.cancel()


async def test_a_caller_is_not_judged_before_its_time() -> None:
    one = pace_of(Moving(), judged_after_s=60.0)
    paces = Paces()
    async with one.waiting(paces):
        assert paces.slowest() is None


async def test_a_caller_given_up_when_its_wait_ends_is_given_up() -> None:
    one = pace_of(Moving())

    async def wait() -> None:
        async with one.waiting(Paces()):
            one.give_up()

    with pytest.raises(TimeoutError):
        await wait()


async def test_giving_up_ends_the_wait() -> None:
    one = pace_of(Moving())

    async def wait() -> None:
        async with one.waiting(Paces()):
            one.give_up()
            await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        await wait()
    assert one.is_given_up
