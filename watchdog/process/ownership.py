"""Find out which command a process belongs to, and whether a script started it at all.

A process belongs to the command whose session it is in, or from which it descends. If it left the session and lost its
parent, three marks show its command, in this order: its limit (``limit_mark.py``), the path of the workspace in its
environment, and an open pipe of the command. If it has no mark, it belongs to the only command that runs.

The code here changes nothing, so threads may use it, too.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Collection, Iterable, Mapping

import msgspec

from ..system import proc
from .child import Child
from .decoy import Decoy
from .guardian import Guardian
from .limit_mark import LimitMark


class Origin(enum.Enum):
    """Where an orphan comes from."""

    SCRIPT = enum.auto()
    ELSEWHERE = enum.auto()  # a command of `docker exec`, or the entry point
    UNKNOWN = enum.auto()


class Orphan(msgspec.Struct):
    """The verdict about an orphan: a child of this process that is not a command.

    Attributes:
        commands: the running commands that the orphan may belong to.
        is_certain: it is certain that the orphan belongs to one command.
    """

    origin: Origin
    commands: frozenset[Child] = frozenset()
    is_certain: bool = False

    @property
    def is_unclear(self) -> bool:
        """Whether the orphan may write to a directory or a pipe of a command that has ended."""
        return self.origin is not Origin.ELSEWHERE and not self.is_certain


class Ownership:
    """Finds the command of a process.

    Args:
        commands: the running commands, by pid.
        known: the orphans that were judged, by pid.
        from_before: the pids of the children that this process had before its first command.
        is_subreaper: whether this process becomes the parent of orphans.
    """

    def __init__(
        self,
        commands: Mapping[int, Child],
        known: Mapping[int, Orphan],
        from_before: Collection[int],
        *,
        is_subreaper: bool,
        limit_mark: LimitMark,
        guardian: Guardian,
        decoy: Decoy,
    ) -> None:
        self._commands = commands
        self._known = known
        self._from_before = from_before
        self._is_subreaper = is_subreaper
        self._limit_mark = limit_mark
        self._guardian = guardian
        self._decoy = decoy
        # If this process is PID 1, orphans of `docker exec` become its children, too.
        self._all_orphans_are_ours = is_subreaper and os.getpid() != 1 and not from_before

    def tree_of(self, child: Child, owners: list[tuple[proc.Process, Child]] | None = None) -> list[proc.Process]:
        """Return the living processes that the command started. Call this in a thread: it reads all of /proc.

        If the command has been reaped, the list is empty.

        Args:
            owners: this list gets each orphan that certainly belongs to a command, with that command.
        """
        table = {each.pid: each for each in proc.processes()}
        commands = dict(self._commands)
        if commands.get(child.pid) is not child or child.pid not in table:
            return []
        tree: set[int] = set()
        strangers: set[int] = set()

        def belongs(pid: int) -> bool:
            # Follow the parents up to a process that is known to belong to the command, or not to belong to it.
            ancestors = []
            verdict = False
            while pid > 0:
                if pid in tree or pid == child.pid:
                    verdict = True
                    break
                process = table.get(pid)
                if process is None or pid in strangers or pid in commands or pid == os.getpid():
                    break
                if process.started < table[child.pid].started:
                    break
                ancestors.append(pid)
                if self.belongs_to(child, process, commands, owners):
                    verdict = True
                    break
                pid = process.parent
            (tree if verdict else strangers).update(ancestors)
            return verdict

        for pid in table:
            belongs(pid)
        return [table[pid] for pid in tree if table[pid].is_alive]

    def belongs_to(
        self,
        child: Child,
        process: proc.Process,
        commands: Mapping[int, Child],
        owners: list[tuple[proc.Process, Child]] | None = None,
    ) -> bool:
        """Return whether the process itself, and not an ancestor of it, shows that it belongs to this command."""
        owner = self.owner_of(process, commands)
        is_orphan = process.parent == os.getpid()
        if owner is not None:
            if owners is not None and is_orphan:
                owners.append((process, owner))
            return owner is child
        if self.is_helper(process.pid) or (self._is_subreaper and not is_orphan):
            return False
        # The process has no mark. It belongs to this command if no other command can have started it. Otherwise it
        # is ended together with the last of the commands that can have started it.
        if any(other.pid != child.pid for other in commands.values()):
            return False
        if process.pid in self._known or self.is_of_ended(process.pid):
            return False
        return self.origin(process.pid) is Origin.SCRIPT

    def owner_of(self, process: proc.Process, commands: Mapping[int, Child]) -> Child | None:
        """Return the command that the process certainly belongs to; None if there is no such command."""
        if (owner := commands.get(process.session)) is not None:
            return owner
        if self.is_helper(process.pid) or process.pid in self._from_before:
            return None
        if self._is_subreaper and process.parent != os.getpid():
            return None
        if (orphan := self._known.get(process.pid)) is not None:
            return next(iter(orphan.commands)) if len(orphan.commands) == 1 else None
        if (owner := self._command_of_limit(process.pid, commands.values())) is not None:
            return owner
        environment = proc.environment_of(process.pid)
        for each in commands.values():
            if each.mark in environment:
                return each
        open_files = proc.open_files_of(process.pid)
        return next((each for each in commands.values() if not each.pipe_names.isdisjoint(open_files)), None)

    def origin(self, pid: int) -> Origin:
        """Return where an orphan comes from."""
        if self._all_orphans_are_ours:
            return Origin.SCRIPT
        try:
            if self._limit_mark.read(pid) is not None:
                return Origin.SCRIPT
        except PermissionError:
            return Origin.UNKNOWN
        return Origin.ELSEWHERE if self._limit_mark.is_firm else Origin.UNKNOWN

    def is_of_ended(self, pid: int) -> bool:
        """Return whether a process has the limit of a command that has ended."""
        limit = self._limit_mark.of_command(pid)
        return limit is not None and all(each.limit != limit for each in self._commands.values())

    def is_helper(self, pid: int) -> bool:
        """Return whether this is the guardian or the decoy."""
        return pid in (self._guardian.pid, self._decoy.pid)

    def _command_of_limit(self, pid: int, commands: Iterable[Child]) -> Child | None:
        """Return the command with the limit of this process; None if no command has it."""
        limit = self._limit_mark.of_command(pid)
        return None if limit is None else next((each for each in commands if each.limit == limit), None)
