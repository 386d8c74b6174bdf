"""Regular expressions are compiled when they are first used."""

from __future__ import annotations

import importlib
import pkgutil
import re
from unittest import mock

import watchdog
from watchdog.system.pattern import _Pattern, pattern


def test_compiled_at_the_first_use_and_not_again() -> None:
    with mock.patch.object(re, "compile", wraps=re.compile) as compile_:
        words = pattern(r"[a-z]+", re.IGNORECASE)
        assert compile_.call_count == 0
        assert words.findall("One two") == ["One", "two"]
        assert words.match("three")
        assert words.sub("x", "One two") == "x x"
        assert words.groups == 0
    assert compile_.call_count == 2  # the second time for an attribute that is not kept


def test_every_pattern_of_the_program_compiles() -> None:
    names = [each.name for each in pkgutil.walk_packages(watchdog.__path__, "watchdog.") if "__main__" not in each.name]
    patterns = [
        each for name in names for each in vars(importlib.import_module(name)).values() if isinstance(each, _Pattern)
    ]
    assert len(patterns) > 50
    for each in patterns:
        re.compile(each.pattern, each.flags)
