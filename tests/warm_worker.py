"""Play the server for a warm worker: its calls go to descriptor 3, and its answers come from descriptor 4."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

HELPERS = Path(__file__).parent.parent / "watchdog/warm/helper"


class WarmWorker:
    """A process with the descriptors of a warm worker. Its output goes to files, so programs buffer it."""

    def __init__(
        self, command: Sequence[str], directory: Path, environ: Mapping[str, str] | None = None, is_warm: bool = True
    ) -> None:
        self.out, self.err = directory / "stdout", directory / "stderr"
        self._number = 0
        self._received = b""
        theirs_of_calls, self._calls = _high_pipe()
        self._answers, theirs_of_answers = _high_pipe()
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(self.out), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_OPEN, 2, str(self.err), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
        ]
        if is_warm:
            actions += [(os.POSIX_SPAWN_DUP2, theirs_of_calls, 3), (os.POSIX_SPAWN_DUP2, theirs_of_answers, 4)]
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(HELPERS), **(environ or {})}
        # The server does the same, because a shell starts programs in the background with SIGINT ignored.
        self.pid = os.posix_spawnp(
            command[0],
            [*command],
            environ,
            file_actions=actions,
            setsigdef=[signal.SIGINT],
        )
        self._has_ended = False
        os.close(theirs_of_calls)
        os.close(theirs_of_answers)

    def answer(self) -> str:
        """Return the next line of descriptor 4; empty at its end."""
        end = time.monotonic() + 40
        while b"\n" not in self._received:
            if not select.select([self._answers], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"no answer; stderr: {self.err.read_text()}")
            piece = os.read(self._answers, 65536)
            if not piece:
                assert self._received == b""
                return ""
            self._received += piece
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()

    def send(self, line: bytes) -> None:
        """Write a line to descriptor 3."""
        while line:
            line = line[os.write(self._calls, line) :]

    def call(self, **variables: str) -> str:
        """Make a call with these variables, and return the answer."""
        self._number += 1
        call = {"call_id": str(self._number), "deadline": None, "env": {"CALL_ID": str(self._number), **variables}}
        self.send(json.dumps(call).encode() + b"\n")
        return self.answer()

    def printed(self) -> str:
        """Return what the worker has written to stdout since the last time."""
        text = self.out.read_text()
        self.out.write_text("")
        return text

    def complained(self) -> str:
        """Return what the worker has written to stderr since the last time."""
        text = self.err.read_text()
        self.err.write_text("")
        return text

    def end(self) -> int:
        """Close descriptor 3, wait until the worker has ended, and return its exit code."""
        self.close_calls()
        assert self.answer() == ""
        return self.wait()

    def close_calls(self) -> None:
        if self._calls >= 0:
            os.close(self._calls)
            self._calls = -1

    def wait(self) -> int:
        """Return the exit code, or the negative number of the signal that ended the worker."""
        status = os.waitpid(self.pid, 0)[1]
        self._has_ended = True
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """End the worker if it still runs, and close the pipes."""
        if not self._has_ended:
            os.kill(self.pid, 9)
            self.wait()
        self.close_calls()
        os.close(self._answers)


def _high_pipe() -> tuple[int, int]:
    """Return a pipe whose descriptors are not 3 or 4. A later dup2 to one of these would close the other one."""
    pipe = os.pipe()
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in pipe]
    for fd in pipe:
        os.close(fd)
    return high[0], high[1]
