"""Keep a decoy if it is needed: start it, aim it at the largest command, start it again if the kernel ended it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Mapping

from ..logs.setup import get_logger
from ..system import proc
from .child import Child
from .decoy import Decoy
from .oom_preference import OomPreference
from .watch import Watch

log = get_logger("process")

# Seconds from the end of one decoy to the start of the next one.
_PAUSE_S = 1.0
# Seconds to the next attempt if a decoy cannot be started.
_LONGEST_PAUSE_S = 300.0


class DecoyKeeper:
    """Starts the decoy, aims it, and logs its end.

    Args:
        commands: the running commands, by pid.
    """

    def __init__(self, decoy: Decoy, commands: Mapping[int, Child], watch: Watch, preference: OomPreference) -> None:
        self._decoy = decoy
        self._commands = commands
        self._watch = watch
        self._preference = preference
        self._loop = asyncio.get_running_loop()
        self._not_before_s = 0.0

    def start(self) -> None:
        """Start the decoy if it is needed and not running. Call this before the first command: the start takes time."""
        if not self._decoy.is_needed or self._decoy.pid or self._loop.time() < self._not_before_s:
            return
        try:
            with self._preference:
                self._decoy.start()
        except (OSError, ValueError, TypeError) as error:
            self._not_before_s = self._loop.time() + _LONGEST_PAUSE_S
            log.warning(
                "cannot start the decoy: when memory runs out, the kernel may end the server", reason=str(error)
            )
            return
        self._watch.watch(self._decoy.pidfd, self._ended, once=True)
        self.aim()

    def aim(self) -> None:
        """Aim the decoy at the command whose session has the most memory now.

        Until the next call of this method, each new command becomes the aim, because its memory is not known yet.
        """
        if not self._decoy.pid:
            return
        pids = [*self._commands]
        if len(pids) > 1:
            pages: Counter[int] = Counter()
            with contextlib.suppress(OSError):  # no descriptor is free to read /proc
                for process in proc.processes():
                    pages[process.session] += process.resident_pages
            pids.sort(key=pages.__getitem__)
        self._decoy.aim_at(pids[-1] if pids else 0)

    def close(self) -> None:
        """End the decoy, and do not start another one."""
        if self._decoy.pid:
            self._watch.forget(self._decoy.pidfd)
        self._decoy.close()

    def _ended(self) -> None:
        pid, group = self._decoy.pid, self._decoy.aim
        self._watch.forget(self._decoy.pidfd)
        self._decoy.stop()
        self._not_before_s = self._loop.time() + _PAUSE_S
        # Only the kernel or a script of the same user can have ended the decoy.
        log.error("memory has run out: the kernel ended the decoy, and a script with it", pid=pid, script_pid=group)
