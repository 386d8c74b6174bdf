"""Represent one running command: its process group, its pipes, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import threading
from collections.abc import Iterable

from ..system import proc
from .pipes import Feed, Pipe, set_done
from .watch import Wait, Watch

# Seconds to wait for the status of a command that another process traces.
_TRACED_S = 5.0


class Child:
    """One running command.

    Attributes:
        mark: the path in its environment that shows which processes belong to it.
        limit: the value of the resource limit that marks its processes, see :class:`LimitMark`.
        feed: its stdin; None if stdin is empty.
        slot: its place in the table of the guardian.
        grace_s: the seconds between SIGTERM and SIGKILL.
        kill_at_s: the time of the SIGKILL; 0 as long as the group got no SIGTERM.
        signalled: the names of the processes of its tree that had to be ended, by identity.
        exited_by_itself: the command exited before anything asked for its end.
        wake_up: done when the command has exited, when something asks for its end, or when its time is over.
        exited: done when the command has exited.
        asked_to_end: done when something asks for the end of the command.
    """

    def __init__(
        self,
        pid: int,
        mark: bytes,
        limit: int,
        pipes: tuple[Pipe, ...],
        feed: Feed | None,
        loop: asyncio.AbstractEventLoop,
        watch: Watch,
        slot: int,
        grace_s: float,
    ) -> None:
        self.pid = pid
        self.mark = mark
        self.limit = limit
        self.pipes = pipes
        self.feed = feed
        self.loop = loop
        self.watch = watch
        self.slot = slot
        self.grace_s = grace_s
        self.started_s = loop.time()
        self.kill_at_s = 0.0
        self.signalled: dict[tuple[int, int], str] = {}
        self.exited_by_itself = False
        self.wake_up = Wait(loop)
        # `loop.create_future()` does the same, but takes one more function call for each future.
        self.exited: asyncio.Future[None] = asyncio.Future(loop=loop)
        self.asked_to_end: asyncio.Future[None] = asyncio.Future(loop=loop)
        self._pidfd = -1
        try:
            self._pidfd = os.pidfd_open(self.pid)
            self.watch.watch(self._pidfd, self._set_exited, once=True)
        except OSError:
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1
            threading.Thread(target=self._wait_in_thread, daemon=True, name=f"wait-{self.pid}").start()

    @property
    def pipe_names(self) -> set[str]:
        """The names of the pipes of stdout and stderr, as /proc shows them."""
        return {pipe.name for pipe in self.pipes}

    def ask_to_end(self) -> None:
        """Ask for the end of the command. If it has exited, ask for the end of the processes that it left."""
        set_done(self.asked_to_end)
        set_done(self.wake_up)

    def terminate_listed(self, listing: asyncio.Future[list[proc.Process]]) -> None:
        """Terminate the processes that a finished task has listed. Do nothing if the task failed or was cancelled."""
        if not listing.cancelled() and listing.exception() is None:
            self.terminate(listing.result())

    def terminate(self, tree: Iterable[proc.Process]) -> None:
        """Send SIGTERM to processes of the tree, once to each."""
        new = [each for each in tree if each.identity not in self.signalled]
        self.note_signalled(new)
        # If the group already got SIGTERM, new processes in the group come from a trap of the script that cleans up.
        # Such a process gets no SIGTERM.
        proc.signal_each(new, signal.SIGTERM, except_group=self.pid if self.kill_at_s else 0)

    def note_signalled(self, processes: Iterable[proc.Process]) -> None:
        """Note that these processes did not end by themselves."""
        self.signalled |= {each.identity: each.name for each in processes}

    def signal_group(self, number: int) -> None:
        """Signal the process group. This is safe until the status is read: the zombie keeps the group's id in use."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def status(self) -> tuple[int, resource.struct_rusage] | None:
        """Reap the command and return its status and usage; None if it has not ended, or if another process traces it.

        A blocking wait would not return as long as a process of another command traces this one (ptrace(2)).
        """
        until_s = self.loop.time() + _TRACED_S
        while self.exited.done():
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                return status, usage
            if self.loop.time() > until_s:
                break
            await asyncio.sleep(0.02)
        return None

    def close(self) -> None:
        if self._pidfd >= 0:
            self.watch.close_watched(self._pidfd)
            self._pidfd = -1
        if self.feed is not None:
            self.feed.close()
        for pipe in self.pipes:
            pipe.close()

    def _set_exited(self) -> Wait:
        if not self.exited.done():
            self.exited_by_itself = not self.asked_to_end.done()
            self.exited.set_result(None)
        return self.wake_up

    def _wait_in_thread(self) -> None:
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(lambda: self._set_exited().end_now())
