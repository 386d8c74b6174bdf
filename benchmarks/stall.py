"""Run ``watchdog``, and measure each callback of its event loop: ``python stall.py REPORT serve …``.

The measurement takes some microseconds per callback, so it has separate rounds. At the end REPORT gets the longest
callback by each of these times:

- ``wall``: from its beginning to its end. On a busy machine, other processes may be the cause;
- ``cpu``: the processor time of the loop's thread;
- ``held``: the wall time without the time in which the thread was ready to run and had no core (``schedstat`` of
  Linux). So the callback itself, a file system or another thread with the GIL blocked the loop for this time.

The code is the ``watchdog`` of the working directory.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

# Some kernels do not have it. Then `held` is `wall`.
try:
    _SCHEDSTAT = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
except OSError:
    _SCHEDSTAT = -1


class Clock:
    """The longest callbacks of an event loop, in nanoseconds."""

    def __init__(self) -> None:
        self.callbacks = 0
        self.worst_ns = {"wall": 0, "cpu": 0, "held": 0}
        self.what = {"wall": "", "cpu": "", "held": ""}
        self._collected_ns = 0
        self._collection_began_ns = 0

    def install(self) -> None:
        gc.callbacks.append(self._collect)
        run = asyncio.events.Handle._run
        perf_counter_ns, thread_time_ns = time.perf_counter_ns, time.thread_time_ns

        def timed_run(handle: asyncio.Handle) -> None:
            collected_ns = self._collected_ns
            waited = _waited()
            cpu_ns = thread_time_ns()
            wall_ns = perf_counter_ns()
            run(handle)
            wall_ns = perf_counter_ns() - wall_ns
            cpu_ns = thread_time_ns() - cpu_ns
            self.callbacks += 1
            # The other times are never longer than the wall time.
            if wall_ns > self._least_ns():
                held_ns = wall_ns - (_nanoseconds(_waited()) - _nanoseconds(waited))
                collected_ns = self._collected_ns - collected_ns
                self._note(handle, {"wall": wall_ns, "cpu": cpu_ns, "held": max(held_ns, cpu_ns)}, collected_ns)

        asyncio.events.Handle._run = timed_run  # type: ignore[method-assign,assignment]

    def _least_ns(self) -> int:
        return min(self.worst_ns.values())

    def _note(self, handle: asyncio.Handle, times_ns: dict[str, int], collected_ns: int) -> None:
        for name, ns in times_ns.items():
            if ns > self.worst_ns[name]:
                self.worst_ns[name] = ns
                self.what[name] = (
                    f"{collected_ns / 1e6:.1f} ms of it were garbage collection; the callback was "
                    f"`{_description_of(handle)}`"
                )

    def _collect(self, phase: str, info: object) -> None:
        if phase == "start":
            self._collection_began_ns = time.perf_counter_ns()
        else:
            self._collected_ns += time.perf_counter_ns() - self._collection_began_ns

    def report(self) -> dict[str, Any]:
        return {
            "callbacks": self.callbacks,
            "has_schedstat": _SCHEDSTAT >= 0,
            **{f"{name}_ms": ns / 1e6 for name, ns in self.worst_ns.items()},
            "what": self.what,
        }


def _waited() -> bytes:
    return os.pread(_SCHEDSTAT, 64, 0) if _SCHEDSTAT >= 0 else b"0 0"


def _nanoseconds(schedstat: bytes) -> int:
    return int(schedstat.split()[1])


def _description_of(handle: asyncio.Handle) -> str:
    """Return the callback as text. If it was a step of a task, return the task and the place where it continues."""
    callback = getattr(handle, "_callback", None)
    owner = getattr(callback, "__self__", None)
    text = repr(owner) if isinstance(owner, asyncio.Task) else repr(handle)
    return re.sub(r"(?<![\w.])/[^\s:>']*/", "", text)[:300]


def main() -> int:
    report = Path(sys.argv[1])
    sys.argv[:2] = ["watchdog"]
    # Replace the directory of this script in the path, because the server must not find the modules there.
    sys.path[0] = os.getcwd()
    clock = Clock()
    clock.install()
    from watchdog.__main__ import main as run

    try:
        return run()
    finally:
        report.write_text(json.dumps(clock.report()))


if __name__ == "__main__":
    sys.exit(main())
