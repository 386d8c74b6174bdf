"""Checks that only the tree's own Python can do. It runs this file in an empty root.

::

    libexec/python3 -c THIS-FILE COMMAND ARGUMENT…

Each command prints JSON.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.machinery
import importlib.util
import io
import json
import marshal
import os
import sys
import types
import warnings
from collections.abc import Iterator


def byte_code(tree: str, shown_as: str) -> list[str]:
    """Return the faults of byte code: missing, compared with its source at each import, of another Python, or stale.

    Args:
        shown_as: the directory that tracebacks must name in place of the directory of the tree.
    """
    wrong = []
    library = os.path.dirname(os.__file__)
    for directory, _, names in os.walk(library):
        sources = {name for name in names if name.endswith(".py")}
        for name in sorted(sources):
            source = os.path.join(directory, name)
            compiled = importlib.util.cache_from_source(source)
            if not os.path.exists(compiled):
                wrong.append(f"{source} has no byte code")
                continue
            with open(compiled, "rb") as file:
                header, code = file.read(16), file.read()
            with open(source, "rb") as file:
                content = file.read()
            if header[:4] != importlib.util.MAGIC_NUMBER:
                wrong.append(f"{compiled} is of another Python")
                continue
            # PEP 552: bit 0, by hash; bit 1, compared with the source at each import.
            if header[4:8] != b"\1\0\0\0":
                wrong.append(f"{compiled} is compared with its source")
            elif header[8:16] != importlib.util.source_hash(content):
                wrong.append(f"{compiled} is of another source")
            expected = shown_as + source.removeprefix(tree)
            if any(each != expected for each in _file_names(marshal.loads(code))):
                wrong.append(f"{compiled} names another file than {expected}")
        if os.path.basename(directory) == "__pycache__":
            parent = os.path.dirname(directory)
            wrong += [
                f"{os.path.join(directory, name)} has no source"
                for name in sorted(names)
                if not os.path.exists(os.path.join(parent, name.partition(".")[0] + ".py"))
            ]
    return wrong


def _file_names(code: types.CodeType) -> Iterator[str]:
    yield code.co_filename
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _file_names(constant)


def modules(*directories: str) -> list[str]:
    """Return all modules in the directories of sys.path and in these."""
    found = set(sys.builtin_module_names)
    for directory in (*sys.path, *directories):
        if os.path.isdir(directory):
            found |= _modules_in(directory, "")
    return sorted(found)


def _modules_in(directory: str, package: str) -> set[str]:
    suffixes = sorted(importlib.machinery.all_suffixes(), key=len, reverse=True)
    found = set()
    for entry in os.scandir(directory):
        if entry.is_dir() and entry.name.isidentifier() and entry.name != "__pycache__":
            inner = _modules_in(entry.path, f"{package}{entry.name}.")
            found |= {package + entry.name, *inner} if inner else set()
        for suffix in suffixes:
            if entry.name.endswith(suffix) and "." not in entry.name.removesuffix(suffix):
                # The import of a __main__ would run it.
                if entry.name != "__main__.py":
                    found.add((package + entry.name.removesuffix(suffix)).removesuffix(".__init__"))
                break
    return found


def failing_imports(site_packages: str, *names: str) -> dict[str, str]:
    """Return the modules that cannot be imported, with the reasons. By default, try all modules."""
    sys.path.append(site_packages)
    failures = {}
    for name in names or modules():
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                importlib.import_module(name)
            except BaseException as error:
                failures[name] = f"{type(error).__name__}: {error}"
    return failures


def unresolved_imports(site_packages: str) -> list[list[str]]:
    """Return pairs of a module and an import in it that leads to nothing. Imports in functions count, too."""
    sys.path.append(site_packages)
    library = os.path.dirname(os.__file__)
    unresolved = set()
    for directory, _, names in (*os.walk(library), *os.walk(site_packages)):
        base = site_packages if directory.startswith(site_packages) else library
        for name in names:
            if name.endswith(".py"):
                path = os.path.join(directory, name)
                importer = os.path.relpath(path, base).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                with open(path, "rb") as file:
                    tree = ast.parse(file.read())
                unresolved |= {(importer, each) for each in _imported(tree) if not _is_there(each)}
    return sorted(list(each) for each in unresolved)


def _imported(tree: ast.AST) -> Iterator[str]:
    """Yield absolute imports. `from package import attribute` becomes ``package:attribute``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}:{alias.name}" for alias in node.names)


def _is_there(imported: str, known: dict[str, bool] = {}) -> bool:  # noqa: B006
    if imported not in known:
        name, _, attribute = imported.partition(":")
        known[imported] = _find(name) and (attribute in ("", "*") or name == "__main__" or _has(name, attribute))
    return known[imported]


def _find(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # the parent is missing, or the module is __main__, which has no spec
        return name in sys.modules


def _has(name: str, attribute: str) -> bool:
    # The attribute can only be a missing module if `name` is a package of the standard library.
    if name.partition(".")[0] not in sys.stdlib_module_names:
        return True
    try:
        module = importlib.import_module(name)
        # Some packages, such as concurrent.futures, import their modules when an attribute is read.
        return not hasattr(module, "__path__") or hasattr(module, attribute) or _find(f"{name}.{attribute}")
    except ImportError:
        return False


_COMMANDS = {function.__name__: function for function in (byte_code, modules, failing_imports, unresolved_imports)}

if __name__ == "__main__":
    sys.setrecursionlimit(10_000)
    print(json.dumps(_COMMANDS[sys.argv[1]](*sys.argv[2:])))
