"""Run one command as a process tree, and do not return before the whole tree is gone.

The supervisor owns the tree: :meth:`Supervisor.until_ended` returns only after every process that the command left is
dead and reaped, inside or outside of the command's process group. If this method is cancelled, it raises
``CancelledError`` only after that, too.

Each step has a file of its own:

- ``spawn.py`` starts the command.
- ``pipes.py`` feeds its stdin and reads its output. Only a complete body ends stdin. If the body is cut off, the
  command is ended instead.
- ``child.py`` waits for its exit: a pidfd becomes readable. End-of-file on its pipes does not show the exit, because a
  process that the command left may hold them open forever.
- ``linger.py`` waits for the processes that the command left, as long as they work.
- ``tree.py`` ends the rest. ``ownership.py`` finds out which command a process belongs to. ``orphans.py`` finds the
  processes that lost their parent.
- The status of the command is read last. Until then the command is a zombie and keeps the process group id in use, so a
  signal to the group cannot reach any other process.

Once a second, the supervisor reaps orphans and restarts two helpers if they died: ``guardian.py`` ends the commands if
this process is killed, and the kernel ends the process of ``decoy.py`` before this process if memory runs out.

This needs Linux: posix_spawn with setsid, PR_SET_CHILD_SUBREAPER, and pidfd_open. Before Linux 5.3, which added
pidfd_open, a thread waits for the exit.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence

from ..logs.setup import get_logger
from ..system import proc
from ..system.spare_descriptor import spare
from ..system.threads import settled
from .child import Child
from .decoy import Decoy
from .decoy_keeper import DecoyKeeper
from .ended import Ended, ended
from .guardian import Guardian
from .guardian_keeper import GuardianKeeper
from .limit_mark import LimitMark
from .linger import linger
from .oom_preference import OomPreference
from .orphans import Orphans
from .peak_memory import PeakMemory
from .pipes import Consumer, set_done
from .spawn import Spawner
from .tree import Tree
from .watch import Watch

log = get_logger("process")

# Seconds between two rounds of the regular work. The supervisor does not use SIGCHLD for this: asyncio writes each
# signal into a socket with room for a few hundred signals. If a script left more orphans at once, a SIGTERM that comes
# after them would be lost.
_REAP_INTERVAL_S = 1.0


class Supervisor:
    """Starts commands, ends them, and reaps the processes that they leave.

    A process has one supervisor, on one event loop.
    """

    def __init__(self) -> None:
        # This process may inherit an ignored SIGCHLD. The kernel would then reap the children before this process can.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._loop = asyncio.get_running_loop()
        self._children: dict[int, Child] = {}
        limit_mark = LimitMark()
        self._guardian = Guardian(lambda pid: limit_mark.of_command(pid) is not None)
        self._watch = Watch(self._loop, self._guardian)
        self._decoy = Decoy()
        self._preference = OomPreference()
        self._spawner = Spawner(self._watch, limit_mark, self._preference, self._guardian, self._decoy)
        self._orphans = Orphans(self._children, limit_mark, self._guardian, self._decoy)
        self._guardian_keeper = GuardianKeeper(self._guardian, self._children)
        self._decoy_keeper = DecoyKeeper(self._decoy, self._children, self._watch, self._preference)
        spare.keep()
        self._peak_memory = PeakMemory()
        self._decoy_keeper.start()
        self._reap_handle = self._loop.call_later(_REAP_INTERVAL_S, self._reap_again)

    @property
    def running(self) -> int:
        """The number of commands for which :meth:`until_ended` has not returned yet."""
        return len(self._children)

    @property
    def unattributed(self) -> int:
        """The number of living children that do not certainly belong to one command. Any thread may read it."""
        return self._orphans.unattributed

    def start(
        self,
        command: list[str],
        environment: Mapping[str, str],
        *,
        mark: str,
        stdout: Consumer,
        stderr: Consumer | None,
        stdin: AsyncIterator[bytes] | None = None,
        progress: Consumer | None = None,
        kill_grace_s: float = 5.0,
        descriptors: Sequence[int] = (),
    ) -> Child:
        """Start a command. The caller must then call :meth:`until_ended`.

        Args:
            mark: a path that is only in the environment of this command. It shows that a process which left the session
                belongs to the command.
            stdout, stderr: are called with each piece of output, of at most 32 KiB. If one returns a future, its stream
                is paused until the future is done. If ``stderr`` is None, both outputs are one stream.
            stdin: the input of the command, read as fast as the command reads it; None if stdin is empty. The rest is
                not read when the command has ended or has closed its stdin.
            progress: is called with each piece that the command writes to descriptor 4. If it is None, the command
                inherits descriptor 4 of this process (``progress_descriptor.py``).
            kill_grace_s: the time between SIGTERM and SIGKILL.
            descriptors: the command gets copies of these, with the numbers 3, 4 and so on. Each descriptor given
                here must have a larger number than all copies.

        Raises:
            ScriptUnavailable, OutOfResources: the command cannot be started.
        """
        self._guardian_keeper.start()
        child = self._spawner.spawn(
            command, environment, mark, stdout, stderr, stdin, progress, kill_grace_s, descriptors
        )
        self._children[child.pid] = child
        return child

    async def until_ended(self, child: Child, *, timeout_s: float = 0.0, linger_timeout_s: float = 5.0) -> Ended:
        """Return how a command ended, when it and all processes that it started have ended.

        Args:
            timeout_s: the longest time that the command may run; 0 means no limit.
            linger_timeout_s: the longest time that processes may continue after the exit of the command; 0 means that
                they are ended at once.

        Raises:
            asyncio.CancelledError: this call was cancelled. The tree is gone.
            Exception: ``stdin`` raised this, so the command was ended. The tree is gone.
        """
        deadline_s = child.started_s + timeout_s if timeout_s else math.inf
        timer = self._loop.call_later(timeout_s, set_done, child.wake_up) if timeout_s else None
        end: asyncio.Future[Ended] | None = None
        try:
            await child.wake_up  # the command has exited, something asks for its end, or its time is over
            if (result := self._result_if_nothing_left(child)) is not None:
                return result
            end = asyncio.ensure_future(self._end_or_wait(child, linger_timeout_s, deadline_s))
            return await asyncio.shield(end)
        except asyncio.CancelledError:
            child.ask_to_end()
            if end is None:
                end = asyncio.ensure_future(self._end_or_wait(child, linger_timeout_s, deadline_s))
            await settled(end)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    async def processes_of(self, child: Child) -> list[proc.Process]:
        """Return the living processes that a running command has started, without the command itself."""
        return await Tree(child, self._orphans).living()

    def may_have_new_orphans(self, child: Child, known: Collection[int]) -> bool:
        """Return whether this process has a child that may belong to the command and whose pid is not in ``known``.

        If the kernel does not list children, this returns False.
        """
        return self._orphans.may_be_new(child, known)

    def end_all(self, *, at_once: bool) -> None:
        """Ask every command to end. Each :meth:`until_ended` then returns.

        Args:
            at_once: kill the commands now. Otherwise each has its ``kill_grace_s``.
        """
        for child in self._children.values():
            if at_once:
                child.grace_s = 0.0
                child.signal_group(signal.SIGKILL)
            child.ask_to_end()

    def close(self) -> None:
        """Stop the regular work, end the helpers, and close all descriptors."""
        self._reap_handle.cancel()
        self._guardian.stop()
        self._decoy_keeper.close()
        self._preference.close()
        self._orphans.close()
        spare.close()
        self._watch.close()

    def _result_if_nothing_left(self, child: Child) -> Ended | None:
        """Return how the command ended if it left no process, as usual; None if there is something to wait for."""
        if not child.exited.done() or child.asked_to_end.done() or child.feed is not None:
            return None
        duration_s = self._loop.time() - child.started_s
        if not self._orphans.certainly_nothing_left(child):
            return None
        is_tree_gone = not self._orphans.unattributed
        try:
            for pipe in child.pipes:
                if not pipe.drain():
                    return None
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if not pid:  # a process of another command traces this command
                return None
        except BaseException:  # the consumer of the output raised this error
            self._forget(child)
            raise
        self._forget(child)
        peak_rss_bytes = self._peak_memory.of_command(usage)
        return ended(status, usage, peak_rss_bytes=peak_rss_bytes, duration_s=duration_s, is_tree_gone=is_tree_gone)

    async def _end_or_wait(self, child: Child, linger_timeout_s: float, deadline_s: float) -> Ended:
        """End a command and the processes that it left, or wait for their end. Return how the command ended."""
        tree = Tree(child, self._orphans)
        is_tree_gone = were_working = False
        try:
            # Both futures may be done: `end_all` also kills the command, and the exit may be noticed first.
            ended_early = child.asked_to_end.done() and not child.exited_by_itself
            timed_out = not ended_early and not child.exited.done()
            is_over_by_itself = child.exited.done() and child.exited_by_itself
            # An exception of the source after this point concerns only a process that the command left.
            broken = child.feed.error if child.feed is not None else None
            if not child.exited.done():
                await tree.end_politely()
            elif is_over_by_itself and linger_timeout_s:
                until_s = min(self._loop.time() + linger_timeout_s, deadline_s)
                if await linger(child, tree, until_s):
                    broken = child.feed.error if child.feed is not None else None
                    ended_early = child.asked_to_end.done()
                    timed_out = not ended_early and self._loop.time() >= deadline_s
                    were_working = not ended_early and not timed_out
            duration_s = self._loop.time() - child.started_s
            if child.feed is not None:
                await child.feed.stop()
            survivors = await tree.end_stragglers()
            for pipe in child.pipes:
                await pipe.finish()
            status_and_usage = await child.status()
            if status_and_usage is not None:
                status, usage = status_and_usage
                is_tree_gone = not survivors and tree.is_certainly_gone() and not self._orphans.unattributed
        finally:
            self._forget(child)
        if broken is not None:
            raise broken
        if status_and_usage is None:
            return Ended(
                exit_code=None,
                signal="SIGKILL",
                timed_out=timed_out,
                ended_early=ended_early,
                duration_s=duration_s,
                cpu_s=0.0,
                peak_rss_bytes=None,
                survivors=survivors + 1,
                is_tree_gone=False,
            )
        return ended(
            status,
            usage,
            peak_rss_bytes=self._peak_memory.of_command(usage),
            duration_s=duration_s,
            timed_out=timed_out,
            ended_early=ended_early,
            survivors=survivors,
            is_tree_gone=is_tree_gone,
            left=Counter(child.signalled.values()) if is_over_by_itself else {},
            were_working=were_working,
        )

    def _forget(self, child: Child) -> None:
        """Forget a command that has ended, and close its descriptors."""
        del self._children[child.pid]
        child.close()
        if self._decoy.aim == child.pid:
            self._decoy.aim_at(next(reversed(self._children), 0))
        if self._orphans.known:
            self._orphans.end_those_of(child)
        self._guardian.forget(child.slot)

    def _reap_again(self) -> None:
        """Do the regular work. If one step fails, the others still run, and all of them run again in the next round."""
        self._reap_handle = self._loop.call_later(_REAP_INTERVAL_S, self._reap_again)
        for step in (
            self._guardian_keeper.look_after,
            spare.keep,  # another thread may have taken it while it was lent
            self._orphans.reap,
            self._orphans.forget_exiting,
            self._watch_over_children,
            self._decoy_keeper.start,
            self._decoy_keeper.aim,
        ):
            try:
                step()
            except Exception:
                log.exception("a regular step of the supervisor failed; please report it", step=step.__qualname__)

    def _watch_over_children(self) -> None:
        if self._children:
            self._guardian_keeper.start()
        else:
            self._orphans.judge_late()
