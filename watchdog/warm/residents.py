"""Remember the processes that a worker started while it loaded. All others were started by calls."""

from __future__ import annotations

from ..process.child import Child
from ..process.children import Children
from ..process.supervisor import Supervisor
from ..system import proc


class Residents:
    """The processes that a worker started before it was ready, such as a server that holds a model.

    Args:
        child: the process of the worker.
    """

    def __init__(self, supervisor: Supervisor, child: Child) -> None:
        self._supervisor = supervisor
        self._child = child
        self._children = Children(child.pid)
        self._noted: dict[int, proc.Process] = {}  # by pid

    async def note(self) -> None:
        """Note the processes that the worker has now."""
        self._noted |= {each.pid: each for each in await self._supervisor.processes_of(self._child)}

    def may_be_new(self) -> bool:
        """Return whether there may be a process that was not noted. This takes two system calls."""
        children = self._children.pids() or ()
        return any(pid not in self._noted for pid in children) or self._supervisor.may_have_new_orphans(
            self._child, self._noted
        )

    async def new(self) -> list[proc.Process]:
        """Return the living processes of the worker that were not noted."""
        processes = await self._supervisor.processes_of(self._child)
        return [each for each in processes if not self._is_noted(each)]

    def _is_noted(self, process: proc.Process) -> bool:
        noted = self._noted.get(process.pid)
        return noted is not None and noted.identity == process.identity

    def close(self) -> None:
        """Close the list of children."""
        self._children.close()
