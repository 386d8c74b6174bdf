"""Keep a small process that the kernel ends before the server when the container's memory runs out.

The kernel ends the process that counts as the largest. The size of a process is its memory plus its ``oom_score_adj``.
One unit of ``oom_score_adj`` is a thousandth of the memory limit (proc(5)). Scripts get 500 more than the server, but
the largest value is 1000. In a pod of the class Burstable the server itself has up to 999 (the kubelet's
``GetContainerOOMScoreAdjust``), and only root of the whole machine may lower this value. If a script then has its
memory in many small processes, the server counts as the largest process, and the kernel ends it.

The decoy has the value 1000 and counts as larger than the server, although it has little memory: it maps the same few
pages many times, and the kernel counts each mapping. So the kernel ends the decoy first, and a script ends together
with the decoy. There is a pipe between server and decoy. When the decoy's end of the pipe is closed, the kernel sends
SIGKILL to the process group of the script (fcntl(2), F_SETSIG and F_SETOWN). This works even if the server cannot run.
The server sees a script that the kernel killed because memory ran out, and answers the call accordingly.

When a process ends, the kernel frees its memory before it closes its files. Once the memory is free, the kernel may
choose the next process. So the decoy has a twin in the same memory (clone(2), CLONE_VM), and the kernel ends both. When
the first of them ends, its memory is not freed, because the other one still uses it. So its pipe is closed while the
kernel still waits for memory.

There is no decoy if the server's own value is 500 or less, if memory has no limit, or if the kernel ends all processes
of the container at once (``memory.oom.group``).
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import mmap
import os
import signal
import sys

from ..system.cgroup import Cgroup
from ..system.proc import hide_memory

NAME = "watchdog-decoy"  # as /proc/PID/comm shows it, 15 characters at most

LARGEST_OOM_SCORE_ADJ = 1000
# Scripts have 500 more than the server, so a script counts as larger by half of the memory limit.
OOM_SCORE_ADJ_OF_SCRIPTS = 500
_MIB = 1 << 20
# The memory that the kernel counts for the decoy: far more than the server ever has (its tests allow 96 MiB). The
# page tables for it take 0.5 MiB.
_COUNTED_BYTES = 256 * _MIB
# Python holds a descriptor for each mapping, so few large mappings are better than many small ones.
_MAPPED_BYTES = 2 * _MIB
# The decoy's own memory, besides the interpreter's 6 MiB. This memory matters only if no twin can be started: the end
# of the decoy then frees it, and scripts can use it until SIGKILL reaches the script that ends with the decoy.
_FREED_BYTES = 4 * _MIB
_TWIN_STACK_BYTES = 64 * 1024
_CLONE_VM = 0x100  # linux/sched.h
_IONBF = 2  # stdio.h
_CODE = (
    "import sys; sys.path.insert(0, sys.argv[1]); from watchdog.process.decoy import wait; "
    "wait(*map(int, sys.argv[2:]))"
)


def own_oom_score_adj() -> int:
    """Return this process's oom_score_adj; 0 if it cannot be read."""
    try:
        with open("/proc/self/oom_score_adj", "rb", buffering=0) as file:
            return int(file.read())
    except OSError:
        return 0


def why_needed() -> str | None:
    """Return why the kernel may end the server in place of a script, and what to do; None if it will not do so."""
    own = own_oom_score_adj()
    if own <= LARGEST_OOM_SCORE_ADJ - OOM_SCORE_ADJ_OF_SCRIPTS or Cgroup().memory_limit_bytes() is None:
        return None
    return (
        "when memory runs out, the kernel may end this server in place of a script: the server's oom_score_adj is "
        f"{own}, and the value of scripts can be only {LARGEST_OOM_SCORE_ADJ - own} higher. On Kubernetes, set the "
        "requests of memory and CPU equal to their limits"
    )


