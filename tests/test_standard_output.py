"""If the reader of stdout ends, or stdout cannot be written, there is no traceback, but an exit code for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LARGE = 'head -c 3000000 /dev/zero > "$TMP_OUTPUT_DIR/large"'
PRINT_MUCH = "head -c 3000000 /dev/zero"
BROKEN_PIPE = 141  # the code that a shell shows for a program that SIGPIPE ended


def environment(tmp_path: Path, script: str) -> dict[str, str]:
    path = tmp_path / "script.sh"
    path.write_text(script)
    return {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), "WATCHDOG_SCRIPT_PATH": str(path), "EVENT": "{}"}


def watchdog(*words: str, stdout: int, environ: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "watchdog", *words]
    return subprocess.run(
        command, env=environ, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, check=False, timeout=50
    )


COMMANDS = {
    "run, file": (["run", "/etc/hostname"], LARGE),
    "run, printed": (["run", "/etc/hostname"], PRINT_MUCH),
    "run, several files": (["run", "/etc/hostname"], 'touch "$TMP_OUTPUT_DIR/a" "$TMP_OUTPUT_DIR/b"'),
    "job, file": (["job"], LARGE),
    "job, printed": (["job"], PRINT_MUCH),
    "check": (["check"], "true"),
    "help": (["--help"], "true"),
    "help of a command": (["run", "--help"], "true"),
    "version": (["--version"], "true"),
}


@pytest.mark.parametrize(("words", "script"), COMMANDS.values(), ids=COMMANDS)
def test_a_stdout_without_reader_ends_the_command_quietly(tmp_path: Path, words: list[str], script: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = watchdog(*words, stdout=writer, environ=environment(tmp_path, script))
    finally:
        os.close(writer)
    assert done.returncode == BROKEN_PIPE, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert b"Broken pipe" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["script.sh"], "the workspace is removed"


@pytest.mark.parametrize(("words", "script"), COMMANDS.values(), ids=COMMANDS)
def test_a_closed_stdout_is_an_error(tmp_path: Path, words: list[str], script: str) -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "watchdog", *words]
    done = subprocess.run(
        command,
        env=environment(tmp_path, script),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
        timeout=50,
    )
    assert done.returncode == 73, done.stderr
    assert b"stdout cannot be written: Bad file descriptor; redirect it elsewhere" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["run", "/etc/hostname"], ["job"]], ids=["run", "job"])
def test_the_first_bytes_of_a_large_output_in_a_pipeline(tmp_path: Path, words: list[str]) -> None:
    environ = environment(tmp_path, PRINT_MUCH.replace("/dev/zero", "/dev/zero | tr '\\0' x"))
    pipeline = f"{sys.executable} -m watchdog {' '.join(words)} | head -c 10; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", pipeline], env=environ, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=50
    )
    assert done.stdout == f"{'x' * 10}{BROKEN_PIPE}\n".encode()
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(("words", "script"), COMMANDS.values(), ids=COMMANDS)
def test_a_full_disk_below_stdout_is_named(tmp_path: Path, words: list[str], script: str) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = watchdog(*words, stdout=full, environ=environment(tmp_path, script))
    finally:
        os.close(full)
    assert done.returncode == 73
    assert b"stdout cannot be written: No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr
