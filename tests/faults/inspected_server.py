"""The server, with a look inside: on SIGUSR2 it logs how many asyncio tasks and objects of each type it has.

::

    python tests/faults/inspected_server.py serve --port 0
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
from collections import Counter
from types import FrameType

from watchdog.__main__ import main

_MOST_TYPES = 30


def inspect_soon(number: int, frame: FrameType | None) -> None:
    # A handler may interrupt anything, a change of what is to be counted too: the loop counts when it has time.
    loop = asyncio.get_running_loop()
    loop.call_soon_threadsafe(_inspect, loop)


def _inspect(loop: asyncio.AbstractEventLoop) -> None:
    gc.collect()
    tasks = [getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks(loop)]
    objects = Counter(type(each).__qualname__ for each in gc.get_objects())
    event = {"event": "inspected", "tasks": len(tasks), "names": sorted(tasks)[:50]}
    line = json.dumps(event | {"objects": dict(objects.most_common(_MOST_TYPES))}) + "\n"
    # In one write, as long as a pipe takes whole: between two lines of the log.
    os.write(2, line.encode())


if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, inspect_soon)
    sys.exit(main())