class Decoy:
    """Starts and stops the decoy, and chooses the process group that ends with it.

    Attributes:
        is_needed: whether a decoy is useful in this container.
        pid: the decoy's pid; 0 while there is no decoy.
        pidfd: a descriptor that becomes readable when the decoy ends.
        aim: the process group that ends together with the decoy; 0 if there is none.
    """

    def __init__(self) -> None:
        self.pid = 0
        self.pidfd = -1
        self.aim = 0
        self.is_needed = why_needed() is not None and not Cgroup().ends_all_at_once()
        # The decoy ends when this pipe is closed.
        self._life_fd = -1
        # The process group ``aim`` gets SIGKILL when the decoy or its twin closes the other end of one of these pipes.
        self._alarm_fds: tuple[int, ...] = ()

    def start(self) -> None:
        """Start the decoy. Call this only if it is needed.

        Raises:
            OSError: the system has no process or descriptor for the decoy.
            ValueError, TypeError: Python does not know its own executable.
        """
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        (life_read, self._life_fd), (own_alarm, own_write), (twins_alarm, twins_write) = _pipes(3)
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
                # A Ctrl-C, or a signal to the server's process group, does not reach the decoy.
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
        """Choose the process group that ends together with the decoy; 0 for none."""
        if not self.pid or group == self.aim:
            return
        self.aim = group
        # The kernel keeps the group itself, not its number. So a later group with the same number gets no signal.
        with contextlib.suppress(ProcessLookupError):
            for fd in self._alarm_fds:
                fcntl.fcntl(fd, fcntl.F_SETOWN, -group)
                fcntl.fcntl(fd, fcntl.F_SETFL, os.O_ASYNC)

    def stop(self) -> None:
        """End the decoy, if there is one, and reap it. No script ends with it."""
        self.aim_at(0)
        if self.pid:
            with contextlib.suppress(ChildProcessError):  # the decoy is reaped already, and its pid may be in use again
                if os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                    os.kill(self.pid, signal.SIGKILL)
                    os.waitpid(self.pid, 0)
        for fd in (self.pidfd, self._life_fd, *self._alarm_fds):
            if fd >= 0:
                os.close(fd)
        self.pid, self.pidfd, self._life_fd, self._alarm_fds = 0, -1, -1, ()

    def close(self) -> None:
        """End the decoy, and do not start another one."""
        self.stop()
        self.is_needed = False


def _pipes(count: int) -> list[tuple[int, int]]:
    """Return new pipes. If there are not enough descriptors for all of them, leave none open, and raise ``OSError``."""
    pipes: list[tuple[int, int]] = []
    try:
        while len(pipes) < count:
            pipes.append(os.pipe())
    except OSError:
        for fd in itertools.chain(*pipes):
            os.close(fd)
        raise
    return pipes


def wait(own_alarm_fd: int, twins_write_fd: int) -> None:
    """Run as the decoy: count as large, and sleep until the server is gone.

    Args:
        own_alarm_fd: the reading end of one pipe. Only this process will have the writing end of that pipe.
        twins_write_fd: the writing end of the other pipe. Only the twin will have this end.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    for name, value in (("comm", NAME), ("oom_score_adj", str(LARGEST_OOM_SCORE_ADJ))):
        with contextlib.suppress(OSError), open(f"/proc/self/{name}", "w") as file:  # /proc may be read-only
            file.write(value)
    # Without this, a script could run its own code in this process, which lives longer than a call. After this, the
    # files above belong to root and cannot be written any more.
    hide_memory()
    held = [mmap.mmap(-1, _FREED_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)]
    fd = os.memfd_create(NAME, os.MFD_CLOEXEC)
    os.ftruncate(fd, _MAPPED_BYTES)
    with contextlib.suppress(OSError):  # no more descriptors are allowed: then the decoy counts as smaller
        while len(held) * _MAPPED_BYTES < _COUNTED_BYTES:
            held.append(mmap.mmap(fd, _MAPPED_BYTES, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE))
    stack = mmap.mmap(-1, _TWIN_STACK_BYTES)
    if _start_twin(stack):
        with contextlib.suppress(OSError):
            # The decoy opens its writing end after the start of the twin, because the twin must not have this end. If
            # this fails, the decoy and the twin share the other pipe.
            os.open(f"/proc/self/fd/{own_alarm_fd}", os.O_WRONLY | os.O_CLOEXEC)
            os.close(twins_write_fd)
    os.close(own_alarm_fd)
    os.read(0, 1)


def _start_twin(stack: mmap.mmap) -> bool:
    """Start the twin, and return whether it started.

    The twin uses the same memory as this process, and sleeps in a read of stdin. The twin runs one function of the C
    library, and no Python code.
    """
    import ctypes

    try:
        libc = ctypes.CDLL(None)
        # If stdin has no buffer, `getchar` allocates no memory.
        libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdin"), None, _IONBF, ctypes.c_size_t(0))
        top = ctypes.addressof(ctypes.c_char.from_buffer(stack)) + _TWIN_STACK_BYTES
        function = ctypes.cast(libc.getchar, ctypes.c_void_p)
        pid = libc.clone(function, ctypes.c_void_p(top), _CLONE_VM | signal.SIGCHLD, None)
    except (OSError, AttributeError, ValueError):
        return False
    return bool(pid > 0)
