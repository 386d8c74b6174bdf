"""List the children of this process, and reap those that have ended."""

from __future__ import annotations

import contextlib
import os
import threading

from ..system import proc
from .pipes import READ_BYTES

_HALF_A_PAGE_BYTES = 2048


class Children:
    """The kernel's list of the children of a process, living or dead.

    Args:
        pid: another process, of which only the children of the main thread are listed. None means this process.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._fds: list[int] = []
        # Orphans become children of the main thread. Commands are children of the current thread, which spawns them.
        threads = {os.getpid(), threading.get_native_id()} if pid is None else {pid}
        with contextlib.suppress(OSError):
            for thread in sorted(threads):
                path = f"/proc/{pid or 'self'}/task/{thread}/children"
                self._fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def pids(self) -> list[int] | None:
        """Return the pids of the children; None if the kernel does not list them (CONFIG_PROC_CHILDREN)."""
        text = b""
        for fd in self._fds:
            at = 0
            try:
                # The kernel returns one page at a time. A piece of less than half a page is the last one.
                while piece := os.pread(fd, READ_BYTES, at):
                    text += piece
                    at += len(piece)
                    if len(piece) < _HALF_A_PAGE_BYTES:
                        break
            except OSError:
                return None
        return [*map(int, text.split())] if self._fds else None

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


def children_by_parent() -> list[int]:
    """Return the pids of the children of this process, from a list of all processes."""
    me = os.getpid()
    try:
        return [each.pid for each in proc.processes() if each.parent == me]
    except OSError:
        return []


def reap_if_dead(pid: int) -> bool:
    """Reap a child if it is dead. Return whether it was dead."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
