"""Programs that a script leaves, and that work until the server has looked at them often enough to end them.

How often a server looks within a second depends on the machine. So the server counts its checks in a file, and the
program reads this count.
"""

from __future__ import annotations

import os
from pathlib import Path

from guards import changed_program

# A server that sees no work ends a program after at most 8 checks: one may have begun before, one may see a change, and
# 0.1 s have room for 6 with pauses of 25 ms (watchdog/process/linger.py).
_ENOUGH = 10
_MORE_THAN_ANY = 1 << 30

_SERVER = """
from watchdog.process import linger
is_working = linger._is_working

async def is_working_and_count(*arguments):
    answer = await is_working(*arguments)
    with open({path!r}, "ab") as file:
        file.write(b".")
    return answer

replace(linger, "_is_working", is_working_and_count)
# On a loaded machine a check takes long, and the usual pause after it three times as long. This server waits less.
replace(linger, "_CHECK_PAUSE_CHECKS", 0)
"""
_LEFT = """
import os, time

def await_checks(count={enough}, work=lambda: None):
    '''Work until the server has made so many more checks. Exit if they do not come: the server may be gone.'''
    enough = os.path.getsize({path!r}) + count
    ends_s = time.monotonic() + 120
    while os.path.getsize({path!r}) < enough:
        work()
        if time.process_time() > 60 or time.monotonic() > ends_s:
            os._exit(1)
"""


class CountedChecks:
    """A file with a byte for each check that a server has made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()
        # Python that defines `await_checks` for a program that a script leaves.
        self.awaiting = _LEFT.format(path=str(path), enough=_ENOUGH)

    def program(self, without: str | None) -> tuple[str, str]:
        """Return the arguments for a Python that runs the server and counts, without a guard."""
        return changed_program(_SERVER.format(path=str(self._path)), without)

    def close(self) -> None:
        """Let all programs go on: without a guard, some outlive their server."""
        os.truncate(self._path, _MORE_THAN_ANY)
