"""Remember the processes that a worker started while it loaded. All others were started by calls."""

from __future__ import annotations

import os

from ..process.child import Child
from ..process.supervisor import Supervisor
from ..system import proc

_READ_BYTES = 4096


class Residents:
    """The processes that a worker started before it was ready, such as a server that holds a model.

    Args:
        child: the process of the worker.
    """

    def __init__(self, supervisor: Supervisor, child: Child) -> None:
        self._supervisor = supervisor
        self._child = child
        self._identities: set[tuple[int, int]] = set()
        self._pids: set[int] = set()
        try:
            self._fd = os.open(f"/proc/{child.pid}/task/{child.pid}/children", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # the kernel does not list children (CONFIG_PROC_CHILDREN)
            self._fd = -1

    async def note(self) -> None:
        """Note the processes that the worker has now."""
        for each in await self._supervisor.processes_of(self._child):
            self._identities.add(each.identity)
            self._pids.add(each.pid)

    def may_be_new(self) -> bool:
        """Return whether there may be a process that was not noted. This takes two system calls."""
        children: list[int] = []
        if self._fd >= 0:
            try:
                children = [*map(int, os.pread(self._fd, _READ_BYTES, 0).split())]
            except OSError:  # the worker has just exited
                return False
        return any(pid not in self._pids for pid in children) or self._supervisor.may_have_new_orphans(
            self._child, self._pids
        )

    async def new(self) -> list[proc.Process]:
        """Return the living processes of the worker that were not noted."""
        processes = await self._supervisor.processes_of(self._child)
        return [each for each in processes if each.identity not in self._identities]

    def close(self) -> None:
        """Close the list of children."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
