"""The two ways to install the server: with pip, and in the self-contained tree of the image."""

from __future__ import annotations

import importlib.util
import io
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from contenders import ROOT, Unavailable
from image_tree import Tree, tree_of_this_checkout
from measuring import Bench

BASE = "26d66e4"  # the commit that some targets compare with, unless --against names another checkout
# The packages that this commit needs, and the server does not need any more. The development environment has them, and
# they have no compiled code.
_PACKAGES_OF_BASE = ("structlog",)


@dataclass
class Installation:
    """Programs that are installed in the same way, with the same Python and packages.

    ``missing``: why other programs are missing.
    """

    how: str
    programs: dict[str, Path] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def base_name(bench: Bench) -> str:
    return BASE if bench.against is None else "against"


def installations(bench: Bench, *, with_base: bool = False) -> Iterator[Installation]:
    """Yield both installations of this checkout, and of the checkout to compare with.

    Args:
        with_base: without --against, compare with the commit ``BASE``.
    """
    with_pip = Installation("with pip", dict(bench.sources))
    if with_base and bench.against is None:
        try:
            with_pip.programs[BASE] = base_checkout(bench)
        except Unavailable as reason:
            with_pip.missing[BASE] = str(reason)
    yield with_pip
    try:
        tree = tree_of_this_checkout()
    except Unavailable as reason:
        yield Installation("in the image's tree", missing={"the tree": str(reason)})
        return
    in_tree = Installation(f"in the image's tree (Python {tree.python_version})", {"watchdog": tree.program})
    in_tree.missing.update(with_pip.missing)
    for name, source in with_pip.programs.items():
        if name != "watchdog" and source.is_dir():
            place = bench.directory / f"tree-of-{name}"
            packages = _PACKAGES_OF_BASE if name == BASE else ()
            copy = Tree(place) if place.exists() else tree.with_code_of(source, place, packages)
            in_tree.programs[name] = copy.program
        elif name != "watchdog":
            in_tree.programs[name] = source
    yield in_tree


def base_checkout(bench: Bench) -> Path:
    """Return a directory with the code of the commit ``BASE``, and with the packages that only this commit needs.

    Raises:
        Unavailable: git or a package is missing, or the repository does not have the commit.
    """
    place = bench.directory / BASE
    if not place.exists():
        command = ["git", "-C", str(ROOT), "archive", BASE, "watchdog", "image"]
        try:
            packed = subprocess.run(command, capture_output=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise Unavailable("git does not find this commit here: fetch the whole history") from error
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(place, filter="data")
        for package in _PACKAGES_OF_BASE:
            found = importlib.util.find_spec(package)
            if found is None or found.origin is None:
                raise Unavailable(f"the package {package} is missing: make setup")
            shutil.copytree(Path(found.origin).parent, place / package)
    return place
