"""The server, with a look inside: on SIGUSR2 it logs its memory in use, its tasks, objects, warnings and marked texts.

The program itself has two arenas of the C library. ``malloc_trim`` gives back the free end of the first one only, and
up to 4 MiB of the second stay. So this server has one arena: the same objects need the same memory at each look.

::

    python tests/faults/inspected_server.py [--without GUARD] serve --port 0

A marked text is one that contains :data:`MARK`.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from watchdog.__main__ import main
from watchdog.logs import logger
from watchdog.system import allocator

MARK = "text" + "-to-forget-"  # in two parts: the constant of this file is not to be counted
_MOST_TYPES = 30


def inspect_soon(number: int, frame: FrameType | None) -> None:
    # A handler may interrupt anything, a change of what is to be counted too: the loop counts when it has time.
    loop = asyncio.get_running_loop()
    loop.call_soon_threadsafe(_inspect, loop)


def _inspect(loop: asyncio.AbstractEventLoop) -> None:
    # Events that wait for the thread of the log have texts of calls, too.
    if logger._sink is not None:
        logger._sink.flush(10.0)
    # A first look makes objects that stay, such as those of modules it is the first to use. The second shows them.
    _look(loop)
    line = json.dumps(_look(loop)) + "\n"
    # In one write, as long as a pipe takes whole: between two lines of the log.
    os.write(2, line.encode())


def _look(loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    # The program froze the objects of its start, and the last look those of its time. Frozen ones would not be counted.
    gc.unfreeze()
    gc.collect()
    # How much freed memory the C library keeps for the next call depends on what ran at the same time: up to 4 MiB at
    # the arena's end, and pages between pieces that are in use. All of it goes back to the kernel here.
    ctypes.CDLL(None).malloc_trim(0)
    # Before this look makes objects of its own.
    blocks = sys.getallocatedblocks()
    tasks = [getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks(loop)]
    objects = Counter(type(each).__qualname__ for each in gc.get_objects())
    status = Path("/proc/self/status").read_text()
    memory_kib = int(status.split("VmRSS:")[1].split()[0])
    return {
        "event": "inspected",
        "memory_kib": memory_kib,
        "blocks": blocks,
        "tasks": len(tasks),
        "names": sorted(tasks)[:50],
        "warnings": _count_warnings(),
        "texts": _count_marked_texts(),
        "objects": dict(objects.most_common(_MOST_TYPES)),
    }


def _count_warnings() -> int:
    """Count the warnings that the interpreter keeps; the key "version" is not one of them."""
    registries = [getattr(module, "__warningregistry__", {}) for module in list(sys.modules.values())]
    return sum(key != "version" for registry in registries for key in registry)


def _count_marked_texts() -> int:
    """Count the marked texts that anything refers to."""
    found: set[int] = set()
    # No module itself: its names are an object of their own, and asyncio's module in C shows, on Python 3.12, objects
    # that it has freed already; to refer to them makes a list of it that never ends.
    look_into: list[Any] = [each for each in gc.get_objects() if not isinstance(each, ModuleType)]
    gc.freeze()
    while look_into:
        for each in gc.get_referents(look_into.pop()):
            if isinstance(each, (str, bytes)):
                text = each if isinstance(each, str) else each.decode("latin-1")
                if MARK in text:
                    found.add(id(each))
            elif isinstance(each, (tuple, dict)) and not gc.is_tracked(each):
                look_into.append(each)
    return len(found)


if __name__ == "__main__":
    if sys.argv[1] == "--without":
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        import guards

        guards.take_out(sys.argv[2])
        del sys.argv[1:3]
    assert allocator._ARENAS > 1  # a constant that was renamed is noticed
    allocator._ARENAS = 1
    signal.signal(signal.SIGUSR2, inspect_soon)
    sys.exit(main())
