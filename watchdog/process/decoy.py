"""Keep a small process that the kernel ends before the server when the container's memory runs out.

The kernel ends the process with the most memory, after it has added ``oom_score_adj``, in thousandths of the limit
(proc(5)). Scripts get 500 more than the server, but the value stops at 1000. In a pod of the class Burstable the server
has 979 to 999 itself (the kubelet's ``GetContainerOOMScoreAdjust``), and only root of the whole machine may lower that.
So if a script's memory is in many small processes, the server is the largest process and the kernel ends it.

The decoy has 1000, and it counts as larger than the server, although it has little memory: it maps the same few pages
many times, and the kernel counts each mapping. So the kernel ends the decoy first. The decoy takes a script with it: a
pipe between server and decoy has the kernel send SIGKILL to the script's process group when the decoy's end of the pipe
is closed (fcntl(2), F_SETSIG and F_SETOWN). The server does not have to run for that. To the server it looks like a
script that the kernel killed for want of memory, and that is how the call is answered.

A process that ends gives up its memory before its files, and when the memory is gone, the kernel may choose again. So
the decoy has a twin in the same memory (clone(2), CLONE_VM), which the kernel ends as well. The first of the two to end
cannot give up the memory, because the other one still has it, and so closes its own pipe while the kernel still waits.

There is no decoy where the server's own value leaves room for the difference, where memory has no limit, or where the
kernel ends all processes of the container at once (``memory.oom.group``).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import signal
import sys

from ..system.cgroup import Cgroup
from ..system.proc import hide_memory

NAME = "watchdog-decoy"  # as /proc/PID/comm shows it, 15 characters at most

LARGEST_OOM_SCORE_ADJ = 1000
# What scripts have more than the server: half of all memory.
OOM_SCORE_ADJ_OF_SCRIPTS = 500
_MIB = 1 << 20
# Far more than the server ever has (96 MiB by its own tests); the page tables for it take 0.5 MiB.
_COUNTED_BYTES = 256 * _MIB
# Python holds a descriptor for each mapping, so few large mappings are better than many small ones.
_MAPPED_BYTES = 2 * _MIB
# Beside the interpreter's 6 MiB: what scripts may take if they have to be faster than the decoy's end, without a twin.
_FREED_BYTES = 4 * _MIB
_TWIN_STACK_BYTES = 64 * 1024
_CLONE_VM = 0x100  # linux/sched.h
_IONBF = 2  # stdio.h
_CODE = (
    "import sys; sys.path.insert(0, sys.argv[1]); from watchdog.process.decoy import wait; "
    "wait(*map(int, sys.argv[2:]))"
)


def own_oom_score_adj() -> int:
    """Return this process's oom_score_adj; 0 where it cannot be read."""
    try:
        with open("/proc/self/oom_score_adj", "rb", buffering=0) as file:
            return int(file.read())
    except OSError:
        return 0


def why_needed() -> str | None:
    """Return why the kernel may end the server in place of a script, and what to do; None if it cannot come to that."""
    own = own_oom_score_adj()
    if own <= LARGEST_OOM_SCORE_ADJ - OOM_SCORE_ADJ_OF_SCRIPTS or Cgroup().memory_limit_bytes() is None:
        return None
    return (
        "when memory runs out, the kernel may end this server in place of a script: the server's oom_score_adj is "
        f"{own}, and that of scripts cannot be enough above it. On Kubernetes, set the requests of memory and CPU "
        "equal to their limits"
    )


