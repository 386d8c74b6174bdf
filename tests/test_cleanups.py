"""The steps that end a call."""

from __future__ import annotations

import pytest

from watchdog.invocation.cleanups import Cleanups


def test_steps_are_done_in_the_reverse_order() -> None:
    done: list[int] = []
    with Cleanups() as cleanups:
        for number in range(3):
            cleanups.add(done.append, number)
        assert done == []
    assert done == [2, 1, 0]


def test_error_of_a_step_is_raised_after_the_other_steps_are_done() -> None:
    done: list[int] = []
    cleanups = Cleanups()
    cleanups.add(done.append, 1)
    cleanups.add(divmod, 1, 0)
    cleanups.add(done.append, 2)
    with pytest.raises(ZeroDivisionError), cleanups:
        assert done == []
    assert done == [2, 1]


def test_error_of_a_call_is_raised_after_its_steps_are_done() -> None:
    done: list[int] = []
    cleanups = Cleanups()
    cleanups.add(done.append, 1)
    with pytest.raises(KeyError), cleanups:
        raise KeyError
    assert done == [1]
