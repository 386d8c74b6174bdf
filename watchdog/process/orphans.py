"""Find the orphans that scripts left, decide what happens to each of them, end and reap them.

This process is the child subreaper (prctl(2)), so a process that loses its parent becomes its child. An orphan is a
child of this process that is not a command. The kernel lists the children in one small file. If no orphan is in that
file, no command has left a process.

An orphan is judged once, and the verdict is kept until the orphan is dead:

- If it certainly belongs to a running command, it is ended together with that command.
- If a script started it, but it is not certain which script, it is ended together with the last command that it may
  belong to.
- If ``docker exec`` or the image's entry point started it, it is left alone.
- If none of this is certain, it is also left alone. As long as it lives, no directory of a call is used again.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import signal
from collections.abc import Collection, Iterable, Mapping

from ..logs.setup import get_logger
from ..logs.text import printable
from ..system import proc
from .child import Child
from .children import Children, children_by_parent, reap_if_dead
from .decoy import Decoy
from .guardian import Guardian
from .limit_mark import LimitMark
from .ownership import Origin, Orphan, Ownership

log = get_logger("process")

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
# The longest time, in seconds, for which one search for new orphans may block the event loop.
_CHASE_S = 0.01
# An exit that takes longer than this number of seconds counts as hanging, for instance in a dead network file system.
_EXIT_S = 1.0


class Orphans:
    """The orphans: children of this process that are not commands.

    Args:
        commands: the running commands, by pid.

    Attributes:
        known: the orphans that were judged, by pid. A pid belongs to the same process until the process is reaped.
        ownership: finds the command of a process.
    """

    def __init__(self, commands: Mapping[int, Child], limit_mark: LimitMark, guardian: Guardian, decoy: Decoy) -> None:
        self._loop = asyncio.get_running_loop()
        self._commands = commands
        self._guardian = guardian
        self._decoy = decoy
        self._listed_children = Children()
        self._is_subreaper = _become_subreaper()
        # An entry point may start a daemon and then execute this program. Such a daemon is a child of this process, but
        # not an orphan of a script.
        listed = self._listed_children.pids()
        self._from_before = set(children_by_parent() if listed is None else listed)
        self.known: dict[int, Orphan] = {}
        # Children that are exiting, by pid and start time, and the time at which this was first seen.
        self._exiting: dict[tuple[int, int], float] = {}
        self.ownership = Ownership(
            commands,
            self.known,
            self._from_before,
            is_subreaper=self._is_subreaper,
            limit_mark=limit_mark,
            guardian=guardian,
            decoy=decoy,
        )

    @property
    def unattributed(self) -> int:
        """The number of living children that do not certainly belong to one command. Any thread may read it."""
        return sum(orphan.is_unclear for orphan in list(self.known.values())) if self.known else 0

    def certainly_nothing_left(self, child: Child) -> bool:
        """Reap dead children, and return whether no child of this process can belong to this command."""
        # Orphans become children of this process only if it is the subreaper.
        while self._is_subreaper and (candidates := self._candidates(child)) is not None:
            if not candidates:
                return True
            # When a process dies, its children become children of this process. This may happen after the list was
            # read, so a list with dead processes in it does not count.
            if not all(self._reap_if_dead(pid) for pid in candidates):
                return False
        return False

    def _candidates(self, child: Child) -> list[int] | None:
        """Return the pids of the orphans that may belong to this command; None if the kernel lists no children."""
        children = self._listed_children.pids()
        if children is None:
            return None
        found = []
        helpers = (self._guardian.pid, self._decoy.pid)
        for pid in children:
            if pid not in self._commands and pid not in self._from_before and pid not in helpers:
                orphan = self.known.get(pid)
                if orphan is None or orphan.commands == {child}:
                    found.append(pid)
        return found

    def may_be_new(self, child: Child, known: Collection[int]) -> bool:
        """Return whether this process has a child that may belong to the command and whose pid is not in ``known``."""
        return any(pid not in known for pid in self._candidates(child) or ())

    def chase(self, child: Child) -> bool:
        """Kill new orphans of the command, as fast as they appear. Return whether no more of them appear.

        This is for chains of forks, in which each process forks the next one and ends in less than a millisecond. A
        list of all processes does not show them.
        """
        is_quiet = True
        until_s = self._loop.time() + _CHASE_S
        while True:
            candidates = self._candidates(child) or ()
            unknown = False
            for pid in candidates:
                # If there are very many, handle only some of them now: the event loop has other calls to serve.
                if self._loop.time() >= until_s:
                    return False
                try:
                    verdict = self._judge(child, pid)
                except OSError:  # no descriptor is free to examine it
                    verdict = _Verdict.UNKNOWN
                is_quiet = is_quiet and verdict is not _Verdict.ENDED
                unknown = unknown or verdict is _Verdict.UNKNOWN
            # Another command may have such a chain, too. The processes of that chain do not count as new ones here.
            if not candidates or self._loop.time() >= until_s:
                return is_quiet and not unknown

    def _judge(self, child: Child, pid: int) -> _Verdict:
        """Find out which command an orphan belongs to, and end the orphan if it belongs to ``child``.

        Raises:
            OSError: no descriptor is free to examine it.
        """
        commands = dict(self._commands)
        if self.ownership.origin(pid) is Origin.ELSEWHERE:
            self.known[pid] = Orphan(Origin.ELSEWHERE)
            return _Verdict.LEFT_ALONE
        try:
            # Do not stop an orphan of another command, not even for a moment: that command would seem to be working.
            process = proc.process(pid)
            owner = None if process is None else self.ownership.owner_of(process, commands)
            if owner is not None and owner is not child:
                self.known[pid] = Orphan(Origin.SCRIPT, frozenset({owner}), is_certain=True)
                return _Verdict.LEFT_ALONE
            was_stopped = process is not None and process.state == "T"
            # Stop it while it is examined. The pid cannot belong to another process: only this process reaps it.
            os.kill(pid, signal.SIGSTOP)
        except PermissionError:  # the process runs as another user, such as root through `docker exec`
            return self._judge_unowned(pid)
        is_ended = False
        try:
            process = proc.process(pid)
            if process is not None and self.ownership.belongs_to(child, process, commands):
                os.kill(pid, signal.SIGKILL)
                is_ended = True
                child.note_signalled([process])
                self._reap_if_dead(pid)
                return _Verdict.ENDED
        finally:
            if not is_ended and not was_stopped:
                os.kill(pid, signal.SIGCONT)
        if self._reap_if_dead(pid):
            return _Verdict.LEFT_ALONE
        # Check this after the environment was read: the process may now have begun to exit or to execute a program.
        if self._is_undecided(pid):
            os.sched_yield()
            return _Verdict.UNKNOWN
        return self._judge_unowned(pid)

    def _is_undecided(self, pid: int) -> bool:
        """Return whether only a later check can show which command a process belongs to.

        There are two such cases. In one case, the process is exiting, and its children will become children of this
        process. In the other case, ``exec`` is replacing the memory of the process.
        """
        process = proc.process(pid)
        if process is None or not (process.is_exiting or proc.is_starting(pid)):
            return False
        now_s = self._loop.time()
        return now_s - self._exiting.setdefault(process.identity, now_s) < _EXIT_S

    def _judge_unowned(self, pid: int) -> _Verdict:
        """Find out where an orphan comes from, if it is not certain to which command it belongs. This is done once.

        A process of a script is ended together with the last of the commands that it may belong to. A process that may
        come from ``docker exec``, or may be a process that a script has hidden, is left alone. As long as a process of
        either kind lives, no directory that a script could write to is used again.
        """
        origin = self.ownership.origin(pid)
        is_of_ended = origin is Origin.SCRIPT and self.ownership.is_of_ended(pid)
        may_belong_to = frozenset(self._commands.values() if origin is Origin.SCRIPT and not is_of_ended else ())
        self.known[pid] = Orphan(origin, may_belong_to)
        if origin is Origin.UNKNOWN:
            log.warning("a process that belongs to no call is left alone", pid=pid, name=_name_of(pid))
        elif origin is Origin.SCRIPT and not may_belong_to:
            self._end(pid)
            return _Verdict.ENDED
        return _Verdict.LEFT_ALONE

    def judge_late(self) -> None:
        """End processes of scripts that became orphans after the last command had ended."""
        for pid in self._listed_children.pids() or ():
            if pid not in self._from_before and pid not in self.known and not self.ownership.is_helper(pid):
                self._judge_unowned(pid)

    def note_owners(self, owners: Iterable[tuple[proc.Process, Child]]) -> None:
        """Note that these orphans belong to these commands, if both still live."""
        for process, owner in owners:
            if process.pid in self.known or self._commands.get(owner.pid) is not owner:
                continue
            # The process may have been reaped since the list was read, and its pid may belong to another process.
            found = proc.process(process.pid)
            if found is not None and found.identity == process.identity:
                self.known[process.pid] = Orphan(Origin.SCRIPT, frozenset({owner}), is_certain=True)

    def end_those_of(self, child: Child) -> None:
        """End the orphans that can only belong to this command, which has ended."""
        for pid, orphan in [*self.known.items()]:
            if child in orphan.commands:
                orphan.commands -= {child}
                if not orphan.commands:
                    orphan.is_certain = False  # the orphan counts as unattributed until it is dead
                    self._end(pid)

    def _end(self, pid: int) -> None:
        """End an orphan whose script has ended."""
        log.warning("killing a process that an earlier call left running", pid=pid, name=_name_of(pid))
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
        self._reap_if_dead(pid)

    def reap(self) -> None:
        """Reap dead orphans, but not commands: the call that runs a command reads its status."""
        children = self._listed_children.pids()
        for pid in children_by_parent() if children is None else children:
            if pid not in self._commands and not self.ownership.is_helper(pid):
                self._reap_if_dead(pid)

    def _reap_if_dead(self, pid: int) -> bool:
        """Reap a child that is not a command. Return whether it was dead; then its pid may be used again."""
        if not reap_if_dead(pid):
            return False
        self._from_before.discard(pid)
        self.known.pop(pid, None)
        return True

    def forget_exiting(self) -> None:
        """Remove children that are gone from the list of exiting children."""
        if self._exiting:
            children = set(self._listed_children.pids() or ())
            self._exiting = {key: since_s for key, since_s in self._exiting.items() if key[0] in children}

    def close(self) -> None:
        """Close the list of children."""
        self._listed_children.close()


class _Verdict(enum.Enum):
    """The decision about an orphan."""

    ENDED = enum.auto()
    LEFT_ALONE = enum.auto()
    UNKNOWN = enum.auto()


def _name_of(pid: int) -> str | None:
    """Return the name of a process for the log; None if it is gone or hidden, or if no descriptor is free."""
    with contextlib.suppress(OSError):
        if (process := proc.process(pid)) is not None:
            return printable(process.name)
    return None


def _become_subreaper() -> bool:
    return os.getpid() == 1 or proc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
