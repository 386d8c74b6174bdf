"""Start the program. This is the entry point of ``python -m watchdog`` and of the console scripts."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Mapping
from types import FrameType


def main(environ: Mapping[str, str] | None = None) -> int:
    """Run the command. From the first moment on, a signal ends the program.

    Args:
        environ: the image's environment, if it is not the environment of this process (``image/start.py``).
    """
    # In a locale without UTF-8 (ISO-8859-1), Python could not pass most characters of callers to scripts, in file names
    # and variables. A script gets the same locale as before.
    if environ is None and sys.executable and sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    # If this process is PID 1, the kernel discards a signal without a handler. `docker stop` during the imports would
    # then have no effect. No script runs yet, so the program can end at once. The commands set handlers of their own.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # nohup(1) lets the program ignore SIGHUP. The server and the runs of scripts handle SIGHUP nevertheless.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _exit)
    # The launcher of the self-contained tree has blocked these signals until now. The process that started the
    # program may have blocked other signals.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    # Imports leave nearly no garbage. The collector would search for it 70 times, which is 4 % of the time of a start.
    # The commands start the collector again (cli.py).
    gc.disable()
    from .cli import main as run_command

    return run_command(environ=environ)


def _exit(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
