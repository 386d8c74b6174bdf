"""A module imports only its own folder and lower layers: all imports are compared with a table in ARCHITECTURE.md."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "watchdog"
# Files for scripts in other processes. The program never imports them.
HELPERS = "warm/helper"


def layers() -> dict[str, int]:
    """The layer of each folder and top-level module."""
    rows = re.findall(r"^\| (\d) \| `(\w+)` \|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    return {name: int(layer) for layer, name in rows}


def modules() -> list[Path]:
    """The files of all modules of the program."""
    return [path for path in PACKAGE.rglob("*.py") if PACKAGE / HELPERS not in path.parents]


def module_name(path: Path) -> str:
    """``errors``, ``storage/event``; a package's own file is ``storage/__init__``."""
    return str(path.relative_to(PACKAGE).with_suffix(""))


def part_of(module: str) -> str:
    """The folder of a module, or the module itself if it is in none."""
    return module.split("/")[0]


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


def all_imports() -> dict[str, set[str]]:
    imports = {module_name(path): imports_of(path) for path in modules()}
    return {name: imported for name, imported in imports.items() if name not in ("__init__", "__main__")}


def circle_in(imports: dict[str, set[str]]) -> list[str]:
    """The modules of one circle of imports, in order; empty if there is none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module not in done:
            for other in sorted(imports.get(module, ())):
                if circle := visit(other, [*path, module]):
                    return circle
            done.add(module)
        return []

    return next((circle for module in sorted(imports) if (circle := visit(module, []))), [])


def test_every_folder_and_module_has_a_layer() -> None:
    assert {part_of(name) for name in all_imports()} == layers().keys()


def test_imports_go_down() -> None:
    known = layers()
    wrong = [
        f"{name} (layer {known[part_of(name)]}) imports {other} (layer {known[part_of(other)]})"
        for name, imported in all_imports().items()
        for other in imported
        if part_of(other) != part_of(name) and known[part_of(other)] >= known[part_of(name)]
    ]
    assert wrong == []


def test_no_imports_go_in_a_circle() -> None:
    assert circle_in(all_imports()) == []


def test_the_check_sees_a_circle() -> None:
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_check_sees_every_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_only_storage_and_client_know_aiohttp() -> None:
    for path in modules():
        if part_of(module_name(path)) not in ("storage", "client"):
            assert not re.search(r"^\s*(from|import) aiohttp", path.read_text(), re.MULTILINE), path


def test_the_environment_of_the_process_is_never_changed() -> None:
    """Concurrent invocations would see one another's variables. At the start there are none (`cli`)."""
    changes = re.compile(
        r"os\.environ\[[^\]]+\]\s*=|del os\.environ|os\.(putenv|unsetenv)|os\.environ\.(update|pop|setdefault|clear)\("
    )
    for path in modules():
        found = [found[0] for found in changes.finditer(path.read_text())]
        assert found == (["os.environ.pop("] if path.name == "cli.py" else []), path.name
