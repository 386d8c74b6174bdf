"""What the tests with a Docker daemon share: the daemon, and root file systems to make base images of."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from image.roots import Roots

from dockerd.daemon import Daemon, running

_PROJECT = Path(__file__).parents[2]
_KEPT = _PROJECT / "build/image"


@pytest.fixture(scope="session")
def say(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Print at once why the tests do not go on."""

    def write(text: str) -> None:
        with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{text}", flush=True)

    return write


@pytest.fixture(scope="session")
def docker_root() -> Path:
    """Where Debian's Docker is unpacked."""
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
    """A daemon with the base images that a registry would give, under the same names.

    ``debian:bookworm-slim`` is larger than the image of this name: it already has a Python.
    """
    with running(docker_root) as one:
        one.import_root(roots["debian-13-slim"], "debian:trixie-slim", 'CMD ["bash"]')
        one.import_root(roots["debian-12"], "debian:bookworm-slim", 'CMD ["bash"]')
        one.import_root(roots["busybox"], "busybox", 'CMD ["sh"]')
        yield one
