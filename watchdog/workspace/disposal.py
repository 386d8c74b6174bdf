"""Empty the directories of ended calls so that the next calls can use them, or remove them.

::

    dispose ─► in the next turn of the event loop:
                 ├─ no process can write into it: emptied and kept ─┬─ the next call takes it
                 │                                                  └─ unused: removed in a thread
                 ├─ a process may write into it: removed
                 └─ large, changed, or on a slow disk: removed in a thread
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable

from ..system.threads import REMOVALS, take_error
from .workspace import Workspace
from .workspaces import Workspaces

# The longest time, in seconds, for which directories are emptied in one turn of the event loop.
_TIDY_FOR_S = 0.002
# Seconds for which the directory of an ended call is kept for the next call.
_KEPT_S = 0.25


class Disposal:
    """Empties or removes the directories of calls that have ended.

    Args:
        others_run: returns whether a script runs now.
        not_removed: is called with a directory that cannot be removed, the id of its call and the error, in any thread.
    """

    def __init__(
        self,
        workspaces: Workspaces,
        *,
        others_run: Callable[[], bool],
        not_removed: Callable[[Workspace, str | None, OSError], None],
    ) -> None:
        self._workspaces = workspaces
        self._others_run = others_run
        self._not_removed = not_removed
        self._loop = asyncio.get_running_loop()
        self._removals: set[asyncio.Future[None]] = set()
        self._untidy: deque[tuple[Workspace, str | None]] = deque()
        self._tidy_timer: asyncio.Handle | None = None
        self._unused_timer: asyncio.TimerHandle | None = None

    @property
    def has_work(self) -> bool:
        """Whether a directory waits to be emptied or removed. Kept directories do not count."""
        return bool(self._removals or self._untidy)

    def dispose(self, workspace: Workspace, loan: int, call_id: str | None) -> None:
        """Empty or remove a directory soon.

        A second call of this method for the same call does nothing, because another call may have the directory then.

        Args:
            loan: the value of ``workspace.loan`` when the call got the directory.
            call_id: for the log, if the directory cannot be removed; None if it did not belong to a call.
        """
        if workspace.loan != loan:
            return
        workspace.loan = 0
        self._untidy.append((workspace, call_id))
        if self._tidy_timer is None:
            # Empty directories in the next turn of the loop. By then a small answer has been sent, but no other script
            # can have started. After the start of another script, the directory would need one more check.
            self._tidy_timer = self._loop.call_soon(self._tidy_up)

    def in_thread(self, remove: Callable[[], None]) -> None:
        """Remove something in a thread. No call waits for it."""
        try:
            removal = self._loop.run_in_executor(REMOVALS, remove)
        except RuntimeError:  # no thread can be started now
            remove()
        else:
            self._removals.add(removal)
            removal.add_done_callback(self._removals.discard)
            removal.add_done_callback(take_error)  # a removal has an error here only if it was abandoned

    async def until_no_name_is_left(self) -> None:
        """Return when no file of an ended call has a name any more."""
        while self._untidy:
            self._tidy_up()
        while self._removals:
            await asyncio.wait(self._removals)

    async def finish(self) -> None:
        """Return when all directories are removed, including the kept ones."""
        while self._untidy:
            self._remove_later(*self._untidy.popleft())
        self._remove_unused(0.0)
        while self._removals:
            await asyncio.wait(self._removals)

    def _tidy_up(self) -> None:
        """Empty the directories of ended calls so that the next calls can use them, or remove them."""
        self._tidy_timer = None
        loop = self._loop
        until_s = loop.time() + _TIDY_FOR_S
        while self._untidy:
            if loop.time() > until_s:  # there are many directories: let the loop serve other calls before the rest
                self._tidy_timer = loop.call_soon(self._tidy_up)
                break
            workspace, call_id = self._untidy.popleft()
            if workspace.is_tree_gone:
                is_done = self._workspaces.keep(workspace, others_run=self._others_run())
            else:
                is_done = self._workspaces.remove_small(workspace)
            if not is_done:
                self._remove_later(workspace, call_id)
        if self._unused_timer is None and self._workspaces.has_kept:
            self._unused_timer = loop.call_later(_KEPT_S, self._remove_unused)

    def _remove_unused(self, for_s: float = _KEPT_S) -> None:
        self._unused_timer = None
        for workspace in self._workspaces.unused(for_s):
            self._remove_later(workspace, None)
        if self._workspaces.has_kept:
            self._unused_timer = self._loop.call_later(_KEPT_S, self._remove_unused)

    def _remove_later(self, workspace: Workspace, call_id: str | None) -> None:
        self.in_thread(functools.partial(self._remove, workspace, call_id))

    def _remove(self, workspace: Workspace, call_id: str | None) -> None:
        try:
            workspace.remove()
        except OSError as error:
            self._not_removed(workspace, call_id, error)
