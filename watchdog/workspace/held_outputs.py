"""Remove the names of outputs, so that the script of another call cannot find the outputs while they are sent.

All scripts run as the same user. So the server opens the outputs of a call and removes their names. Each output then
needs a descriptor, so the number of outputs without a name is limited for each call and for all calls together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from ..system import proc
from .outputs import Output, hold_outputs, release_outputs, size_of

# The largest number of outputs of one call whose descriptors are kept open.
_MOST_OF_A_CALL = 16
# A file system needs a long time to free gigabytes, and the event loop must not be blocked for so long.
_QUICKLY_FREED_BYTES = 64 << 20


class HeldOutputs:
    """The descriptors of outputs that are being sent: at most a quarter of the descriptors of this process.

    Args:
        in_thread: runs a function in a thread, and does not wait for it.
    """

    def __init__(self, in_thread: Callable[[Callable[[], None]], None]) -> None:
        self._in_thread = in_thread
        self._count = 0
        self._most = proc.descriptor_limit() // 4

    def hold(self, outputs: list[Output]) -> list[Output] | None:
        """Remove the names of outputs and return the outputs with their descriptors; None if they are too many.

        Raises:
            OutputUnreadable: for the same reasons as in :func:`hold_outputs`.
        """
        if len(outputs) > min(_MOST_OF_A_CALL, self._most - self._count):
            return None
        if outputs:
            outputs = hold_outputs(outputs)
            self._count += len(outputs)
        return outputs

    def release(self, held: list[Output]) -> None:
        """Close the descriptors that :meth:`hold` opened."""
        self._count -= len(held)
        if size_of(held) <= _QUICKLY_FREED_BYTES:
            release_outputs(held)
        else:
            self._in_thread(functools.partial(release_outputs, held))
