"""Read what control groups allow this process: CPUs, memory, and how often the kernel killed for memory.

Both versions are read. Version 2 is one tree, mounted at ``/sys/fs/cgroup`` (at ``/sys/fs/cgroup/unified`` on
a hybrid host); version 1 has one tree for each controller. ``/proc/self/cgroup`` names this process's place
in each. In a container that may be a path of the host that does not exist below the container's own mount. Then this
module goes upwards until a directory exists; the mount itself always exists. The files are described in the kernel's
``admin-guide/cgroup-v2.rst`` and ``admin-guide/cgroup-v1/``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

# A version 1 group without a memory limit says 2**63 rounded down to a page; nothing real comes near this.
_V1_UNLIMITED_BYTES = 1 << 62


class Cgroup:
    """The control groups of this process. Nothing here raises: what cannot be read is ``None``, "not known".

    ``root``: where control groups are mounted; ``proc``: the file that tells this process's place in them.
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
                    # A tree of two controllers carries both names, and each name alone is a link to it.
                    for mount in (os.path.join(root, controller), os.path.join(root, controllers)):
                        if os.path.isdir(mount):
                            self._v1_levels[controller] = list(_levels(mount, place))
                            break
        self._oom_fd = self._open_oom_count()

    def cpu_quota(self) -> float | None:
        """How many CPUs' worth of time may be used, ``0.5`` for half of one; ``None`` without a quota.

        A quota of any group above counts too, so the smallest is given.
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
        """The most memory that may be used: the smallest limit of this group and those above, or ``None``."""
        limits = []
        for level in self._v2_levels:
            limits.append(_number(_read(os.path.join(level, "memory.max"))))
        for level in self._v1_levels.get("memory", ()):
            limits.append(_number(_read(os.path.join(level, "memory.limit_in_bytes"))))
        return min((limit for limit in limits if limit is not None and limit < _V1_UNLIMITED_BYTES), default=None)

    def oom_kills(self) -> int | None:
        """How many processes of this group the kernel has ever killed for want of memory.

        Read before and after an invocation, it tells a script that ran out of memory from one killed
        otherwise. Costs one read of a small file, which stays open. ``None`` where the kernel does not count (before
        Linux 4.13).
        """
        if self._oom_fd < 0:
            return None
        try:
            return _oom_count(os.pread(self._oom_fd, 4096, 0).decode("ascii", "replace"))
        except OSError:  # the group is gone
            return None

    def ends_all_at_once(self) -> bool:
        """Return whether the kernel ends all processes of this group if it ends one for want of memory (version 2)."""
        return any(_number(_read(os.path.join(level, "memory.oom.group"))) for level in self._v2_levels)

    def close(self) -> None:
        """Count no more."""
        if self._oom_fd >= 0:
            os.close(self._oom_fd)
            self._oom_fd = -1

    def _open_oom_count(self) -> int:
        candidates = [os.path.join(level, "memory.events") for level in self._v2_levels]
        candidates += [os.path.join(level, "memory.oom_control") for level in self._v1_levels.get("memory", ())]
        for path in candidates:
            if _oom_count(_read(path)) is not None:
                with contextlib.suppress(OSError):
                    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return -1


def _levels(mount: str, place: str) -> Iterator[str]:
    """The directories of ``place`` and all groups above it, up to ``mount`` itself; only those that exist."""
    parts = [part for part in place.split("/") if part]
    if ".." in parts:  # a group outside this cgroup namespace: nothing of it can be seen but the mount
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
    """``max`` (version 2) and ``-1`` (version 1) mean no limit, as does a file that is not there."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _read(path: str) -> str | None:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(65536).decode("utf-8", "surrogateescape")
    except OSError:
        return None
