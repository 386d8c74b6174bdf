"""The number of connections shows when a new one is one too many."""

from __future__ import annotations

import asyncio

import pytest

from watchdog.http import idle_connections
from watchdog.http.idle_connections import IdleConnections
from watchdog.system import proc

LIMIT = 256
OF_WORKERS = 236  # descriptors of a server that has twenty workers


class Idle:
    """An idle connection that can be closed at any time."""

    def close_if_unused(self, *, also_unread: bool = False) -> bool:
        return True


def given_up(first_descriptor: int, busy: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many slow readers are disconnected after ``busy`` connections, with one idle connection."""
    monkeypatch.setattr(proc, "descriptor_limit", lambda: LIMIT)
    monkeypatch.setattr(idle_connections, "_FRESH_S", 3600.0)  # the idle connection stays open during the test
    count = 0

    def give_up() -> None:
        nonlocal count
        count += 1

    async def connect() -> None:
        connections = IdleConnections(give_up)
        connections.add(Idle())
        for number in range(busy):
            connections.note_new(first_descriptor + number)

    asyncio.run(connect())
    return count


def test_many_workers_leave_slow_readers_a_part_of_the_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert given_up(OF_WORKERS, 10, monkeypatch) == 0


def test_slow_readers_are_disconnected_if_connections_take_too_many_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert given_up(14, 10, monkeypatch) == 0
    assert given_up(14, LIMIT - 14, monkeypatch) > 0
