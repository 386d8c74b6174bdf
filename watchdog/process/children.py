"""List the children of this process, and reap those that have ended."""

from __future__ import annotations

import contextlib
import os
import threading

from ..system import proc
from .pipes import READ_BYTES

_HALF_A_PAGE_BYTES = 2048


class Children:
    """The children of this process, living or dead, as the kernel lists them."""

    def __init__(self) -> None:
        self._fds: list[int] = []
        # An orphan comes to the main thread; a command belongs to the thread that spawned it: this one.
        with contextlib.suppress(OSError):
            for thread in sorted({os.getpid(), threading.get_native_id()}):
                self._fds.append(os.open(f"/proc/self/task/{thread}/children", os.O_RDONLY | os.O_CLOEXEC))

    def pids(self) -> list[int] | None:
        """None where the kernel does not list them (CONFIG_PROC_CHILDREN)."""
        text = b""
        for fd in self._fds:
            at = 0
            try:
                # The kernel gives a page at a time; less than a half of one was the last.
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
    me = os.getpid()
    try:
        return [each.pid for each in proc.processes() if each.parent == me]
    except OSError:
        return []


def reap_if_dead(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
