"""The private names of aiohttp that ``http/connection.py`` uses. They may mean something else in any release."""

from __future__ import annotations

import ast
import hashlib
import inspect
from pathlib import Path

import aiohttp
from aiohttp import web_protocol
from aiohttp.web_protocol import RequestHandler

from watchdog.http import connection

SOURCE = Path(connection.__file__)
# SHA-256 of the source of ``RequestHandler`` as it was when its private names were last compared with their uses.
COMPARED = "3960a24b6f6b63e0b61ee398ea82d3404562ebdc6fea9c1e97906de40c42aefa"


def connection_class() -> ast.ClassDef:
    tree = ast.parse(SOURCE.read_text())
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Connection")


def private_names() -> tuple[set[str], set[str]]:
    """Return the private names that ``Connection`` uses, and those that it defines itself."""
    nodes = list(ast.walk(connection_class()))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute) and node.attr.startswith("_")]
    used = {node.attr for node in attributes if not node.attr.startswith("__")}
    own = {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
    own |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    return used, own


def names_of_aiohttp() -> set[str]:
    return set(RequestHandler.__slots__) | set(dir(RequestHandler))


def test_each_private_name_exists_in_the_installed_aiohttp() -> None:
    used, own = private_names()
    unknown = used - own - names_of_aiohttp()
    assert not unknown, (
        f"aiohttp {aiohttp.__version__} has no {sorted(unknown)} in RequestHandler; adapt {SOURCE.name} to its "
        f"{Path(web_protocol.__file__).name}"
    )


def test_connection_overrides_only_the_names_that_it_means_to() -> None:
    """A name of our own that aiohttp begins to use would overwrite its state."""
    _, own = private_names()
    meant = {"_handle_request", "_pause_transport_reading", "_lingering_time", "_request_count"}
    public = {"connection_made", "connection_lost", "data_received", "handle_error", "__init__"}
    clash = own & names_of_aiohttp() - meant - public
    assert not clash, f"aiohttp {aiohttp.__version__} uses {sorted(clash)} itself; rename them in {SOURCE.name}"


def test_request_handler_has_not_changed_since_its_private_names_were_compared() -> None:
    digest = hashlib.sha256(inspect.getsource(RequestHandler).encode()).hexdigest()
    used, own = private_names()
    assert digest == COMPARED, (
        f"aiohttp {aiohttp.__version__} changed RequestHandler. Compare what it does with "
        f"{sorted(used - (own - names_of_aiohttp()))} with their uses in {SOURCE.name}, run the tests of tests/faults, "
        f'set COMPARED = "{digest}" here, and the range of aiohttp in pyproject.toml'
    )
