"""A real server for each test that asks for one, and the tests of guards.

A test with ``@pytest.mark.guard(NAME)`` runs twice. The second run is a proof: it is without this guard of the program
(see ``guards.py``), and must fail. Otherwise the test proves nothing.

A wait that is too long does not count as such a failure, because a slow machine or a fault of the test could cause it.
If something never comes without the guard, the mark names it: ``@pytest.mark.guard(NAME, never="the event
'draining'")``. This is a regular expression for the message of the failure. The test waits for it only 3 s, or
``never_s``. This must be much longer than the event takes with the guard. Otherwise the test would also fail with it.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import client_command
import hypothesis
import pytest
import running_server
from counted_checks import CountedChecks
from guards import GUARDS
from lifeline import Lifeline
from running_server import RunningServer, Stall, StartServer
from template import Template

# By default, an example that takes more than 0.2 s fails. That would depend on the machine.
hypothesis.settings.register_profile("any-machine", deadline=None)
hypothesis.settings.load_profile("any-machine")

# Tests call only servers of their own, and say themselves which certificates a command has. With certificates of the
# machine, no command could be forked from the template.
for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
    os.environ.pop(name, None)

# While pytest makes thousands of tests, garbage collection would take a fifth of the time and find nothing.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


class NoStart(BaseException):
    """The server did not start without the guard. This failure proves nothing."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = [name for mark in metafunc.definition.iter_markers("guard") for name in mark.args]
    if names:
        unknown = set(names) - GUARDS.keys()
        assert not unknown, f"{metafunc.function.__name__}: guards.py has no {unknown}"
        metafunc.fixturenames.append("removed_guard")
        proofs = [pytest.param(name, id=f"without-{name}", marks=pytest.mark.proof) for name in names]
        metafunc.parametrize("removed_guard", [pytest.param(None, id="guarded"), *proofs])


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
        never = _options(pyfuncitem, name).get("never")
        if _is_stall(failure) and (never is None or not re.search(never, str(failure))):
            wanted = "what never comes without it" if never is None else f"{never!r}"
            pytest.fail(f"without the guard {name!r} the test waited in vain, but not for {wanted}: {failure}")
        return True
    return pytest.fail(f"the test passes without the guard {name!r}: it proves nothing")


def _options(node: pytest.Item, guard: str) -> dict[str, Any]:
    """Return ``never`` and ``never_s`` of the mark. Without ``never``, the test must not fail by a wait."""
    return next((dict(mark.kwargs) for mark in node.iter_markers("guard") if guard in mark.args), {})


def _is_stall(failure: BaseException) -> bool:
    """Return whether a test failed because its own time limit, or the one of pytest, was over."""
    is_of_pytest = isinstance(failure, pytest.fail.Exception) and str(failure).startswith("Timeout")
    return is_of_pytest or isinstance(failure, Stall | TimeoutError | subprocess.TimeoutExpired)


@pytest.fixture
def removed_guard() -> str | None:
    """Return the guard that is taken out in this run of the test, or None."""
    return None


def _kill(servers: Iterable[RunningServer]) -> None:
    for server in servers:
        server.process.kill()


@pytest.fixture(scope="session", autouse=True)
def usual_signals() -> None:
    """Let programs that tests start have the usual signals, even if nohup(1) or a shell started pytest without some.

    A program inherits that a signal is ignored, but it does not inherit a handler. So pytest has a handler that does
    nothing: the tests of `nohup make test` still go on after the end of the terminal.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)


@pytest.fixture(scope="session", autouse=True)
def template_process(usual_signals: None) -> Iterator[Template]:
    """Start the template before the first test, because a test may make the process of pytest adopt orphans."""
    template = client_command.template = Template()
    yield template
    client_command.template = None
    template.close()


@pytest.fixture
def template(template_process: Template, request: pytest.FixtureRequest) -> Template | None:
    """Return the process from which the servers of a test are forked; None if they are executed."""
    return None if request.node.get_closest_marker("executed") else template_process


@pytest.fixture
def start_server(
    tmp_path: Path,
    removed_guard: str | None,
    template: Template | None,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[StartServer]:
    """Start servers that end with the test: ``start_server(script, *flags, **environment)``."""
    servers: list[RunningServer] = []
    if removed_guard is not None:
        for name, value in _options(request.node, removed_guard).items():
            monkeypatch.setattr(RunningServer, name, value)
        monkeypatch.setattr(RunningServer, "end_all", lambda: _kill(servers))

    def start(
        script: str | None = None, *flags: str, has_closed_memory: bool = os.geteuid() == 0, **options: Any
    ) -> RunningServer:
        directory = tmp_path / f"server-{len(servers)}"
        # The tests count and name descriptors of the server. If its memory is closed, an ordinary user cannot do that.
        removed = [removed_guard] if removed_guard is not None else []
        removed += [] if has_closed_memory else ["hidden-memory"]
        program = (str(Path(__file__).parent / "guards.py"), ",".join(removed)) if removed else ("-m", "watchdog")
        try:
            server = RunningServer(directory, script, *flags, **{"program": program, "template": template, **options})
        except Exception as error:
            if removed_guard is None:
                raise
            raise NoStart(removed_guard) from error
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.discard()


@pytest.fixture(scope="module")
def servers_of_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[object, ...], RunningServer]]:
    """The servers that the tests of a file share, by their arguments. At the end, each must stop without an error."""
    servers: dict[tuple[object, ...], RunningServer] = {}
    try:
        yield servers
        for server in servers.values():
            assert server.stop() == 0
            assert server.leftovers() == []
            assert [event for event in server.logs if event["event"] in ("internal error", "not json")] == []
            ended = Counter(event["call_id"] for event in server.logs if event["event"] == "invocation ended")
            assert not ended or max(ended.values()) == 1
    finally:
        for server in servers.values():
            server.kill()


@pytest.fixture
def shared_server(
    servers_of_file: dict[tuple[object, ...], RunningServer],
    start_server: StartServer,
    removed_guard: str | None,
    template: Template | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> StartServer:
    """Return a server that other tests of the file use, too, if they give the same arguments.
    To start a server costs more than a call. A test must not change a shared server, and must look for its own call in
    the log. Without a guard, a test has a server of its own.
    """

    def share(script: str | None = None, *flags: str, **environ: Any) -> RunningServer:
        if removed_guard is not None:
            return start_server(script, *flags, **environ)
        key = (script, *flags, *sorted(environ.items()), template is None)
        if key not in servers_of_file:
            directory = tmp_path_factory.mktemp("shared")
            servers_of_file[key] = RunningServer(directory, script, *flags, template=template, **environ)
        return servers_of_file[key]

    return share


@pytest.fixture
def free_port() -> int:
    return running_server.free_port()


@pytest.fixture
def lifeline(tmp_path: Path) -> Iterator[Lifeline]:
    line = Lifeline(tmp_path / "lifeline")
    yield line
    line.close()


@pytest.fixture
def checks(tmp_path: Path) -> Iterator[CountedChecks]:
    """The checks that a server makes of what a script left."""
    counted = CountedChecks(tmp_path / "checks")
    yield counted
    counted.close()
