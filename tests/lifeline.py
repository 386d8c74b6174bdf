"""Find out whether a process that a script started lives."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


class Lifeline:
    """A FIFO that each process of a script inherits. It shows whether one of them lives.

    The kernel closes the FIFO with the last of them. A process cannot hide with an empty environment or a new session.
    ``script_line`` opens it in a script.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._targets = {str(path), f"{path} (deleted)"}
        self.script_line = f"exec 9> {path}; echo >&9\n"

    def is_held(self) -> bool:
        """Return whether a process holds the FIFO now."""
        try:
            while os.read(self._fd, 65536):
                pass
        except BlockingIOError:
            return True
        return False

    def was_held(self) -> bool:
        """Return whether a script has opened the FIFO since the last call of this method."""
        try:
            return bool(os.read(self._fd, 65536))
        except BlockingIOError:
            return False

    def holders(self) -> list[int]:
        """Return the pids of the processes that hold the FIFO, without this process."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                targets = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
            except OSError:
                continue
            if self._targets & targets and int(pid) != os.getpid():
                found.append(int(pid))
        return found

    def close(self) -> None:
        """End all processes that still hold the FIFO, because without a guard some survive."""
        self._path.unlink()
        for pid in self.holders():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.close(self._fd)
