"""Checks of the image that need no build. ``make image-test`` builds the image (``tests/image/``)."""

from __future__ import annotations

import re
from pathlib import Path

_PROJECT = Path(__file__).parent.parent
_DOCKERFILE = (_PROJECT / "Dockerfile.base").read_text()


def test_what_the_build_copies_is_in_its_context_and_nothing_else() -> None:
    copied = {
        name.rstrip("/")
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", _DOCKERFILE, re.MULTILINE)
        for name in line.split()
    }
    let_in = {line[1:] for line in (_PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == let_in
    assert all((_PROJECT / name).exists() for name in copied)


def test_the_image_has_the_versions_that_are_tested() -> None:
    in_image = _pinned("image/requirements.txt")
    tested = _pinned("requirements-dev.txt")
    assert in_image == {name: tested.get(name) for name in in_image}
    assert _pinned("requirements.txt").keys() <= in_image.keys()


def test_nothing_of_the_builders_machine_is_in_the_dockerfile() -> None:
    """The file has no address of an index, proxy, certificate, or base image of one machine.

    It also has no syntax line, because Docker would fetch what this line names.
    """
    assert not re.search(r"https?://|proxy|trusted|localhost|^# ?syntax", _DOCKERFILE, re.IGNORECASE | re.MULTILINE)


def test_python_scripts_print_at_once() -> None:
    """Otherwise the lines of a script appear late in the log, or are lost if the script is killed."""
    assert re.search(r"^ENV .*\bPYTHONUNBUFFERED=1\b", _DOCKERFILE, re.MULTILINE)


def _pinned(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (_PROJECT / lock).read_text(), re.MULTILINE))
