"""The server with a wall clock that jumps by a day, forward or back, each time that it is read.

::

    python tests/faults/jumping_clock.py [--without GUARD] serve --port 0
"""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

_DAY_S = 24 * 3600


def make_the_clock_jump() -> None:
    """Replace the functions that return the time of day. The monotonic clock does not change."""
    read_ns = time.time_ns
    jumps_s = itertools.cycle([0, _DAY_S, -_DAY_S])

    def jumping_ns() -> int:
        return read_ns() + next(jumps_s) * 1_000_000_000

    time.time_ns = jumping_ns
    time.time = lambda: jumping_ns() / 1e9


if __name__ == "__main__":
    make_the_clock_jump()
    if sys.argv[1:2] == ["--without"]:
        sys.path.insert(0, str(Path(__file__).parent.parent))
        from guards import GUARDS

        GUARDS[sys.argv[2]]()
        del sys.argv[1:3]
    from watchdog.__main__ import main

    sys.exit(main())
