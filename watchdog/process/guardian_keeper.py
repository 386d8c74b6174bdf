"""Keep a guardian while commands run: start it, start it again if it died, let it continue if a signal stopped it.

Scripts run as the same user as the guardian, so they can send it signals.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Mapping

from ..logs.setup import get_logger
from ..system import proc
from .child import Child
from .guardian import Guardian

log = get_logger("process")

# Seconds between the starts of two guardians. A start takes milliseconds. Without a pause, a script that kills every
# guardian would slow down the server.
_PAUSE_S = 1.0


class GuardianKeeper:
    """Starts the guardian, and keeps it running.

    Args:
        commands: the running commands, by pid. A new guardian knows all of them.
    """

    def __init__(self, guardian: Guardian, commands: Mapping[int, Child]) -> None:
        self._guardian = guardian
        self._commands = commands
        self._loop = asyncio.get_running_loop()
        # If this server is PID 1, the kernel ends all processes of the container with it. It needs no guardian then.
        self._not_before_s = math.inf if os.getpid() == 1 else 0.0

    def start(self) -> None:
        """Start the guardian if there is none. Call this before a command starts: an idle server needs no guardian."""
        now_s = self._loop.time()
        if self._guardian.pid or now_s < self._not_before_s:
            return
        self._not_before_s = now_s + _PAUSE_S
        commands = list(self._commands.values())
        try:
            slots = self._guardian.start([(command.mark, command.pid) for command in commands])
        except OSError as error:
            log.warning(
                "cannot start the guardian: a kill -9 of the server would leave its scripts running", reason=str(error)
            )
            return
        for command, slot in zip(commands, slots, strict=True):
            command.slot = slot

    def look_after(self) -> None:
        """Log if a signal has ended or stopped the guardian. Let it continue if it was stopped."""
        if not (pid := self._guardian.pid):
            return
        code = self._guardian.exit_code()
        if code is not None:
            how = {"signal": proc.signal_name(-code)} if code < 0 else {"exit_code": code}
            log.warning("the guardian died", pid=pid, **how)
        elif self._guardian.resume():
            log.warning("the guardian was stopped by a signal, and now continues", pid=pid)
