"""docs/explanation/reliability.md names the test of each fault. The page and the tests belong together."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from guards import GUARDS

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "explanation" / "reliability.md").read_text()
NAMED = set(re.findall(r"`([\w/]+\.py::test_\w+)`", PAGE))


def functions_in(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]


def all_tests(pattern: str) -> set[str]:
    return {
        f"{path.relative_to(TESTS)}::{test.name}" for path in sorted(TESTS.glob(pattern)) for test in functions_in(path)
    }


def test_each_test_that_is_named_exists() -> None:
    assert NAMED - all_tests("**/test_*.py") == set()


def test_each_test_of_a_fault_is_named() -> None:
    assert all_tests("faults/test_*.py") - NAMED == set()


def test_each_guard_is_taken_out_by_a_test() -> None:
    taken_out = {
        argument.value
        for path in TESTS.glob("**/test_*.py")
        for test in functions_in(path)
        for decorator in test.decorator_list
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.guard"
        for argument in decorator.args
        if isinstance(argument, ast.Constant)
    }
    assert taken_out == GUARDS.keys()
