"""Serve under Python's profiler: ``python under_profile.py OUTPUT ARGUMENT…``, in place of ``python -m watchdog``.

SIGUSR1 starts the profiler. SIGUSR2 stops it and writes the profile to the file ``OUTPUT``.
"""

from __future__ import annotations

import cProfile
import os
import runpy
import signal
import sys


def main(output: str, arguments: list[str]) -> None:
    profiler = cProfile.Profile()

    def stop(*_: object) -> None:
        profiler.disable()
        profiler.dump_stats(output + ".part")
        profiler.clear()
        os.rename(output + ".part", output)

    signal.signal(signal.SIGUSR1, lambda *_: profiler.enable())
    signal.signal(signal.SIGUSR2, stop)
    sys.path[0] = ""  # the checkout, where the server was started
    sys.argv = ["watchdog", *arguments]
    runpy.run_module("watchdog", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
