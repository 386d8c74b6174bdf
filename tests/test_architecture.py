"""A module imports only modules of a lower level: the table in ARCHITECTURE.md, held by reading the imports."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "watchdog"


def levels() -> dict[str, int]:
    rows = re.findall(r"^\| (\d) \| `([\w/]+)\.py` \|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    return {name: int(level) for level, name in rows}


def module_name(path: Path) -> str:
    """As the table has it: ``errors``, ``storage/event``; a package's own file is ``storage/__init__``."""
    return str(path.relative_to(PACKAGE).with_suffix(""))


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = path.parents[node.level - 1]
            if node.module:
                package = package.joinpath(*node.module.split("."))
            if package.is_dir():
                modules = [package / f"{alias.name}.py" for alias in node.names]
                found |= {module_name(each if each.exists() else package / "__init__.py") for each in modules}
            else:
                found.add(module_name(package.with_suffix(".py")))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not any(name.split(".")[0] == "watchdog" for name in names), f"{path.name}: import relatively"
    return found - {"__init__"}


def test_every_module_has_a_level() -> None:
    assert {module_name(path) for path in PACKAGE.rglob("*.py")} - {"__init__", "__main__"} == levels().keys()


def test_imports_go_down() -> None:
    known = levels()
    wrong = [
        f"{name} (level {level}) imports {other} (level {known[other]})"
        for name, level in known.items()
        for other in imports_of(PACKAGE / f"{name}.py")
        if known[other] >= level
    ]
    assert wrong == []


def test_the_check_sees_an_import_that_goes_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "logs.py").touch()
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "s3.py").touch()
    module = tmp_path / "errors.py"
    module.write_text("def f():\n    from .server import serve\n    from . import logs\n    from .storage import s3\n")
    assert imports_of(module) == {"server", "logs", "storage/s3"}
    module = tmp_path / "storage" / "event.py"
    module.write_text("from .. import logs\nfrom ..errors import BadInput\nfrom . import Moved\nfrom .s3 import S3\n")
    assert imports_of(module) == {"logs", "errors", "storage/__init__", "storage/s3"}


def test_the_lower_levels_know_no_http() -> None:
    known = levels()
    for name, level in known.items():
        if level <= 7 and name != "connection" and not name.startswith("storage/"):
            text = (PACKAGE / f"{name}.py").read_text()
            assert not re.search(r"^\s*(from|import) aiohttp", text, re.MULTILINE), name


def test_the_environment_of_the_process_is_never_changed() -> None:
    """Concurrent invocations would see one another's variables. At the start there are none (`cli`)."""
    changes = re.compile(
        r"os\.environ\[[^\]]+\]\s*=|del os\.environ|os\.(putenv|unsetenv)|os\.environ\.(update|pop|setdefault|clear)\("
    )
    for path in PACKAGE.rglob("*.py"):
        found = [found[0] for found in changes.finditer(path.read_text())]
        assert found == (["os.environ.pop("] if path.name == "cli.py" else []), path.name
