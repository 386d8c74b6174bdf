"""Memory does not grow with the size of transfers: large objects go from a bucket through a script and back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from storage.conftest import Define
from storage.events import event
from storage.servers import S3Server, moto_s3
from storage.webdav_servers import rclone_webdav

MOST_MIB = 96
# Each object is larger than the memory that a job may use.
SIZES = pytest.mark.parametrize("size_mib", [256, pytest.param(1024, marks=pytest.mark.nightly)])
# getrusage would also count the child of the script. So the job prints its own peak when it ends.
JOB = """
import sys
from watchdog.__main__ import main
try:
    main()
finally:
    print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0], file=sys.stderr)
"""


COPY = 'mv "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/copy"'


def run_job(directory: Path, definition: str, stdin: bytes, script: str = COPY) -> float:
    """Run a job; return the most memory that it had, in MiB."""
    (directory / "script.sh").write_text(script)
    (directory / "tmp").mkdir()
    environ = {
        "PATH": "/usr/bin:/bin",
        "TMPDIR": str(directory / "tmp"),
        "WATCHDOG_SCRIPT_PATH": str(directory / "script.sh"),
        "WATCHDOG_SERVICE_DEFINITION": definition,
        "WATCHDOG_LOG_LEVEL": "WARNING",
    }
    command = [sys.executable, "-c", JOB, "job"]
    done = subprocess.run(command, input=stdin, env=environ, capture_output=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1]) / 1024


@pytest.fixture
def large(size_mib: int) -> Iterator[Callable[[Path], Path]]:
    """Make a file of random bytes at a path."""
    with ExitStack() as stack:

        def make(path: Path) -> Path:
            path.parent.mkdir(parents=True, exist_ok=True)
            block = os.urandom(1 << 20)
            with open(path, "wb") as file:
                for _ in range(size_mib):
                    file.write(block)
            stack.callback(path.unlink)
            return path

        yield make


def same(one: Path, other: Path) -> bool:
    return subprocess.run(["cmp", one, other], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@SIZES
def test_a_large_object_through_s3(
    define: Define, bucket_server: S3Server, place: str, large: Any, size_mib: int, tmp_path: Path
) -> None:
    assert bucket_server.root is not None
    source = large(tmp_path / "source")
    bucket_server.client().upload_file(str(source), *f"{place}/in/large".split("/", 1))
    peak_mib = run_job(tmp_path, define(), event(f"{place}/in/large"))
    assert same(source, bucket_server.root / place / "out" / "copy")
    (bucket_server.root / place / "out" / "copy").unlink()
    print(f"peak memory of a job with {size_mib} MiB in and out through S3: {peak_mib:.1f} MiB")
    assert peak_mib <= MOST_MIB


@pytest.mark.slow
@pytest.mark.timeout(600)
@SIZES
def test_a_large_object_through_webdav(define: Define, large: Any, size_mib: int, tmp_path: Path) -> None:
    with rclone_webdav(tmp_path / "webdav") as server:
        source = large(server.root / "in" / "large")
        definition = define(**server.definition("in", "out"))
        told = b'{"event": {"name": "large", "mask": ["IN_CREATE"]}, "subscription": "https://dcache/x"}'
        peak_mib = run_job(tmp_path, definition, told)
        assert same(source, server.root / "out" / "copy")
        (server.root / "out" / "copy").unlink()
    print(f"peak memory of a job with {size_mib} MiB in and out through WebDAV: {peak_mib:.1f} MiB")
    assert peak_mib <= MOST_MIB


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_eight_files_at_once(define: Define, tmp_path: Path) -> None:
    """Each file has 64 MiB and is sent in parts."""
    with moto_s3() as server:
        definition = define(
            storage_providers={"minio": {"default": server.definition()}},
            input=None,
            output=[{"storage_provider": "minio", "path": "bucket/out"}],
        )
        script = 'cd "$TMP_OUTPUT_DIR"; for i in 1 2 3 4 5 6 7 8; do head -c 67108864 /dev/zero > f$i; done'
        peak_mib = run_job(tmp_path, definition, b"{}", script)
        names = [each["Key"] for each in server.client().list_objects_v2(Bucket="bucket")["Contents"]]
        assert names == [f"out/f{number}" for number in range(1, 9)]
    print(f"peak memory of a job that stores 8 files of 64 MiB: {peak_mib:.1f} MiB")
    assert peak_mib <= MOST_MIB
