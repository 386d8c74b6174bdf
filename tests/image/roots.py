"""Root file systems for tests of the tree: Debian 11, 12 and 13, one with only busybox, and an empty one.

They are made once for each machine and kept in ``build/image/roots``, because a Debian takes about half a minute.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

_BUSYBOX = Path("/bin/busybox")
_DEBOOTSTRAP_S = 600
# This is part of the name of each root. Raise it to make all of them again.
_EDITION = 1
# Each Debian has these programs, so tests can check that the image's own Python and OpenSSL still work.
_PROGRAMS = ("python3", "openssl", "ca-certificates")


@dataclass(frozen=True)
class _Debian:
    suite: str
    programs: tuple[str, ...] = ()


_DEBIANS = {
    # The base of builds. It has no more packages than the Debian images of registries, so a forgotten package is
    # noticed.
    "debian-13-slim": _Debian("trixie"),
    "debian-11": _Debian("bullseye", _PROGRAMS),
    "debian-12": _Debian("bookworm", _PROGRAMS),
    "debian-13": _Debian("trixie", _PROGRAMS),
}
WITH_PYTHON = ("debian-11", "debian-12", "debian-13")
ALL = (*WITH_PYTHON, "busybox", "empty")


class Roots:
    """All root file systems by name. Missing ones are made in the background, two at a time."""

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        for unfinished in directory.glob("unfinished-*"):
            shutil.rmtree(unfinished)
        missing = [name for name in _DEBIANS if not self._path(name).exists()]
        if missing:
            say(f"making root file systems, about 30 s each, once: {', '.join(missing)}")
        mirror = _debian_mirror()
        self._executor = ThreadPoolExecutor(max_workers=2)
        self._roots: dict[str, Future[Path]] = {
            name: self._executor.submit(self._root, name, _maker_of_debian(debian, mirror))
            for name, debian in _DEBIANS.items()
        }
        self._roots["busybox"] = self._executor.submit(self._root, "busybox", _make_busybox)
        self._roots["empty"] = self._executor.submit(self._root, "empty", _make_empty)

    def __getitem__(self, name: str) -> Path:
        """Wait until a root is made, and return its directory. Tests must use a copy or an overlay of it."""
        return self._roots[name].result()

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)

    def _root(self, name: str, make: Callable[[Path], None]) -> Path:
        root = self._path(name)
        if not root.exists():
            # Rename the directory only when it is complete, so that an interrupted run leaves no incomplete root.
            unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=self._directory))
            unfinished.chmod(0o755)
            make(unfinished)
            unfinished.rename(root)
        return root

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}-{_EDITION}"


def _maker_of_debian(debian: _Debian, mirror: str | None) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        include = [f"--include={','.join(debian.programs)}"] if debian.programs else []
        command = ["debootstrap", "--variant=minbase", *include, debian.suite, str(root), *([mirror] if mirror else [])]
        # If cron or a user starts the tests, sbin is not in PATH.
        environ = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "DEBIAN_FRONTEND": "noninteractive"}
        result = subprocess.run(
            command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_DEBOOTSTRAP_S
        )
        output = result.stdout.decode("utf-8", "replace")
        assert result.returncode == 0, f"debootstrap of {debian.suite} failed:\n{output[-4000:]}"

    return make


def _debian_mirror() -> str | None:
    """Return the mirror that the apt of this machine uses; None (debootstrap's default) if apt does not report it."""
    index_targets = ["apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(SITE)", "Created-By: Packages"]
    result = subprocess.run(index_targets, capture_output=True, text=True, timeout=60)
    for line in result.stdout.splitlines():
        codename, component, site = line.split(" ", 2)
        if codename in {debian.suite for debian in _DEBIANS.values()} and component == "main":
            return site
    return None


def _make_busybox(root: Path) -> None:
    """Make a root with one static program and its names: no libc, no loader, no /etc."""
    programs = root / "bin"
    programs.mkdir()
    shutil.copy(_BUSYBOX, programs / "busybox")
    applets = subprocess.run([_BUSYBOX, "--list"], capture_output=True, text=True, check=True, timeout=60)
    for applet in applets.stdout.split():
        if applet != "busybox":
            (programs / applet).symlink_to("busybox")


def _make_empty(root: Path) -> None:
    """Do nothing: an empty root does not even have /tmp."""
