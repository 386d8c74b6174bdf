"""Make the kernel end a script before the server when memory runs out."""

from __future__ import annotations

import contextlib
import os
from types import TracebackType

from ..system import proc
from .decoy import LARGEST_OOM_SCORE_ADJ, OOM_SCORE_ADJ_OF_SCRIPTS, own_oom_score_adj


class OomPreference:
    """Gives scripts a higher ``oom_score_adj`` (proc(5)), so that the kernel ends them first when memory runs out.

    While the server starts a script, the server itself has the value of scripts. The script and all its forks inherit
    this value. If the server set the value after the start, processes that the script forked before would not have it.

    Use it as a context manager: all processes that are started in the context inherit the value of scripts.
    """

    def __init__(self) -> None:
        own = own_oom_score_adj()
        self._own = b"%d" % own
        self._of_scripts = b"%d" % min(LARGEST_OOM_SCORE_ADJ, own + OOM_SCORE_ADJ_OF_SCRIPTS)
        try:
            self._fd = proc.open_own("oom_score_adj")
        except OSError:  # /proc is read-only
            self._fd = -1

    def __enter__(self) -> None:
        self._set_own(self._of_scripts)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._set_own(self._own)

    def give(self, pid: int) -> None:
        """Set the value of a new process if the process could not inherit it."""
        if self._fd < 0:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "wb", buffering=0) as file:
                file.write(self._of_scripts)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _set_own(self, value: bytes) -> None:
        if self._fd >= 0:
            try:
                os.pwrite(self._fd, value, 0)
            except OSError:  # this process is not allowed to change it
                return
