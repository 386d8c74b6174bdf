"""The rate at which callers learn that their token is wrong."""

from __future__ import annotations

import pytest

from watchdog.http.wrong_tokens import WrongTokens


def test_wrong_tokens_wait_for_each_other() -> None:
    wrong_tokens = WrongTokens()
    waits = [wrong_tokens.wait_s(100.0) for _ in range(60)]
    assert waits[:20] == [0.0] * 20
    assert waits[20:40] == pytest.approx([0.1 * number for number in range(1, 21)])
    assert waits[40:] == [None] * 20


def test_refused_tokens_do_not_prolong_the_wait() -> None:
    wrong_tokens = WrongTokens()
    for _ in range(1000):
        wrong_tokens.wait_s(100.0)
    assert wrong_tokens.wait_s(101.0) == pytest.approx(1.1)
    assert wrong_tokens.wait_s(200.0) == 0.0
