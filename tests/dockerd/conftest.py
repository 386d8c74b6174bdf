"""The common parts of the tests with a Docker daemon: the daemon, and root file systems for base images."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from image.roots import Roots

from dockerd import pages
from dockerd.cases import CASES, Case, typed
from dockerd.daemon import Daemon, running

_PROJECT = pages.PROJECT
_KEPT = _PROJECT / "build/image"


@pytest.fixture(scope="session")
def say(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Print at once why the tests wait."""

    def write(text: str) -> None:
        with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{text}", flush=True)

    return write


@pytest.fixture(scope="session")
def docker_root() -> Path:
    """Return the directory in which Debian's Docker is unpacked."""
    done = subprocess.run([_PROJECT / ".ci/debian-docker.sh"], stdout=subprocess.PIPE, text=True, timeout=600)
    assert done.returncode == 0, "Debian's Docker could not be unpacked: the lines above give the reason"
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def roots(say: Callable[[str], None]) -> Iterator[Roots]:
    made = Roots(_KEPT / "roots", say)
    yield made
    made.close()


@pytest.fixture(scope="session")
def daemon(docker_root: Path, roots: Roots) -> Iterator[Daemon]:
    """A daemon with base images that have the same names as those of a registry.

    ``debian:bookworm-slim`` is larger than the real image, because it already has a Python.
    """
    with running(docker_root) as one:
        one.import_root(roots["debian-13-slim"], "debian:trixie-slim", 'CMD ["bash"]')
        one.import_root(roots["debian-12"], "debian:bookworm-slim", 'CMD ["bash"]')
        one.import_root(roots["busybox"], "busybox", 'CMD ["sh"]')
        yield one


@pytest.fixture(scope="session")
def repository(daemon: Daemon) -> Path:
    """Return a clone with the current files, in a place where the user of a container can read mounted files."""
    copy = daemon.directory / "repository"
    listing = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=pages.PROJECT, capture_output=True, check=True).stdout.split(b"\0")
    for name in {os.fsdecode(name) for name in names if name}:
        if (pages.PROJECT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(pages.PROJECT / name, copy / name)
    return copy


@pytest.fixture(scope="session")
def base_image(daemon: Daemon, repository: Path) -> str:
    """Return the image that all pages use as their base."""
    command = pages.commands("README.md")[0]
    case = CASES["README.md", command]
    assert isinstance(case, Case)
    daemon.run(typed(command, case), repository)
    return "oscar-watchdog"
