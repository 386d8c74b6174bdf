"""The self-contained tree of the image.

`make bench` builds a tree with ``image/bundle.py``. This needs no container, and the tree has the Python of this
machine. `make image-test` builds a tree with the Python of the image. The benchmark prefers the second one if it has
the code of this checkout.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from contenders import ENVIRONMENT, PATIENCE_S, ROOT, Unavailable

_PREFIX = Path("opt/watchdog")
_OF_IMAGE_TEST = ROOT / "build" / "image" / "builds"
_OF_BENCH = ROOT / "build" / "bench-tree"


class Tree:
    """A self-contained tree; ``program`` starts it, ``python_version`` is the version of its interpreter."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.program = root / "bin" / "watchdog"
        self._start = root / "libexec" / "start.py"
        self._python = root / "libexec" / "python3"

    @property
    def python_version(self) -> str:
        return self._run("-c", "import platform; print(platform.python_version())").strip()

    @property
    def modules(self) -> Path:
        """The package ``watchdog`` in the tree."""
        (found,) = self.root.glob("lib/python3.*/site-packages/watchdog")
        return found

    def code(self) -> list[tuple[str, bytes]]:
        """Return all modules of the program, with their content."""
        return _code_in(self.modules, self._start)

    def with_code_of(self, checkout: Path, place: Path, packages: Sequence[str] = ()) -> Tree:
        """Return a copy of the tree at ``place`` with the code of another checkout, compiled as in the tree.

        Args:
            packages: further packages of the checkout that its code needs.
        """
        shutil.copytree(self.root, place, symlinks=True)
        copy = Tree(place)
        modules = copy.modules
        shutil.rmtree(modules)
        copied = [modules.parent / package for package in ("watchdog", *packages)]
        for target in copied:
            shutil.copytree(checkout / target.name, target, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(checkout / "image" / "start.py", copy._start)
        copy._run("-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", *map(str, copied))
        return copy

    def _run(self, *arguments: str) -> str:
        command = [str(self._python), *arguments]
        return subprocess.run(
            command, env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=PATIENCE_S
        ).stdout


def tree_of_this_checkout() -> Tree:
    """Return the tree that has the code of this checkout.

    Raises:
        Unavailable: there is none.
    """
    code = _code_in(ROOT / "watchdog", ROOT / "image" / "start.py")
    places = [*sorted(_OF_IMAGE_TEST.glob("tree-*")), _OF_BENCH]
    for tree in (Tree(place / _PREFIX) for place in places):
        if tree.program.is_file() and tree.code() == code:
            return tree
    raise Unavailable("no tree with the code of this checkout: make build/bench-tree/.ready builds it")


def _code_in(package: Path, start: Path) -> list[tuple[str, bytes]]:
    files = [(str(path.relative_to(package)), path.read_bytes()) for path in sorted(package.rglob("*.py"))]
    return [*files, (start.name, start.read_bytes())]
