"""Directories of files like those of the kernel, in both versions of control groups."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from watchdog.system.cgroup import Cgroup


class Kernel:
    """Make a directory like ``/sys/fs/cgroup``, and a file like ``/proc/self/cgroup``."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "cgroup"
        self.proc = directory / "proc-self-cgroup"
        self.root.mkdir()

    def place(self, *lines: str) -> None:
        self.proc.write_text("".join(line + "\n" for line in lines))

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def cgroup(self) -> Cgroup:
        return Cgroup(root=str(self.root), proc=str(self.proc))


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def oom_kills(cgroup: Cgroup) -> int | None:
    with contextlib.closing(cgroup.oom_kills()) as kills:
        return kills.count()


def test_version_2(kernel: Kernel) -> None:
    kernel.place("0::/pod/app")
    kernel.write("pod/app/cpu.max", "150000 100000\n")
    kernel.write("pod/app/memory.max", "268435456\n")
    kernel.write("pod/app/memory.events", "low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\noom_group_kill 0\n")

    cgroup = kernel.cgroup()

    assert cgroup.cpu_quota() == 1.5
    assert cgroup.memory_limit_bytes() == 256 << 20
    assert oom_kills(cgroup) == 3


def test_a_group_that_ends_all_at_once(kernel: Kernel) -> None:
    kernel.place("0::/pod/app")
    kernel.write("pod/app/memory.max", "max\n")
    assert not kernel.cgroup().ends_all_at_once()
    for value, expected in (("0\n", False), ("1\n", True)):
        kernel.write("pod/app/memory.oom.group", value)
        assert kernel.cgroup().ends_all_at_once() is expected


def test_version_1(kernel: Kernel) -> None:
    kernel.place("5:cpu,cpuacct:/docker/abc", "4:memory:/docker/abc", "1:name=systemd:/docker/abc")
    kernel.write("cpu,cpuacct/docker/abc/cpu.cfs_quota_us", "50000\n")
    kernel.write("cpu,cpuacct/docker/abc/cpu.cfs_period_us", "100000\n")
    kernel.write("memory/docker/abc/memory.limit_in_bytes", "1073741824\n")
    kernel.write("memory/docker/abc/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")

    cgroup = kernel.cgroup()

    assert cgroup.cpu_quota() == 0.5
    assert cgroup.memory_limit_bytes() == 1 << 30
    assert oom_kills(cgroup) == 1


def test_hybrid_host_reads_limits_of_version_1(kernel: Kernel) -> None:
    kernel.place("3:memory:/app", "0::/app")
    kernel.write("unified/app/cgroup.procs", "")
    kernel.write("memory/app/memory.limit_in_bytes", "4096\n")
    assert kernel.cgroup().memory_limit_bytes() == 4096


def test_place_of_the_host_that_is_not_below_the_containers_mount(kernel: Kernel) -> None:
    kernel.place("0::/kubepods/burstable/pod1/abc")
    kernel.write("cpu.max", "200000 100000\n")
    kernel.write("memory.events", "oom_kill 5\n")
    assert kernel.cgroup().cpu_quota() == 2
    assert oom_kills(kernel.cgroup()) == 5


def test_place_outside_the_namespace(kernel: Kernel) -> None:
    kernel.place("0::/../../other")
    kernel.write("memory.max", "8192\n")
    (kernel.root.parent / "other").mkdir()
    assert kernel.cgroup().memory_limit_bytes() == 8192


def test_smallest_limit_of_the_groups_above_counts(kernel: Kernel) -> None:
    kernel.place("0::/pod/app")
    kernel.write("pod/app/cpu.max", "max 100000\n")
    kernel.write("pod/cpu.max", "300000 100000\n")
    kernel.write("pod/app/memory.max", "9000\n")
    kernel.write("pod/memory.max", "5000\n")
    assert kernel.cgroup().cpu_quota() == 3
    assert kernel.cgroup().memory_limit_bytes() == 5000


def test_no_limit(kernel: Kernel) -> None:
    kernel.place("0::/", "2:cpu:/", "3:memory:/")
    kernel.write("cpu.max", "max 100000\n")
    kernel.write("memory.max", "max\n")
    kernel.write("cpu/cpu.cfs_quota_us", "-1\n")
    kernel.write("cpu/cpu.cfs_period_us", "100000\n")
    kernel.write("memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert kernel.cgroup().cpu_quota() is None
    assert kernel.cgroup().memory_limit_bytes() is None


def test_oom_kills_are_read_again_each_time(kernel: Kernel) -> None:
    kernel.place("0::/app")
    kernel.write("app/memory.events", "oom 0\noom_kill 0\n")
    oom_kills = kernel.cgroup().oom_kills()
    assert oom_kills.count() == 0
    kernel.write("app/memory.events", "oom 1\noom_kill 1\n")
    assert oom_kills.count() == 1
    oom_kills.close()
    assert oom_kills.count() is None


def test_limits_are_read_without_leaving_a_file_open(kernel: Kernel) -> None:
    kernel.place("0::/app")
    kernel.write("app/memory.max", "4096\n")
    kernel.write("app/memory.events", "oom 0\noom_kill 0\n")
    before = os.listdir("/proc/self/fd")
    assert kernel.cgroup().memory_limit_bytes() == 4096
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("content", ["", "nonsense\n", "0:\n", "::::\n", "0::/app\n"])
def test_nothing_to_be_found(kernel: Kernel, content: str) -> None:
    kernel.proc.write_text(content)
    cgroup = kernel.cgroup()
    assert (cgroup.cpu_quota(), cgroup.memory_limit_bytes(), oom_kills(cgroup)) == (None, None, None)


def test_garbage_in_the_kernels_files(kernel: Kernel) -> None:
    kernel.place("0::/")
    for name in ("cpu.max", "memory.max", "memory.events"):
        kernel.write(name, "oom_kill x\n")
    cgroup = kernel.cgroup()
    assert (cgroup.cpu_quota(), cgroup.memory_limit_bytes(), oom_kills(cgroup)) == (None, None, None)


def test_no_proc_file(kernel: Kernel) -> None:
    assert kernel.cgroup().cpu_quota() is None


def test_this_machine() -> None:
    cgroup = Cgroup()
    assert (cgroup.cpu_quota() or 1) > 0
    assert (cgroup.memory_limit_bytes() or 1) > 0
    assert (oom_kills(cgroup) or 0) >= 0
