"""The commands with Docker in the pages, as a reader types them, with a real Docker daemon and BuildKit."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from running_server import until

from dockerd import pages
from dockerd.cases import CASES, Case, NotRun, Server, write_files
from dockerd.daemon import Daemon

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800, func_only=True)]

PAGES = [
    page for page in pages.PAGES if any(not isinstance(CASES[page, each], NotRun) for each in pages.commands(page))
]
# Environment variables by which programs of this machine are told of a private CA's certificate.
_CA_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "CURL_CA_BUNDLE")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone, with the files as they are now."""
    copy = tmp_path_factory.mktemp("repository")
    listing = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=pages.PROJECT, capture_output=True, check=True).stdout.split(b"\0")
    for name in {os.fsdecode(name) for name in names if name}:
        if (pages.PROJECT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(pages.PROJECT / name, copy / name)
    # A container's user reads what is mounted from it.
    for directory in (copy, *copy.parents):
        if directory.stat().st_uid == os.geteuid() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o055)
    return copy


def typed(command: str, case: Case) -> str:
    """The command with the reader's own words, and with a private CA if this machine has one (docs/guide/images.md)."""
    for word, value in case.placeholders.items():
        assert word in command
        command = command.replace(word, value)
    certificate = next((os.environ[name] for name in _CA_VARIABLES if os.environ.get(name)), None)
    if certificate is not None and "Dockerfile.base" in command:
        command = command.replace("docker build", f"docker build --secret id=ca,src={shlex.quote(certificate)}", 1)
    return command


@pytest.fixture(scope="module", autouse=True)
def base_image(daemon: Daemon, repository: Path) -> None:
    """The image on which all pages build."""
    command = pages.commands("README.md")[0]
    case = CASES["README.md", command]
    assert isinstance(case, Case)
    daemon.run(typed(command, case), repository)


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_the_page(daemon: Daemon, repository: Path, page: str) -> None:
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
