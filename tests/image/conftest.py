"""The common parts of the tests of the image: one build, the root file systems, and the figures of the run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Do this before they are imported. Then their assertions show the compared values.
pytest.register_assert_rewrite("image.containers", "image.serving")

from image.builds import Builds  # noqa: E402
from image.containers import Container, Engine, Options  # noqa: E402
from image.roots import Roots  # noqa: E402
from image.serving import Ways  # noqa: E402

_KEPT = Path(__file__).parents[2] / "build/image"
_figures = pytest.StashKey[dict[str, str]]()

StartContainer = Callable[[Options], Container]


@pytest.fixture(scope="session")
def say(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Show at once why the tests wait."""

    def write(text: str) -> None:
        with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{text}", flush=True)

    return write


@pytest.fixture(scope="session")
def roots(engine: Engine, say: Callable[[str], None]) -> Iterator[Roots]:
    """Return root file systems by name. Missing ones are made in the background."""
    made = Roots(_KEPT / "roots", say)
    yield made
    made.close()


@pytest.fixture(scope="session")
def engine(say: Callable[[str], None]) -> Iterator[Engine]:
    assert os.geteuid() == 0, "images are built and containers run by root here: sudo make image-test"
    one = Engine(_KEPT / "storage", say)
    yield one
    one.close()


@pytest.fixture(scope="session")
def builds(engine: Engine, roots: Roots) -> Builds:
    """Build the image and the tree from the current state of the project."""
    return Builds(engine, _KEPT / "builds", roots["debian-13-slim"])


@pytest.fixture(scope="session")
def tree(builds: Builds) -> Path:
    """Return the tree. Tests must not change it."""
    return builds.tree


@pytest.fixture
def ways(tmp_path: Path, roots: Roots, tree: Path) -> Ways:
    return Ways(_made(tmp_path / "seen-in-the-container"), roots, tree)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return a directory for ``/oscar/config``, for tests that use an image and not a root file system."""
    return _made(tmp_path / "config")


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


@pytest.fixture
def start_container(engine: Engine) -> Iterator[StartContainer]:
    """Start containers in which the server runs. They end with the test."""
    containers: list[Container] = []

    def start(options: Options) -> Container:
        container = Container(engine, options)
        containers.append(container)
        return container

    yield start
    for container in containers:
        container.kill()


@pytest.fixture
def figures(pytestconfig: pytest.Config) -> dict[str, str]:
    """Return the measured figures, which are printed at the end of the run."""
    return pytestconfig.stash.setdefault(_figures, {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    measured = config.stash.get(_figures, {})
    if measured:
        terminalreporter.section("figures of the image")
        for what, value in measured.items():
            terminalreporter.write_line(f"{what:<48} {value}")
