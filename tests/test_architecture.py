"""A module imports only modules of a lower level: the table in ARCHITECTURE.md, held by reading the imports."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "watchdog"


def levels() -> dict[str, int]:
    rows = re.findall(r"^\| (\d) \| `(\w+)\.py` \|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    return {name: int(level) for level, name in rows}


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not any(name.split(".")[0] == "watchdog" for name in names), f"{path.name}: import relatively"
    return found - {"__version__"}


def test_every_module_has_a_level() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"} == levels().keys()


def test_imports_go_down() -> None:
    known = levels()
    wrong = [
        f"{name} (level {level}) imports {other} (level {known[other]})"
        for name, level in known.items()
        for other in imports_of(PACKAGE / f"{name}.py")
        if known[other] >= level
    ]
    assert wrong == []


def test_the_check_sees_an_import_that_goes_up(tmp_path: Path) -> None:
    module = tmp_path / "errors.py"
    module.write_text("def f():\n    from .server import serve\n    from . import logs\n")
    assert imports_of(module) == {"server", "logs"}


def test_the_lower_levels_know_no_http() -> None:
    known = levels()
    for name, level in known.items():
        if level < 6:
            text = (PACKAGE / f"{name}.py").read_text()
            assert not re.search(r"^\s*(from|import) aiohttp", text, re.MULTILINE), name


def test_the_environment_of_the_process_is_never_changed() -> None:
    """Concurrent invocations would see one another's variables."""
    changes = re.compile(
        r"os\.environ\[[^\]]+\]\s*=|del os\.environ|os\.(putenv|unsetenv)|os\.environ\.(update|pop|setdefault|clear)\("
    )
    for path in PACKAGE.glob("*.py"):
        assert not [found[0] for found in changes.finditer(path.read_text())], path.name
