"""Fork a process that stays beside the server: the guardian, the decoy.

Such a process executes no program. A script runs as the same user, and ``exec`` would make the memory of the process
accessible to the script until the process closes it again (prctl(2), PR_SET_DUMPABLE). A script can kill the process,
wait for the next one, and change it in that time. A fork is closed from its start, because the server is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import warnings
from collections.abc import Callable

_MOST_FDS = (1 << 31) - 1


def fork(name: str, kept_fds: tuple[int, ...], work: Callable[[], None]) -> int:
    """Start a process that runs ``work`` and ends, and return its pid.

    The process has its own session, so a Ctrl-C or a signal to the group of the server does not reach it, and it
    ignores the signals that stop the server. It must not use a lock that a thread of the server may hold, or import.

    Args:
        name: as /proc/PID/comm shows it, 15 characters at most.
        kept_fds: the descriptors that the process keeps. All others are closed in it.

    Raises:
        OSError: no process can be had.
    """
    # A signal that comes before the process ignores it would run the server's handler there.
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns that a thread may hold a lock during a fork.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            exit_code = 1
            try:
                _settle(name, kept_fds)
                work()
                exit_code = 0
            finally:
                os._exit(exit_code)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _settle(name: str, kept_fds: tuple[int, ...]) -> None:
    # Not /proc/self/comm: an ordinary user cannot open it in a process with closed memory.
    with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/comm", "w") as file:
        file.write(name)
    os.setsid()
    _close_all_but(kept_fds)
    signal.set_wakeup_fd(-1)  # or signals to this process would arrive at the server's event loop
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.chdir("/")


def _close_all_but(fds: tuple[int, ...]) -> None:
    """Close the server's files and connections: their other ends would wait for this process, too."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    first = 3
    for fd in sorted(fds):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, _MOST_FDS)
