"""Read the control groups of this process: limits of CPU and memory, and out-of-memory kills.

This module reads both versions of control groups. Version 2 is one tree, mounted at ``/sys/fs/cgroup`` (at
``/sys/fs/cgroup/unified`` on a hybrid host). Version 1 has one tree for each controller. ``/proc/self/cgroup`` names
the group of this process in each tree. In a container this path may be a path of the host, which does not exist below
the container's own mount. Then this module uses the groups above it that exist; the mount itself always exists. The
kernel's ``admin-guide/cgroup-v2.rst`` and ``admin-guide/cgroup-v1/`` describe the files.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

# In version 1, a group without a memory limit shows 2**63 rounded down to a page. No machine has so much memory.
_V1_UNLIMITED_BYTES = 1 << 62


class Cgroup:
    """The control groups of this process. No method raises an exception: a value that cannot be read is None.

    Args:
        root: the directory where control groups are mounted.
        proc: the file that names the groups of this process.
    """

    def __init__(self, root: str = "/sys/fs/cgroup", proc: str = "/proc/self/cgroup") -> None:
        self._v2_levels: list[str] = []
        self._v1_levels: dict[str, list[str]] = {}
        for line in (_read(proc) or "").splitlines():
            _, _, rest = line.partition(":")
            controllers, _, place = rest.partition(":")
            if not controllers:
                for mount in (root, os.path.join(root, "unified")):
                    self._v2_levels += _levels(mount, place)
            for controller in controllers.split(","):
                if controller in ("cpu", "memory"):
                    # If two controllers share a tree, the name of its directory contains both (`cpu,cpuacct`). Each
                    # single name is a link to this directory.
                    for mount in (os.path.join(root, controller), os.path.join(root, controllers)):
                        if os.path.isdir(mount):
                            self._v1_levels[controller] = list(_levels(mount, place))
                            break

    def cpu_quota(self) -> float | None:
        """Return how many CPUs this process may use (0.5: half of the time of one CPU); None if there is no quota.

        The quota of each group above counts, too, so the result is the smallest quota.
        """
        quotas = []
        for level in self._v2_levels:
            quota, _, period = (_read(os.path.join(level, "cpu.max")) or "").partition(" ")
            quotas.append(_ratio(quota, period))
        for level in self._v1_levels.get("cpu", ()):
            quota = _read(os.path.join(level, "cpu.cfs_quota_us")) or ""
            quotas.append(_ratio(quota, _read(os.path.join(level, "cpu.cfs_period_us")) or ""))
        return min((quota for quota in quotas if quota is not None), default=None)

    def memory_limit_bytes(self) -> int | None:
        """Return the memory limit: the smallest one of this group and the groups above it; None if there is none."""
        limits = []
        for level in self._v2_levels:
            limits.append(_number(_read(os.path.join(level, "memory.max"))))
        for level in self._v1_levels.get("memory", ()):
            limits.append(_number(_read(os.path.join(level, "memory.limit_in_bytes"))))
        return min((limit for limit in limits if limit is not None and limit < _V1_UNLIMITED_BYTES), default=None)

    def ends_all_at_once(self) -> bool:
        """Return whether the kernel ends all processes of this group together when memory runs out (version 2)."""
        return any(_number(_read(os.path.join(level, "memory.oom.group"))) for level in self._v2_levels)

    def oom_kills(self) -> OomKills:
        """Open the kernel's count of the processes that it killed because memory ran out. The caller closes it."""
        candidates = [os.path.join(level, "memory.events") for level in self._v2_levels]
        candidates += [os.path.join(level, "memory.oom_control") for level in self._v1_levels.get("memory", ())]
        for path in candidates:
            if _oom_count(_read(path)) is not None:
                with contextlib.suppress(OSError):
                    return OomKills(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        return OomKills(-1)


class OomKills:
    """The number of processes of one group that the kernel has killed because memory ran out.

    Args:
        fd: the file that has the number; -1 if there is none (before Linux 4.13).
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        # The text that was last read, and its number. The text rarely changes.
        self._text = b""
        self._count: int | None = None

    def count(self) -> int | None:
        """Return the number so far; None if the kernel does not count.

        If the number grows during an invocation and the script was killed, the script ran out of memory. This takes one
        read of a small file, which stays open.
        """
        if self._fd < 0:
            return None
        try:
            text = os.pread(self._fd, 4096, 0)
        except OSError:  # the group is gone
            return None
        if text != self._text:
            self._text, self._count = text, _oom_count(text.decode("ascii", "replace"))
        return self._count

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _levels(mount: str, place: str) -> Iterator[str]:
    """Yield the directories of ``place`` and of all groups above it, up to ``mount``, if they exist."""
    parts = [part for part in place.split("/") if part]
    if ".." in parts:  # a group outside this cgroup namespace: only the mount can be seen
        parts = []
    for depth in range(len(parts), -1, -1):
        level = os.path.join(mount, *parts[:depth])
        if os.path.isdir(level):
            yield level


def _oom_count(text: str | None) -> int | None:
    for line in (text or "").splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill":
            return _number(count)
    return None


def _ratio(quota: str, period: str) -> float | None:
    quota_us, period_us = _number(quota), _number(period)
    return quota_us / period_us if quota_us and period_us else None


def _number(text: str | None) -> int | None:
    """Return the number in a file; None for ``max`` (version 2) and ``-1`` (version 1), or if there is no file."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _read(path: str) -> str | None:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(65536).decode("utf-8", "surrogateescape")
    except OSError:
        return None
