"""Restore the resource limits of this process, because a script of the same user can lower them (prlimit(2)).

Later scripts inherit the limits. For example, if the limit of file sizes is lowered, a script may leave truncated
outputs and still end with exit code 0. This process can raise its soft limits again. It cannot raise hard limits
without ``CAP_SYS_RESOURCE``: then only a new server process helps.
"""

from __future__ import annotations

import contextlib
import resource

from .limit_mark import RLIMIT_LOCKS

_NAMES = {getattr(resource, name): name for name in dir(resource) if name.startswith("RLIMIT_")}
_NAMES[RLIMIT_LOCKS] = "RLIMIT_LOCKS"
_COUNT = 16  # RLIM_NLIMITS in asm-generic/resource.h


class OwnLimits:
    """The limits that this process should have: those at the start, or higher ones that an operator has set since then.

    Create this object after ``LimitMark`` lowered RLIMIT_LOCKS.
    """

    def __init__(self) -> None:
        self._as_found = {number: resource.getrlimit(number) for number in range(_COUNT)}

    def restored(self) -> list[str]:
        """Raise lowered limits again, as far as possible, and return the names of the limits that had changed."""
        changed = []
        for number, as_found in [*self._as_found.items()]:
            now = resource.getrlimit(number)
            if number != RLIMIT_LOCKS and now != as_found and all(map(_is_as_high, now, as_found)):
                self._as_found[number] = now
            elif self._has_changed(number):
                changed.append(_name(number))
                with contextlib.suppress(OSError, ValueError):
                    resource.setrlimit(number, (as_found[0], resource.getrlimit(number)[1]))
                with contextlib.suppress(OSError, ValueError):
                    resource.setrlimit(number, as_found)
        return changed

    def lowered(self) -> list[str]:
        """Return the names of the limits that are not as they should be."""
        return [_name(number) for number in self._as_found if self._has_changed(number)]

    def _has_changed(self, number: int) -> bool:
        now, as_found = resource.getrlimit(number), self._as_found[number]
        # `LimitMark` changes the soft limit RLIMIT_LOCKS for each script, so only its hard limit is compared.
        return now[1] != as_found[1] if number == RLIMIT_LOCKS else now != as_found


def _is_as_high(limit: int, other: int) -> bool:
    return limit == resource.RLIM_INFINITY or (other != resource.RLIM_INFINITY and limit >= other)


def _name(number: int) -> str:
    return _NAMES.get(number, f"limit {number}")
