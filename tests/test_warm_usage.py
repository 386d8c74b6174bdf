"""The CPU time and the peak memory of a worker during one call are read from its process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from watchdog.system import proc
from watchdog.warm.usage import Usage

MIB = 1 << 20
# Runs each line that it reads, and answers each with a line.
PROCESS = """
import mmap, subprocess, sys
answer = b"\\n"
for line in sys.stdin:
    exec(line)
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
"""
GROW = "block = mmap.mmap(-1, 64 << 20); [block.write(bytes(1 << 20)) for _ in range(64)]"
GROW_AND_SHRINK = f"{GROW}; block.close()"
WORK = "[n for n in range(3_000_000)].clear()"

Run = Callable[[str], None]


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    line = [sys.executable, "-S", "-c", PROCESS]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.communicate()


@pytest.fixture
def run(process: subprocess.Popen[str]) -> Run:
    assert process.stdin is not None
    stdin, stdout = process.stdin, process.stdout
    assert stdout is not None

    def run(line: str) -> None:
        stdin.write(line + "\n")
        stdin.flush()
        assert stdout.readline() == "\n"

    return run


@pytest.fixture
def usage(process: subprocess.Popen[str], run: Run) -> Iterator[Usage]:
    for _ in range(3):
        run("pass")
    usage = Usage(process.pid)
    usage.read_stat()
    yield usage
    usage.close()


def peak_bytes(usage: Usage) -> int:
    _, peak_bytes = usage.of_call()
    assert peak_bytes is not None
    return peak_bytes


def test_the_peak_of_a_call_that_frees_its_memory_is_noticed(usage: Usage, run: Run) -> None:
    usage.begin()
    run("pass")
    at_rest_bytes = peak_bytes(usage)
    assert MIB < at_rest_bytes < 64 * MIB
    usage.begin()
    run(GROW_AND_SHRINK)
    assert 64 * MIB <= peak_bytes(usage) - at_rest_bytes < 80 * MIB


def test_the_peak_of_one_call_is_not_that_of_the_next(usage: Usage, run: Run) -> None:
    usage.begin()
    run(GROW_AND_SHRINK)
    assert peak_bytes(usage) > 64 * MIB
    usage.begin()
    run("pass")
    assert peak_bytes(usage) < 64 * MIB


def test_memory_that_the_worker_takes_while_it_is_idle_is_a_part_of_the_next_peak(usage: Usage, run: Run) -> None:
    usage.begin()
    run("pass")
    at_rest_bytes = peak_bytes(usage)
    run("block = bytearray(b'x') * (64 << 20)")
    usage.begin()
    run("pass")
    assert peak_bytes(usage) - at_rest_bytes >= 60 * MIB


def test_memory_that_the_worker_frees_while_it_is_idle_is_not_a_part_of_the_next_peak(usage: Usage, run: Run) -> None:
    for _ in range(3):  # the first time, the process also needs memory for the code of these lines
        run(GROW)
        run("block.close()")
    usage.begin()
    run(GROW)
    assert peak_bytes(usage) > 64 * MIB
    run("block.close()")  # this causes no page fault
    usage.begin()
    run("pass")
    assert peak_bytes(usage) < 64 * MIB


def test_the_peak_is_known_if_the_kernel_does_not_count_page_faults(
    usage: Usage, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pread(fd: int, count: int, offset: int) -> bytes:
        content = read(fd, count, offset)
        if not os.readlink(f"/proc/self/fd/{fd}").endswith("/stat"):
            return content
        fields = content.split(b" ")  # the name of this process has no space
        fields[9:13] = [b"0"] * 4
        return b" ".join(fields)

    read = os.pread
    monkeypatch.setattr(os, "pread", pread)
    usage.begin()
    run("pass")
    peak_bytes(usage)
    usage.begin()
    run(GROW_AND_SHRINK)
    assert peak_bytes(usage) > 64 * MIB


def test_the_peak_of_a_call_without_a_page_fault_is_exact(usage: Usage, process: subprocess.Popen[str]) -> None:
    for _ in range(2):
        usage.begin()
        status = Path(f"/proc/{process.pid}/status").read_bytes()
        now_bytes, highest_bytes = (proc.memory_bytes_in(status, name) or 0 for name in (b"VmRSS", b"VmHWM"))
        assert 0 < now_bytes <= peak_bytes(usage) <= highest_bytes


def test_a_process_that_has_exited_has_no_peak(usage: Usage, run: Run, process: subprocess.Popen[str]) -> None:
    usage.begin()
    run("pass")
    peak_bytes(usage)
    usage.begin()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie until it is reaped
    _, peak = usage.of_call()
    assert peak is None


def test_status_is_read_only_after_a_page_fault(
    usage: Usage, run: Run, process: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []

    def pread(fd: int, count: int, offset: int) -> bytes:
        reads.append(os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[2])
        return read(fd, count, offset)

    usage.begin()
    peak_bytes(usage)
    read = os.pread
    monkeypatch.setattr(os, "pread", pread)
    usage.begin()
    peak_bytes(usage)  # nothing has run, so there was no fault
    assert reads == ["stat"]
    usage.begin()
    run("block = bytearray(b'x') * (1 << 20)")
    peak_bytes(usage)
    assert reads == ["stat", "stat", "status"]


def test_cpu_time_has_that_of_the_process_and_of_its_children(usage: Usage, run: Run) -> None:
    usage.begin()
    run(WORK)
    own_s, _ = usage.of_call()
    assert own_s > 0.01
    usage.begin()
    run(f"subprocess.run([sys.executable, '-S', '-c', {WORK!r}])")
    with_child_s, _ = usage.of_call()
    assert with_child_s > 0.01


def test_a_process_that_is_gone_has_no_peak(usage: Usage, process: subprocess.Popen[str]) -> None:
    usage.begin()
    process.kill()
    process.wait()
    assert usage.of_call() == (0.0, None)
