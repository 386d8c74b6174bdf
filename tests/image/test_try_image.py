"""The script with which GitHub's CI tries an image, run here with podman."""

from __future__ import annotations

from pathlib import Path

import pytest
from running_server import free_port

from image.builds import Builds
from image.containers import Engine

pytestmark = [pytest.mark.image, pytest.mark.timeout(300, func_only=True)]

_TRY = Path(__file__).parents[2] / ".github/try-image.sh"
# The default limits of podman may be higher than a machine without privileges allows.
_DOCKER = """#!/bin/sh
command=$1
shift
[ "$command" != run ] || set -- --ulimit nofile=1024:4096 --ulimit nproc=1024:4096 "$@"
exec podman "$command" "$@"
"""


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    """Return a program that accepts docker's arguments."""
    program = tmp_path / "docker"
    program.write_text(_DOCKER)
    program.chmod(0o755)
    return program


def test_an_image_that_works_passes(builds: Builds, engine: Engine, docker: Path) -> None:
    done = engine.run("env", f"DOCKER={docker}", f"PORT={free_port()}", str(_TRY), builds.image)
    assert f"the image {builds.image} answered correctly\n" in done.stdout
    assert done.stdout.startswith("oscar-watchdog ")
    assert engine.run("podman", "ps", "--all", "--quiet").stdout == ""


def test_an_image_that_answers_something_else_fails(
    builds: Builds, engine: Engine, docker: Path, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {builds.image}\nENV fprocess='echo no'\n")
    image = "localhost/oscar-watchdog-that-says-no"
    builds.build(tmp_path / "Dockerfile", tmp_path, image)
    done = engine.run("env", f"DOCKER={docker}", f"PORT={free_port()}", str(_TRY), image, check=False)
    assert done.returncode == 1
    assert f"the image {image} answered " in done.stderr
