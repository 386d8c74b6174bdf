"""Which command a process belongs to, and whether a script started it at all.

A process belongs to the command whose session it is in, or from which it descends. One that left the session and lost
its parent is known by these marks, in this order: its limit (``limit_mark.py``), the path of the workspace in its
environment, and an open pipe of the command. Where no mark is left, it belongs to the only command that runs.

Everything here only reads, so threads may use it as well.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

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


@dataclass(slots=True)
class Orphan:
    """What is known about a child of this process that is not a command.

    Attributes:
        commands: the running commands to which it may belong.
        is_certain: it belongs to one command, for certain.
    """

    origin: Origin
    commands: frozenset[Child] = frozenset()
    is_certain: bool = False

    @property
    def is_unclear(self) -> bool:
        """Whether it may write to a directory or a pipe of a command that has ended."""
        return self.origin is not Origin.ELSEWHERE and not self.is_certain


class Ownership:
    """Finds the command of a process.

    Args:
        commands: the running commands, by pid.
        known: the orphans that were looked at, by pid.
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
        # Not so for PID 1, to which `docker exec` leaves its orphans too.
        self._all_orphans_are_ours = is_subreaper and os.getpid() != 1 and not from_before

    def tree_of(self, child: Child, owners: list[tuple[proc.Process, Child]] | None = None) -> list[proc.Process]:
        """Return the living processes that the command started. Call it in a thread: it reads all of /proc.

        Args:
            owners: gets each orphan that certainly belongs to a command, with that command.
        """
        table = {each.pid: each for each in proc.processes()}
        commands = dict(self._commands)
        tree: set[int] = set()
        strangers: set[int] = set()

        def belongs(pid: int) -> bool:
            # Up the ancestors, to a process that is known to belong or not to.
            way = []
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
                way.append(pid)
                if self.belongs_to(child, process, commands, owners):
                    verdict = True
                    break
                pid = process.parent
            (tree if verdict else strangers).update(way)
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
        """Return whether a process belongs to this command by itself, not only because it descends from it."""
        owner = self.owner_of(process, commands)
        is_orphan = process.parent == os.getpid()
        if owner is not None:
            if owners is not None and is_orphan:
                owners.append((process, owner))
            return owner is child
        if self.is_helper(process.pid) or (self._is_subreaper and not is_orphan):
            return False
        # It threw its environment away. This command ends it if no other command can have started it. Otherwise the
        # last of the commands that can have started it finds it.
        if any(other.pid != child.pid for other in commands.values()):
            return False
        if process.pid in self._known or self.is_of_ended(process.pid):
            return False
        return self.origin(process.pid) is Origin.SCRIPT

    def owner_of(self, process: proc.Process, commands: Mapping[int, Child]) -> Child | None:
        """Return the command that the process certainly belongs to; None if there is none, or if it is unclear."""
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
        """Return the command that a process belongs to by its limit."""
        limit = self._limit_mark.of_command(pid)
        return None if limit is None else next((each for each in commands if each.limit == limit), None)
