"""The commands with Docker in the pages, as a reader types them, with a real Docker daemon and BuildKit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from running_server import until

from dockerd import pages
from dockerd.cases import CASES, NotRun, Server, typed, write_files
from dockerd.daemon import Daemon

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800, func_only=True)]

PAGES = [
    page for page in pages.PAGES if any(not isinstance(CASES[page, each], NotRun) for each in pages.commands(page))
]


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_the_page(daemon: Daemon, repository: Path, base_image: str, page: str) -> None:
    variables: dict[str, str] = {}
    for command in pages.commands(page):
        case = CASES[page, command]
        if isinstance(case, NotRun):
            continue
        folder = write_files(case, repository)
        text = typed(command, case)
        if isinstance(case, Server):
            serve(daemon, text, case, folder)
            continue
        # `id=$(docker …)`: later commands of the page use the variable.
        name, is_assignment, value = text.partition("=$(")
        if is_assignment and name.isidentifier():
            variables[name] = daemon.run(value.removesuffix(")"), folder, variables).stdout.strip()
            continue
        printed = daemon.run(text, folder, variables).stdout
        if case.then is not None:
            printed = daemon.run(case.then, folder, variables).stdout
        assert case.prints in printed, command
    assert daemon.run("docker ps --quiet").stdout == "", "a container of the page is still running"


def serve(daemon: Daemon, command: str, case: Server, folder: Path) -> None:
    """Run a command that starts a server until it has answered a call, then stop its container as Docker does."""
    with subprocess.Popen(
        daemon.command(command),
        cwd=folder,
        env=daemon.environ(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            until(lambda: is_ready(daemon, process, case.path), f"an answer of: {command}", 60)
            assert case.then is not None
            assert daemon.run(case.then, folder).stdout == case.prints
            daemon.run("docker stop --time 30 $(docker ps --quiet)")
            assert process.wait(timeout=60) == 0, "the server does not end with 0 when it is stopped"
        finally:
            process.kill()
            daemon.run("docker ps --all --quiet | xargs --no-run-if-empty docker rm --force")


def is_ready(daemon: Daemon, process: subprocess.Popen[str], path: str) -> bool:
    assert process.poll() is None, process.stdout and process.stdout.read()
    return daemon.run(f"curl --silent --fail localhost:8080{path}", check=False).returncode == 0