class Decoy:
    """The server's end of it.

    ``is_needed``: whether it is of use here. ``pid``: of the decoy; 0 while there is none. ``pidfd``: becomes readable
    when the decoy ends. ``aim``: the process group that ends with it; 0 is none.
    """

    def __init__(self) -> None:
        self.pid = 0
        self.pidfd = -1
        self.aim = 0
        self.is_needed = why_needed() is not None and not Cgroup().ends_all_at_once()
        # The decoy ends when this pipe is closed.
        self._life_fd = -1
        # The group that the decoy is aimed at ends when the decoy, or its twin, closes its end of one of these.
        self._alarm_fds: tuple[int, ...] = ()

    def start(self) -> None:
        """Start the process. Call it only if it is needed.

        Raises:
            OSError: no process or descriptor can be had for it.
            ValueError, TypeError: Python does not know its own executable.
        """
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        life_read, self._life_fd = os.pipe()
        own_alarm, own_write = os.pipe()
        twins_alarm, twins_write = os.pipe()
        self._alarm_fds = (own_alarm, twins_alarm)
        handed = (own_alarm, twins_write)
        try:
            for fd in handed:
                os.set_inheritable(fd, True)
            self.pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-c", _CODE, root, *map(str, handed)],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, life_read, 0),
                    *((os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (1, 2)),
                ],
                # Out of reach of a Ctrl-C, and of a signal to the server's group.
                setsid=True,
            )
            self.pidfd = os.pidfd_open(self.pid)
            for fd in self._alarm_fds:
                fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
        except BaseException:
            self.stop()
            raise
        finally:
            for fd in (life_read, own_write, twins_write):
                os.close(fd)
            if self.pid:
                os.set_inheritable(own_alarm, False)

    def aim_at(self, group: int) -> None:
        """Have the decoy's end kill this process group instead of the one before; 0 is none."""
        if not self.pid or group == self.aim:
            return
        self.aim = group
        # The kernel keeps the group itself, not its number: another group that gets the number later is not meant.
        with contextlib.suppress(ProcessLookupError):
            for fd in self._alarm_fds:
                fcntl.fcntl(fd, fcntl.F_SETOWN, -group)
                fcntl.fcntl(fd, fcntl.F_SETFL, os.O_ASYNC)

    def stop(self) -> None:
        """End the process, if there is one, and reap it. No script ends with it."""
        self.aim_at(0)
        if self.pid:
            with contextlib.suppress(ChildProcessError):  # reaped already: its pid may be another process's by now
                if os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                    os.kill(self.pid, signal.SIGKILL)
                    os.waitpid(self.pid, 0)
        for fd in (self.pidfd, self._life_fd, *self._alarm_fds):
            if fd >= 0:
                os.close(fd)
        self.pid, self.pidfd, self._life_fd, self._alarm_fds = 0, -1, -1, ()

    def close(self) -> None:
        """Stop, and start no more."""
        self.stop()
        self.is_needed = False


def wait(own_alarm_fd: int, twins_write_fd: int) -> None:
    """Be the decoy: look large, and sleep until the server is gone.

    Args:
        own_alarm_fd: the reading end of the pipe that this process alone is to hold for writing.
        twins_write_fd: the writing end of the pipe that the twin alone is to hold.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    for name, value in (("comm", NAME), ("oom_score_adj", str(LARGEST_OOM_SCORE_ADJ))):
        with contextlib.suppress(OSError), open(f"/proc/self/{name}", "w") as file:  # /proc may be read-only
            file.write(value)
    # Not before: these files belong to root from now on. A script could else run its own code in this process, which
    # outlives each call.
    hide_memory()
    held = [mmap.mmap(-1, _FREED_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)]
    fd = os.memfd_create(NAME, os.MFD_CLOEXEC)
    os.ftruncate(fd, _MAPPED_BYTES)
    with contextlib.suppress(OSError):  # the limit of descriptors: as large as can be, then
        while len(held) * _MAPPED_BYTES < _COUNTED_BYTES:
            held.append(mmap.mmap(fd, _MAPPED_BYTES, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE))
    stack = mmap.mmap(-1, _TWIN_STACK_BYTES)
    if _start_twin(stack):
        with contextlib.suppress(OSError):
            # Opened only now: the twin must not have it. If that fails, the pipe of both has to do.
            os.open(f"/proc/self/fd/{own_alarm_fd}", os.O_WRONLY | os.O_CLOEXEC)
            os.close(twins_write_fd)
    os.close(own_alarm_fd)
    os.read(0, 1)


def _start_twin(stack: mmap.mmap) -> bool:
    """Start a process in the memory of this one, which reads stdin until its end; return whether that was possible.

    It runs one function of the C library, and nothing of Python.
    """
    import ctypes

    try:
        libc = ctypes.CDLL(None)
        # Without a buffer, the function allocates nothing.
        libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdin"), None, _IONBF, ctypes.c_size_t(0))
        top = ctypes.addressof(ctypes.c_char.from_buffer(stack)) + _TWIN_STACK_BYTES
        function = ctypes.cast(libc.getchar, ctypes.c_void_p)
        pid = libc.clone(function, ctypes.c_void_p(top), _CLONE_VM | signal.SIGCHLD, None)
    except (OSError, AttributeError, ValueError):
        return False
    return bool(pid > 0)
