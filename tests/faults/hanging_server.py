"""The server on a file system that hangs, like a network file system after its server has failed.

One kind of operation on a file called ``hangs`` waits in the kernel for ever. The log then has the event ``hangs``::

    HANGS=outputs python tests/faults/hanging_server.py serve --port 0

``HANGS``: ``outputs`` (when they are listed), ``searches`` (for files elsewhere; calls wait for them without a limit),
``inputs`` (when they are written) or ``removals``. A second argument of the form ``-NAME`` takes a guard out
(``tests/guards.py``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from guards import GUARDS, replace

from watchdog.__main__ import main
from watchdog.http import drain, server
from watchdog.input import receive
from watchdog.invocation import doubts
from watchdog.output import call_warning
from watchdog.workspace import listing, remove_tree


class HangingOs:
    """The module ``os`` with one function that hangs for some paths."""

    def __init__(self, function: str) -> None:
        self._function = function

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return real if name != self._function else partial(self._call, real)

    @staticmethod
    def _call(real: Callable[[str], object], path: str) -> object:
        if os.path.basename(path) == "hangs":
            hang()
        return real(path)


def hang(*_: object) -> None:
    os.write(2, b'{"event":"hangs"}\n')
    # Both ends stay open, so no byte and no end ever comes.
    read_end, _write_end = os.pipe()
    os.read(read_end, 1)


if __name__ == "__main__":
    if sys.argv[1].startswith("-"):
        GUARDS[sys.argv.pop(1)[1:]]()
    what = os.environ.pop("HANGS")
    replace(server, "_REMOVAL_S", 0.5)
    for module in (drain, server):
        replace(module, "UNKILLABLE_S", 0.5)
    if what == "outputs":
        replace(listing, "os", HangingOs("lstat"))
    elif what == "searches":
        replace(call_warning, "files_elsewhere", hang)
        replace(doubts, "_LOOK_ELSEWHERE_S", None)
    elif what == "removals":
        replace(remove_tree, "os", HangingOs("unlink"))
    else:
        replace(receive.Receiver, "feed_all", hang)
    sys.exit(main())
