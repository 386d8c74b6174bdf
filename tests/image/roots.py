"""Root file systems to try the tree in: Debian 11, 12 and 13, one with busybox only, an empty one.

Made once per machine and kept in ``build/image/roots``: a Debian takes about half a minute.
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
# Part of each root's name: raise it to have all made anew.
_EDITION = 1
# The same programs in each Debian, so that the image's own Python and OpenSSL can be seen to work beside the tree's.
_PROGRAMS = ("python3", "openssl", "ca-certificates")


@dataclass(frozen=True)
class _Debian:
    suite: str
    programs: tuple[str, ...] = ()


_DEBIANS = {
    # To build on: as slim as the Debian images of registries, so that what a Dockerfile forgets is missing.
    "debian-13-slim": _Debian("trixie"),
    "debian-11": _Debian("bullseye", _PROGRAMS),
    "debian-12": _Debian("bookworm", _PROGRAMS),
    "debian-13": _Debian("trixie", _PROGRAMS),
}
WITH_PYTHON = ("debian-11", "debian-12", "debian-13")
ALL = (*WITH_PYTHON, "busybox", "empty")


class Roots:
    """All of them, by name; what is not there is made in the background, two at a time."""

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
        """The root's directory, once it is made. Whoever runs something in it works on a copy or an overlay."""
        return self._roots[name].result()

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)

    def _root(self, name: str, make: Callable[[Path], None]) -> Path:
        root = self._path(name)
        if not root.exists():
            # Made beside and renamed when it is whole: an interrupted run leaves none that looks so.
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
        # Where cron or a user starts it, sbin is not on the path.
        environ = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "DEBIAN_FRONTEND": "noninteractive"}
        result = subprocess.run(
            command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_DEBOOTSTRAP_S
        )
        output = result.stdout.decode("utf-8", "replace")
        assert result.returncode == 0, f"debootstrap of {debian.suite} failed:\n{output[-4000:]}"

    return make


def _debian_mirror() -> str | None:
    """Where this machine's own apt gets Debian from; None, debootstrap's default, where it does not tell."""
    index_targets = ["apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(SITE)", "Created-By: Packages"]
    result = subprocess.run(index_targets, capture_output=True, text=True, timeout=60)
    for line in result.stdout.splitlines():
        codename, component, site = line.split(" ", 2)
        if codename in {debian.suite for debian in _DEBIANS.values()} and component == "main":
            return site
    return None


def _make_busybox(root: Path) -> None:
    """One static program and its names, and nothing else: no libc, no loader, no /etc."""
    programs = root / "bin"
    programs.mkdir()
    shutil.copy(_BUSYBOX, programs / "busybox")
    applets = subprocess.run([_BUSYBOX, "--list"], capture_output=True, text=True, check=True, timeout=60)
    for applet in applets.stdout.split():
        if applet != "busybox":
            (programs / applet).symlink_to("busybox")


def _make_empty(root: Path) -> None:
    """Nothing to do: not even /tmp is there."""
