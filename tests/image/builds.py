"""The real ``Dockerfile.base``, built with buildah on a Debian that ``roots`` has made."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from image.containers import Engine

_PROJECT = Path(__file__).parents[2]
_INPUTS = ("Dockerfile.base", ".dockerignore", "LICENSE", "image", "watchdog")
_BUILD_S = 600
# Only Docker's format has a HEALTHCHECK.
_BUILD = ("buildah", "build", "--layers", "--format", "docker", "--isolation", "chroot", "--network", "host")
# Environment variables with the certificate of a private CA, for programs of this machine.
_CA_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "CURL_CA_BUNDLE")


class Builds:
    """Builds the image, the tree and images of examples from the working tree."""

    def __init__(self, engine: Engine, directory: Path, debian: Path) -> None:
        """
        Args:
            directory: keeps the trees. Trees of an older state of the project are removed.
            debian: the root file system of the builder and of the base.
        """
        self._engine = engine
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._context = directory / "context"
        self._debian = self.import_root(debian)
        key = self._copy_inputs()
        self.image = f"localhost/oscar-watchdog:{key}"
        self.tree_image = f"localhost/oscar-watchdog-tree:{key}"
        if not self._has(self.image) or not self._has(self.tree_image):
            self._forget_older_images()
            self._build_base(self.image)
            self._build_base(self.tree_image, "--target", "export")
        self.tree = self._export(key)

    def build(self, dockerfile: Path, context: Path, tag: str, *arguments: str) -> None:
        """Build an image of one of the project's Dockerfiles."""
        self._engine.run(*_BUILD, *arguments, "--tag", tag, "--file", str(dockerfile), str(context), timeout_s=_BUILD_S)

    def build_tree(self, directory: Path, *arguments: str) -> Path:
        """Build another tree in that directory, from the stage ``export``.

        Args:
            arguments: arguments of buildah, such as ``--no-cache``.
        """
        self._build_base(self.tree_image, "--target", "export", "--output", f"type=local,dest={directory}", *arguments)
        return directory / "opt/watchdog"

    def import_root(self, root: Path) -> str:
        """Return the image that has only this root file system."""
        image = f"localhost/root-{root.name}"
        if not self._has(image):
            with tempfile.TemporaryDirectory(dir=self._directory) as directory:
                archive = Path(directory) / "root.tar"
                subprocess.run(["tar", "-C", root, "-cf", archive, "."], check=True, timeout=120)
                self._engine.run("podman", "import", "--quiet", str(archive), image)
        return image

    def _has(self, image: str) -> bool:
        return self._engine.run("podman", "image", "exists", image, check=False).returncode == 0

    def _build_base(self, tag: str, *arguments: str) -> None:
        certificate = next((os.environ[name] for name in _CA_VARIABLES if os.environ.get(name)), None)
        secret = ("--secret", f"id=ca,src={certificate}") if certificate is not None else ()
        images = ("--build-arg", f"BUILDER_IMAGE={self._debian}", "--build-arg", f"BASE_IMAGE={self._debian}")
        self.build(self._context / "Dockerfile.base", self._context, tag, *secret, *images, *arguments)

    def _forget_older_images(self) -> None:
        """Remove images of other states of the project, because each would keep its layers."""
        listing = self._engine.run("podman", "images", "--format", "{{.Repository}}:{{.Tag}}")
        older = [name for name in listing.stdout.split() if name.startswith("localhost/oscar-watchdog")]
        if older:
            self._engine.run("podman", "rmi", "--force", *older)
        self._engine.run("podman", "image", "prune", "--force")

    def _copy_inputs(self) -> str:
        """Copy the files that git knows or would add, in their current state. Return a key of all of them."""
        listing = (
            "git",
            "-c",
            "safe.directory=*",
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
            "--",
            *_INPUTS,
        )
        names = subprocess.run(listing, cwd=_PROJECT, capture_output=True, check=True, timeout=60).stdout.split(b"\0")
        shutil.rmtree(self._context, ignore_errors=True)
        digest = hashlib.sha256(self._debian.encode())
        for name in sorted({os.fsdecode(name) for name in names if name}):
            source, copy = _PROJECT / name, self._context / name
            if source.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, copy)
                digest.update(f"\0{name}\0{source.stat().st_mode}\0".encode() + source.read_bytes())
        return digest.hexdigest()[:16]

    def _export(self, key: str) -> Path:
        kept = self._directory / f"tree-{key}"
        if not kept.exists():
            for old in self._directory.glob("tree-*"):
                shutil.rmtree(old)
            unfinished = Path(tempfile.mkdtemp(prefix="tree-", dir=self._directory))
            self.build_tree(unfinished)
            unfinished.chmod(0o755)
            unfinished.rename(kept)
        return kept / "opt/watchdog"
