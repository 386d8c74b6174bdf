"""Make the kernel end a script before the server when memory runs out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ..system import proc
from .decoy import LARGEST_OOM_SCORE_ADJ, OOM_SCORE_ADJ_OF_SCRIPTS, own_oom_score_adj


class OomPreference:
    """Has the kernel choose scripts before the server when memory ends (proc(5), oom_score_adj).

    A script and all that it forks inherit it from the server, which has it itself for the moment of the spawning: given
    to the script afterwards, it would miss what a quick one has forked by then.
    """

    def __init__(self) -> None:
        own = own_oom_score_adj()
        self._own = b"%d" % own
        self._of_scripts = b"%d" % min(LARGEST_OOM_SCORE_ADJ, own + OOM_SCORE_ADJ_OF_SCRIPTS)
        try:
            self._fd = proc.open_own("oom_score_adj")
        except OSError:  # /proc is read-only
            self._fd = -1

    @contextlib.contextmanager
    def inherited(self) -> Iterator[None]:
        """What is spawned in this context has it."""
        self._set_own(self._of_scripts)
        try:
            yield
        finally:
            self._set_own(self._own)

    def give(self, pid: int) -> None:
        """Where it could not be inherited, as quickly as may be."""
        if self._fd < 0:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "wb", buffering=0) as file:
                file.write(self._of_scripts)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _set_own(self, value: bytes) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.pwrite(self._fd, value, 0)
