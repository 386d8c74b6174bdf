"""What can be held of the image without building it; ``make image-test`` builds it (``tests/image/``)."""

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
    """Addresses of an index, proxies, certificates, base images of one machine; nor a syntax line, which is fetched."""
    assert not re.search(r"https?://|proxy|trusted|localhost|^# ?syntax", _DOCKERFILE, re.IGNORECASE | re.MULTILINE)


def test_python_scripts_print_at_once() -> None:
    """Otherwise lines of a script are in the log late, or lost if it is killed."""
    assert re.search(r"^ENV .*\bPYTHONUNBUFFERED=1\b", _DOCKERFILE, re.MULTILINE)


def _pinned(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (_PROJECT / lock).read_text(), re.MULTILINE))
