"""A real server for each test that asks for one, and the tests of guards.

A test with ``@pytest.mark.guard(NAME)`` runs as it is, and once more with that guard of the program taken out (see
``guards.py``): then it must fail, or it would prove nothing.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import running_server
from guards import GUARDS
from lifeline import Lifeline
from running_server import RunningServer, StartServer

# Without its guard a test fails mostly because something never comes: that is not waited for as long as a slow
# machine may need for what does come.
_SHORT_PATIENCE_S = 3


class NoStart(BaseException):
    """The server did not start without the guard: no failure that would prove anything."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = [name for mark in metafunc.definition.iter_markers("guard") for name in mark.args]
    if names:
        unknown = set(names) - GUARDS.keys()
        assert not unknown, f"{metafunc.function.__name__}: guards.py has no {unknown}"
        metafunc.fixturenames.append("removed_guard")
        metafunc.parametrize("removed_guard", [None, *names], ids=["guarded", *(f"without-{n}" for n in names)])


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    callspec = getattr(pyfuncitem, "callspec", None)
    name = callspec.params.get("removed_guard") if callspec is not None else None
    if name is None:
        return (yield)
    try:
        yield
    except (Exception, pytest.fail.Exception) as failure:
        pyfuncitem.user_properties.append(("failed without the guard", repr(failure)[:500]))
        return True
    return pytest.fail(f"the test passes without the guard {name!r}: it proves nothing")


@pytest.fixture
def removed_guard() -> str | None:
    """The guard that is taken out in this run of the test, or None."""
    return None


@pytest.fixture
def start_server(tmp_path: Path, removed_guard: str | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartServer]:
    """Start servers that end with the test: ``start_server(script, *flags, **environment)``."""
    servers: list[RunningServer] = []
    patience_s = RunningServer.patience_s

    def start(
        script: str | None = None, *flags: str, has_closed_memory: bool = os.geteuid() == 0, **options: Any
    ) -> RunningServer:
        directory = tmp_path / f"server-{len(servers)}"
        # The tests count and name descriptors of the server. An ordinary user cannot do so if its memory is closed.
        removed = [removed_guard] if removed_guard is not None else []
        removed += [] if has_closed_memory else ["hidden-memory"]
        program = (str(Path(__file__).parent / "guards.py"), ",".join(removed)) if removed else ("-m", "watchdog")
        # A guard that is missing may show as something that never comes; a start that takes its time is none of that.
        monkeypatch.setattr(RunningServer, "patience_s", patience_s)
        try:
            server = RunningServer(directory, script, *flags, **{"program": program, **options})
        except Exception as error:
            if removed_guard is None:
                raise
            raise NoStart(removed_guard) from error
        servers.append(server)
        if removed_guard is not None:
            monkeypatch.setattr(RunningServer, "patience_s", _SHORT_PATIENCE_S)
        return server

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def free_port() -> int:
    return running_server.free_port()


@pytest.fixture
def lifeline(tmp_path: Path) -> Iterator[Lifeline]:
    line = Lifeline(tmp_path / "lifeline")
    yield line
    line.close()
