"""The size of the tree, the time of its start, and its memory when it is idle. The end of the run prints them."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import statistics
import subprocess
import time
from pathlib import Path

import pytest
from running_server import AS_PID_1, free_port

from image.conftest import StartContainer
from image.roots import Roots
from image.serving import SERVER, Ways, write_script

pytestmark = [pytest.mark.image, pytest.mark.timeout(300, func_only=True)]

_MB = 1_000_000
_TREE_MB = 60
_COMPRESSED_MB = 21
_START_S = 0.35
_IDLE_MIB = 48
_PATIENCE_S = 30


def test_the_tree_is_small(tree: Path, figures: dict[str, str]) -> None:
    files = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    size_mb = sum(path.stat().st_size for path in files) / _MB
    figures["size of the tree"] = f"{size_mb:.1f} MB in {len(files)} files (limit: {_TREE_MB} MB)"
    with subprocess.Popen(["tar", "-C", tree, "-czf", "-", "."], stdout=subprocess.PIPE) as tar:
        assert tar.stdout is not None
        compressed_mb = len(tar.stdout.read()) / _MB
    assert tar.returncode == 0
    figures["the same, packed with tar and gzip"] = f"{compressed_mb:.1f} MB (limit: {_COMPRESSED_MB} MB)"
    assert size_mb <= _TREE_MB
    assert compressed_mb <= _COMPRESSED_MB


def test_it_starts_soon(roots: Roots, tree: Path, tmp_path: Path, figures: dict[str, str]) -> None:
    """Measure from the start of the process, as PID 1 in its own root, to the first 200, without a container engine."""
    root = tmp_path / "root"
    shutil.copytree(roots["busybox"], root, symlinks=True)
    shutil.copytree(tree, root / "opt/watchdog", symlinks=True)
    for name in ("dev", "proc", "tmp"):
        (root / name).mkdir()
    took_s = sorted(_start_s(root) for _ in range(10))
    figures["start to the first 200 on /_/health"] = (
        f"{took_s[0]:.3f} s at best, {statistics.median(took_s):.3f} s in the median of 10"
        f" (limit for the best: {_START_S} s)"
    )
    assert took_s[0] <= _START_S


def _start_s(root: Path) -> float:
    port = free_port()
    mount_and_start = 'mount -t proc proc "$0/proc" && mount --bind /dev "$0/dev" && exec chroot "$0" "$@"'
    environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PORT": str(port), "WATCHDOG_BIND": "127.0.0.1"}
    environ |= {"WATCHDOG_METRICS_PORT": "0", "WATCHDOG_LOG_LEVEL": "ERROR"}
    command = [*AS_PID_1, "--mount", "/bin/sh", "-c", mount_and_start, str(root), *SERVER]
    begin = time.monotonic()
    with subprocess.Popen(command, env=environ) as process:
        try:
            while not _is_healthy(port):
                assert process.poll() is None, "the server ended"
                assert time.monotonic() - begin < _PATIENCE_S, "the server does not answer"
                time.sleep(0.001)
            return time.monotonic() - begin
        finally:
            # When unshare ends, its child is killed, too.
            process.kill()


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/_/health")
            return connection.getresponse().status == 200
        except ConnectionRefusedError:
            return False


def test_it_takes_little_memory_at_rest(ways: Ways, start_container: StartContainer, figures: dict[str, str]) -> None:
    container = start_container(ways.hardened("debian-12").serving())
    write_script(ways.config, "/bin/sh", 'cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/copy"')
    for _ in range(20):
        assert container.curl("/", "--data", "aGVsbG8=").body == b"aGVsbG8=\n"
    idle_mib, group_mib = container.memory_mib("VmRSS"), container.control_group_mib()
    figures["memory after 20 calls"] = f"{idle_mib:.1f} MiB resident (limit: {_IDLE_MIB} MiB)"
    figures["the same, as the kernel counts the container's"] = f"{group_mib:.1f} MiB"
    assert idle_mib <= _IDLE_MIB
