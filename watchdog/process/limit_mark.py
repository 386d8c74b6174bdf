"""Recognise the processes of scripts by a resource limit.

Each process that a script starts inherits the script's hard limits, and cannot raise them again without
``CAP_SYS_RESOURCE`` (getrlimit(2)). A process can leave its session, lose its parent, close its pipes, remove its
environment and hide its memory, but a lowered limit stays.

The limit is ``RLIMIT_LOCKS``: Linux has not used it since version 2.4.25 (getrlimit(2)), so its value changes nothing
for the script. Each server takes a random range of 2^32 values:

- The largest value of the range is the hard limit of the server, so all of its scripts inherit it.
- Each command gets a value of its own, which is larger than the values of earlier commands. The command inherits it
  from the server as its soft limit. Directly after the start, the server sets it as the hard limit, too. If the command
  forked a process before that, the soft limit of the forked process shows its command. A script can lower its hard
  limit only to the value of an older command.
"""

from __future__ import annotations

import functools
import itertools
import os
import resource

from ..system import proc

RLIMIT_LOCKS = 10  # from asm-generic/resource.h; Python's module `resource` has no name for it
_RANGE = 1 << 32
_MOST_RANGES_LOWER = 1 << 20
_LARGEST = 1 << 62


class LimitMark:
    """The range of values of this process. Creating the first object lowers the limit of this process.

    ``own``: the limit of this process. ``is_firm``: no script can remove its mark. It is false if this process, and
    therefore each of its scripts, may raise limits. It is also false if there is no mark: then all processes count as
    unmarked.
    """

    def __init__(self) -> None:
        self._first, self.is_firm = _lower_own_limit()
        self.own = self._first + _RANGE - 1

    def next(self) -> int:
        """Return the value for the next command, which inherits it as its soft limit; 0 if no value is left."""
        value = self._first + next(_serials)
        if not self._first or value >= self.own:
            return 0
        resource.setrlimit(RLIMIT_LOCKS, (value, self.own))
        return value

    def give(self, pid: int, value: int) -> None:
        """Lower the hard limit of a new child to the value that :meth:`next` returned for it."""
        if value:
            try:
                resource.prlimit(pid, RLIMIT_LOCKS, (value, value))
            except OSError:  # the child has changed its user, or has ended
                return

    def read(self, pid: int) -> int | None:
        """Return the value of a process; None if it does not have the mark of a script, or has removed it.

        Raises:
            PermissionError: the process belongs to another user, and /proc does not show it.
        """
        if not self._first:
            return None
        soft, hard = _limits(pid)
        if hard == self.own and self.is_own(soft):
            return soft
        return hard if 0 <= hard <= self.own else None

    def of_command(self, pid: int) -> int | None:
        """Return the value of a process; None if no command of this server has, had or will have this value."""
        try:
            value = self.read(pid)
        except PermissionError:
            return None
        return value if value is not None and self.is_own(value) else None

    def is_own(self, value: int) -> bool:
        """Return whether a command of this server has, had or will have this value."""
        return self._first < value < self.own


# The limit and the range belong to the process, so all objects share one counter.
_serials = itertools.count(1)


@functools.cache
def _lower_own_limit() -> tuple[int, bool]:
    """Return the first value of the range (0 if there is none), and whether the limit cannot be raised again."""
    try:
        _, hard = resource.getrlimit(RLIMIT_LOCKS)
        below = _LARGEST if hard == resource.RLIM_INFINITY else min(hard, _LARGEST)
        ranges = min(_MOST_RANGES_LOWER, below // _RANGE - 2)
        if ranges < 1:
            return 0, False
        first = below - (2 + int.from_bytes(os.urandom(4), "big") % ranges) * _RANGE
        own = first + _RANGE - 1
        resource.setrlimit(RLIMIT_LOCKS, (own, own))
    except (OSError, ValueError):
        return 0, False
    try:
        resource.setrlimit(RLIMIT_LOCKS, (own, hard))
    except (OSError, ValueError):
        return first, True
    resource.setrlimit(RLIMIT_LOCKS, (own, own))
    return first, False


def _limits(pid: int) -> tuple[int, int]:
    """Return the soft and the hard limit of a process. -1 means no limit, or that the process is gone."""
    try:
        return resource.prlimit(pid, RLIMIT_LOCKS)
    except PermissionError:  # the process runs as another user, such as a set-user-id program
        return _limits_in_proc(pid)
    except OSError:
        return -1, -1


def _limits_in_proc(pid: int) -> tuple[int, int]:
    try:
        lines = proc.content(f"{pid}/limits").splitlines()
        line = next(line for line in lines if line.startswith(b"Max file locks"))
    except (FileNotFoundError, StopIteration) as error:  # the process is gone or hidden
        raise PermissionError(f"the limits of process {pid} cannot be read") from error
    except ProcessLookupError:
        return -1, -1
    soft, hard = (int(word) if word.isdigit() else -1 for word in line.split()[3:5])
    return soft, hard
