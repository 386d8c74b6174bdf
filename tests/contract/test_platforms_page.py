"""docs/explanation/platforms.md names a test for each promise: the page and the tests belong together."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent.parent
PAGE = (TESTS.parent / "docs" / "explanation" / "platforms.md").read_text()
NAMED = set(re.findall(r"`([\w/]+\.py::test_\w+)`", PAGE))
OPENFAAS = PAGE.partition("\n## OpenFaaS\n")[2].partition("\n## ")[0]
# the promise, classic watchdog, of-watchdog, this program, test
LINES = re.findall(r"^\|(?! what |-)(.*)\|$", OPENFAAS, re.MULTILINE)
ROWS = [[cell.strip() for cell in line.split(" | ")] for line in LINES]


def all_tests(pattern: str) -> set[str]:
    return {
        f"{path.relative_to(TESTS)}::{node.name}"
        for path in sorted(TESTS.glob(pattern))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_each_test_that_is_named_exists() -> None:
    assert NAMED - all_tests("**/test_*.py") == set()


def test_each_promise_names_a_test() -> None:
    assert len(ROWS) > 50
    assert {len(row) for row in ROWS} == {5}
    assert [what for what, _, _, here, test in ROWS if here.startswith(("same", "better")) and "::" not in test] == []


def test_each_test_of_openfaas_is_named() -> None:
    assert all_tests("contract/test_openfaas.py") - NAMED == set()
