"""How many calls at the same time the limit of open files allows (``ulimit -n``)."""

from __future__ import annotations

import resource

from ..errors import OutOfResources

# A command with one call was measured to have 15 open files at most. Another machine may need a few more. Each further
# call has the input, the connection, the directories and files of the answer, and perhaps a lookup of the host.
_FIRST_CALL = 24
_EACH_CALL = 8


def calls_that_fit(wanted: int) -> int:
    """Return how many of the wanted calls can be made at the same time. Raise the soft limit for them if necessary.

    Raises:
        OutOfResources: the limit does not even allow one call.
    """
    needed = _FIRST_CALL + (wanted - 1) * _EACH_CALL
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < _FIRST_CALL:
        raise OutOfResources(f"the limit of open files is {soft}, and a call needs {_FIRST_CALL}; raise it (ulimit -n)")
    return min(wanted, 1 + (soft - _FIRST_CALL) // _EACH_CALL)
