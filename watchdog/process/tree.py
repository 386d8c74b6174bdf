"""List the processes that one command has started, and end all of them."""

from __future__ import annotations

import asyncio
import signal

from ..system import proc
from ..system.files import NO_DESCRIPTOR
from ..system.threads import PROCESSES
from .activity import Activity
from .child import Child
from .orphans import Orphans

# Seconds from SIGTERM to SIGKILL for processes that a script left when it ended by itself.
_STRAGGLER_GRACE_S = 0.15
# SIGKILL does not end a process in uninterruptible sleep. After this number of seconds the call is answered
# nevertheless.
_UNKILLABLE_S = 5.0
# This number of searches in a row must find no process: one list of all processes may lack processes that fork and exit
# all the time.
_QUIET_SEARCHES = 3
# Search at least this number of times, even if the time is over: the whole machine may pause for seconds.
_FEWEST_SEARCHES = 20


class Tree:
    """The processes of one command. Most commands need no such object, because nothing is left when they exit."""

    def __init__(self, child: Child, orphans: Orphans) -> None:
        self._child = child
        self._loop = child.loop
        self._orphans = orphans

    def is_certainly_gone(self) -> bool:
        """Return whether it is certain that no process of the command is left."""
        return self._orphans.certainly_nothing_left(self._child)

    async def end_politely(self) -> None:
        """Send SIGTERM to all processes, wait for the grace, send SIGKILL. Return when the command itself is dead."""
        child = self._child
        # The group gets the signal first: listing the tree needs a thread and descriptors, which may all be in use now.
        child.signal_group(signal.SIGTERM)
        listing = asyncio.ensure_future(self.living())
        listing.add_done_callback(child.terminate_listed)
        deadline_s = child.kill_at_s = self._loop.time() + child.grace_s
        # The grace is read again several times a second, because end_all() may shorten it at any time.
        while not child.exited.done() and child.grace_s and (rest_s := deadline_s - self._loop.time()) > 0:
            await asyncio.wait((child.exited,), timeout=min(rest_s, 0.1))
        if not child.exited.done():
            child.signal_group(signal.SIGKILL)
            await asyncio.wait((child.exited,), timeout=_UNKILLABLE_S)
        listing.cancel()

    async def end_stragglers(self) -> int:
        """End the processes that the command left. Return how many of them could not be ended.

        The command itself has exited and is a zombie.
        """
        child = self._child
        if self.is_certainly_gone():
            return 0
        left = await self.living()
        child.terminate(left)
        now_s = self._loop.time()
        # A shell without a trap ends at once. The program that it ran still has the grace: it may be saving its work.
        kill_at_s = max(now_s + min(child.grace_s, _STRAGGLER_GRACE_S), child.kill_at_s)
        give_up_at_s = kill_at_s + _UNKILLABLE_S
        pause_s = 0.002
        searches = quiet_searches = 0
        held: dict[tuple[int, int], proc.Process] = {}
        while quiet_searches < _QUIET_SEARCHES and (now_s < give_up_at_s or searches < _FEWEST_SEARCHES):
            searches += 1
            if now_s >= kill_at_s or not child.grace_s:
                child.signal_group(signal.SIGKILL)
                # Stop all processes before the first is killed: a process that dies makes room for forks of the others.
                new = {each.identity: each for each in left if each.identity not in held}
                held |= new
                child.note_signalled(new.values())
                proc.signal_each((new or held).values(), signal.SIGSTOP if new else signal.SIGKILL)
            await asyncio.sleep(pause_s)
            # Listing all processes takes time, so during a long grace the processes are listed less often.
            pause_s = min(pause_s * 2, 0.02 if now_s + _STRAGGLER_GRACE_S > kill_at_s else 0.1)
            self._orphans.reap()
            if self.is_certainly_gone():
                return 0
            left = await self.living()
            is_quiet = not left and self._orphans.chase(child)
            quiet_searches = quiet_searches + 1 if is_quiet else 0
            now_s = self._loop.time()
        proc.signal_each(held.values(), signal.SIGKILL)
        return len(left) if quiet_searches or left else 1

    async def living(self) -> list[proc.Process]:
        """Return the living processes of the command, once a thread and descriptors are free to list them."""
        return (await self._read())[0]

    async def is_working(self, activity: Activity) -> bool:
        """Return whether a process of the command works, once a thread and descriptors are free to list them.

        False does not mean that all processes are gone: the list may lack a process that was forked meanwhile, and
        whose parent has ended.
        """
        return (await self._read(activity))[1]

    async def _read(self, activity: Activity | None = None) -> tuple[list[proc.Process], bool]:
        """List the tree in a thread. Return the processes, and whether one of them works."""
        owners: list[tuple[proc.Process, Child]] = []

        def read() -> tuple[list[proc.Process], bool]:
            owners.clear()
            tree = self._orphans.ownership.tree_of(self._child, owners)
            return tree, activity is not None and activity.check(tree)

        while True:
            try:
                try:
                    job = self._loop.run_in_executor(PROCESSES, read)
                except RuntimeError:  # no thread can be started
                    result = read()
                else:
                    result = await job
                self._orphans.note_owners(owners)
                return result
            except OSError as error:
                if error.errno not in NO_DESCRIPTOR:
                    raise
            # Another thread or process took even the spare descriptor.
            await asyncio.sleep(0.05)
