"""Whether anything lives that a script started."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


class Lifeline:
    """Tells whether processes live that a script started, by a FIFO that each of them inherits.

    The kernel closes it with the last of them: neither a cleared environment nor a session of its own hides a
    process. ``script_line`` opens it in a script.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._targets = {str(path), f"{path} (deleted)"}
        self.script_line = f"exec 9> {path}; echo >&9\n"

    def is_held(self) -> bool:
        """Whether a process holds it now."""
        try:
            while os.read(self._fd, 65536):
                pass
        except BlockingIOError:
            return True
        return False

    def was_held(self) -> bool:
        """Whether a script opened it since this was asked last."""
        try:
            return bool(os.read(self._fd, 65536))
        except BlockingIOError:
            return False

    def holders(self) -> list[int]:
        """The pids of those who hold it, this process left out."""
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
        """End whoever still holds it: without a guard, processes do survive."""
        self._path.unlink()
        for pid in self.holders():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.close(self._fd)
