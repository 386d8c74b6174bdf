"""Descriptors that are watched and closed, while another process may have copies of them."""

from __future__ import annotations

import asyncio
import errno
import os
from types import SimpleNamespace
from typing import Any

import pytest
from running_server import until

from watchdog.process.guardian import Guardian
from watchdog.process.pipes import Pipe
from watchdog.process.watch import Wait, Watch
from watchdog.warm.channel import Channel


@pytest.mark.parametrize("has_copies", [True, False])
async def test_closed_descriptor_is_not_confused_with_the_next_one_of_its_number(has_copies: bool) -> None:
    """A copy keeps the old file open, so without its removal epoll would still report it under the old number."""
    guardian: Any = SimpleNamespace(is_alone=not has_copies, may_have_copies=lambda: has_copies)
    watch = Watch(asyncio.get_running_loop(), guardian)
    called: list[str] = []
    reading, writing = os.pipe()
    copy = os.dup(reading) if has_copies else -1
    watch.watch(reading, lambda: called.append("old"))
    watch.close_watched(reading)
    next_reading, next_writing = os.pipe()
    assert next_reading == reading
    ready, ready_writing = os.pipe()
    watch.watch(next_reading, lambda: called.append("next"))
    is_ready = asyncio.Event()
    watch.watch(ready, is_ready.set, once=True)
    if has_copies:
        os.write(writing, b"1")
    os.write(ready_writing, b"1")
    await is_ready.wait()
    assert called == []
    watch.close()
    for fd in (writing, next_reading, next_writing, ready, ready_writing, *((copy,) if has_copies else ())):
        os.close(fd)


async def test_task_continues_in_the_turn_in_which_its_wait_ends() -> None:
    loop = asyncio.get_running_loop()
    alone: Any = SimpleNamespace(is_alone=True)
    watch = Watch(loop, alone)
    reading, writing = os.pipe()
    wait = Wait(loop)
    order: list[str] = []

    async def task() -> None:
        await wait
        order.append("task")

    def ended() -> Wait:
        loop.call_soon(order.append, "next turn")
        return wait

    waiting = asyncio.create_task(task())
    watch.watch(reading, ended, once=True)
    os.write(writing, b"1")
    await waiting
    await asyncio.sleep(0)
    assert order == ["task", "next turn"]
    wait.end_now()  # once more has no effect
    watch.close()
    os.close(reading)
    os.close(writing)


async def test_cancelled_task_does_not_continue_when_its_wait_ends() -> None:
    wait = Wait(asyncio.get_running_loop())

    async def task() -> None:
        await wait

    waiting = asyncio.create_task(task())
    await asyncio.sleep(0)
    waiting.cancel()
    wait.end_now()
    await asyncio.sleep(0)
    assert waiting.cancelled()


async def test_wait_that_ended_before_does_not_stop_a_task() -> None:
    wait = Wait(asyncio.get_running_loop())
    wait.end_now()
    await wait


def test_pipe_ends_after_the_guardian_has_closed_its_copies() -> None:
    reading, writing = os.pipe()
    guardian = Guardian(lambda pid: False)
    assert not guardian.may_have_copies()
    guardian.start([])
    try:
        until(lambda: not guardian.may_have_copies(), "the guardian to close its copies")
        os.close(writing)
        os.set_blocking(reading, False)
        assert os.read(reading, 1) == b""  # an error would mean that the guardian still has the writing end
    finally:
        guardian.stop()
        os.close(reading)


def refuse_to_watch(fd: int, callback: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_pipe_that_cannot_be_watched_is_closed() -> None:
    watch: Any = SimpleNamespace(watch=refuse_to_watch)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="No space left"):
        Pipe(watch, lambda data: None)
    assert os.listdir("/proc/self/fd") == before


async def test_a_channel_that_cannot_be_watched_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def do_nothing(*arguments: object) -> None:
        pass

    monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", refuse_to_watch)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="No space left"):
        Channel(do_nothing, do_nothing, do_nothing, do_nothing)
    assert os.listdir("/proc/self/fd") == before
