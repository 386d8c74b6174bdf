"""A server that can be inspected: on SIGUSR2 it logs its used memory, tasks, objects, warnings and marked texts.

The program itself has two arenas of the C library. ``malloc_trim`` returns only the free end of the first one to the
kernel, and up to 4 MiB of the second one stay. So this server has one arena. Then the same objects need the same memory
at each measurement.

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

MARK = "text" + "-to-forget-"  # in two parts, so that the constant of this file is not counted
_MOST_TYPES = 30


def inspect_soon(number: int, frame: FrameType | None) -> None:
    # A signal handler may interrupt a change of the objects. So the event loop counts them when it has time.
    loop = asyncio.get_running_loop()
    loop.call_soon_threadsafe(_inspect, loop)


def _inspect(loop: asyncio.AbstractEventLoop) -> None:
    # Events in the queue of the log's thread also contain texts of calls.
    if logger._sink is not None:
        logger._sink.flush(10.0)
    # The first measurement makes objects that stay, such as those of modules that it imports. The second one includes
    # them.
    _look(loop)
    line = json.dumps(_look(loop)) + "\n"
    # A write of this length is atomic in a pipe, so it does not mix with lines of the log.
    os.write(2, line.encode())


def _look(loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    # The program froze the objects of its start, and the last measurement froze later ones. Frozen objects are not
    # counted.
    gc.unfreeze()
    gc.collect()
    # The C library keeps freed memory for the next call: up to 4 MiB at the end of the arena, and pages between used
    # pieces. The amount depends on the work at the same time. This returns all of it to the kernel.
    ctypes.CDLL(None).malloc_trim(0)
    # Do this before the measurement makes objects itself.
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
    """Count the marked texts to which any object refers."""
    found: set[int] = set()
    # Leave out modules. The names of a module are a separate object. And on Python 3.12, asyncio's module in C returns
    # objects that it has freed already, and references to them make a list that never ends.
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
    assert allocator._ARENAS > 1  # this fails if the constant was renamed
    allocator._ARENAS = 1
    signal.signal(signal.SIGUSR2, inspect_soon)
    sys.exit(main())
