"""What the README says is what the program does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_table_of_settings_is_the_declaration(monkeypatch: pytest.MonkeyPatch) -> None:
    made = runpy.run_path(str(ROOT / "docs" / "settings_table.py"))["with_settings"]
    readme = (ROOT / "README.md").read_text()
    assert readme == made(readme), "run `make docs`"


def test_every_status_of_the_server_is_in_the_table_of_errors() -> None:
    from watchdog.http.problems import STATUS_OF_ERROR

    readme = (ROOT / "README.md").read_text()
    for status in {status for _, status, _ in STATUS_OF_ERROR} | {405}:
        assert f"\n| {status} | " in readme, status


PAGES = [path for pattern in ("*.md", "docs/*.md", "examples/*.md", "examples/*/*.md") for path in ROOT.glob(pattern)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_outcome_is_named() -> None:
    from watchdog.invocation.outcome import _OUTCOME_OF_ERROR

    readme = (ROOT / "README.md").read_text()
    assert [name for _, name in _OUTCOME_OF_ERROR if f"`{name}`" not in readme] == []


def test_every_warning_is_explained() -> None:
    names = re.findall(r'CallWarning\(\s*"([a-z-]+)"', (ROOT / "watchdog" / "output" / "call_warning.py").read_text())
    page = (ROOT / "docs" / "operations.md").read_text()
    assert len(names) >= 6
    assert [name for name in names if f"| `{name}` | " not in page] == []
