"""Places and the queue, without any socket."""

from __future__ import annotations

import asyncio

import pytest

from watchdog.errors import Draining, Overloaded
from watchdog.invocation.admission import Admission, Ticket


def admission(**changes: float) -> Admission:
    options = {"max_inflight": 1, "max_queue": 2, "queue_timeout_s": 10.0} | changes
    return Admission(**options)  # type: ignore[arg-type]


async def waiting(one: Admission, ticket: Ticket) -> asyncio.Task[float]:
    before = one.waiting
    task = asyncio.ensure_future(ticket.place())
    while one.waiting == before and not task.done():
        await asyncio.sleep(0)
    return task


async def test_places_are_given_in_the_order_of_asking() -> None:
    one = admission()
    first, second, third = one.enter(), one.enter(), one.enter()
    await first.place()
    third_waits = await waiting(one, third)
    second_waits = await waiting(one, second)
    assert not one.has_free_place
    first.leave()
    await third_waits
    assert not second_waits.done()
    third.leave()
    assert await second_waits >= 0
    second.leave()
    assert (one.inside, one.running, one.waiting) == (0, 0, 0)


async def test_a_call_over_the_queue_is_rejected_with_retry_after() -> None:
    one = admission()
    for _ in range(3):
        one.enter()
    with pytest.raises(Overloaded, match="2 calls wait already") as caught:
        one.enter()
    assert caught.value.retry_after_s >= 1


async def test_a_wait_has_an_end() -> None:
    one = admission(queue_timeout_s=0.01)
    with one.enter() as first:
        await first.place()
        with one.enter() as second, pytest.raises(Overloaded, match="queue_timeout"):
            await second.place()
        assert one.waiting == 0
        assert one.running == 1
    assert one.has_free_place


async def test_a_cancelled_call_leaves_the_queue() -> None:
    one = admission()
    first, second, third = one.enter(), one.enter(), one.enter()
    await first.place()
    second_waits = await waiting(one, second)
    third_waits = await waiting(one, third)
    second_waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second_waits
    second.leave()
    first.leave()
    await third_waits


async def test_a_place_passed_to_a_call_that_was_just_cancelled_is_not_lost() -> None:
    one = admission()
    first, second = one.enter(), one.enter()
    await first.place()
    second_waits = await waiting(one, second)
    first.leave()
    second_waits.cancel()  # in this turn of the loop, the place is already passed to the call
    with pytest.raises(asyncio.CancelledError):
        await second_waits
    second.leave()
    assert (one.inside, one.running) == (0, 0)
    with one.enter() as third:
        await third.place()


async def test_a_drain_rejects_waiting_and_new_calls_and_lets_running_ones_finish() -> None:
    one = admission()
    first, second = one.enter(), one.enter()
    await first.place()
    second_waits = await waiting(one, second)
    one.close()
    with pytest.raises(Draining):
        await second_waits
    second.leave()
    with pytest.raises(Draining):
        one.enter()
    empty = asyncio.ensure_future(one.empty())
    await asyncio.sleep(0)
    assert not empty.done()
    first.leave()
    await empty


async def test_0_is_no_limit() -> None:
    one = admission(max_inflight=0)
    tickets = [one.enter() for _ in range(100)]
    for ticket in tickets:
        await ticket.place()
    assert one.running == 100
    assert one.has_free_place
