"""`watchdog invoke` with large files, up to a gigabyte in both directions: byte for byte, and in constant memory."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from client_command import clean_environment, command, stderr_of
from running_server import StartServer

BLOCK = random.Random(7).randbytes(3 * 1024 * 1024)
# Numbers of blocks. They make 258 MiB, which is more memory than the client may use, and 1,026 MiB.
COUNTS = [86, pytest.param(342, marks=pytest.mark.nightly)]
MOST_MIB = 96
# A small process that starts the command and writes the peak of its memory to a file. The number that the kernel gives
# to pytest would contain the memory of pytest itself, of which the command is a fork for a moment.
MEASURE = """
import os, sys
pid = os.fork()
if not pid:
    os.execv(sys.argv[2], sys.argv[2:])
_, status, usage = os.wait4(pid, 0)
open(sys.argv[1], "w").write(str(usage.ru_maxrss // 1024))
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("blocks", COUNTS)
@pytest.mark.parametrize(
    ("flags", "has_two_outputs", "is_piped"),
    [
        ((), False, False),
        ((), True, False),
        ((), False, True),
        (("--live",), True, False),
        (("--live",), False, True),
        (("--input", "raw", "--output", "raw"), False, False),
    ],
    ids=["base64", "base64-several", "base64-pipes", "live-several", "live-pipes", "raw"],
)
def test_a_large_file_goes_both_ways_in_constant_memory(
    start_server: StartServer,
    tmp_path: Path,
    blocks: int,
    flags: tuple[str, ...],
    has_two_outputs: bool,
    is_piped: bool,
) -> None:
    server = start_server(
        'mv "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/out"' + ('; echo > "$TMP_OUTPUT_DIR/second"' if has_two_outputs else "")
    )
    with open(tmp_path / "in", "wb") as file:
        for _ in range(blocks):
            file.write(BLOCK)
    url = f"http://127.0.0.1:{server.port}"
    if is_piped:
        words = ["bash", "-c", 'set -o pipefail; cat in | "$@" > result', "bash", *measured(url, "-", *flags)]
    else:
        words = measured(url, "in", "-o", "new", *flags)
    done = subprocess.run(
        words, cwd=tmp_path, env=clean_environment(TMPDIR=str(tmp_path)), capture_output=True, timeout=600, check=False
    )
    assert done.returncode == 0, stderr_of(done)
    assert int((tmp_path / "peak").read_text()) < MOST_MIB
    kept = tmp_path / ("result" if is_piped else "new/out")
    assert kept.stat().st_size == blocks * len(BLOCK)
    with open(kept, "rb") as file:
        for _ in range(blocks):
            assert file.read(len(BLOCK)) == BLOCK
    os.unlink(kept)


def measured(*words: str) -> list[str]:
    return [sys.executable, "-c", MEASURE, "peak", *command(*words)]
