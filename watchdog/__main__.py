"""Start the program: ``python -m watchdog``, and the entry point of the console scripts."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from types import FrameType


def main(environ: Mapping[str, str] | None = None) -> int:
    """Run the command, with an end to signals from the very start.

    Args:
        environ: the image's environment, where it is not that of this process (``image/start.py``).
    """
    # As PID 1, a signal without a handler is lost: `docker stop` while the program is imported would wait in vain.
    # Nothing has begun then that would have to be ended; the commands set handlers of their own.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _exit)
    # The self-contained tree's launcher has blocked them until here, and whoever started us may have blocked others.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    from .cli import main as run_command

    return run_command(environ=environ)


def _exit(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
