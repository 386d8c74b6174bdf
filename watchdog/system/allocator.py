"""Set how the C library keeps freed memory (mallopt(3))."""

from __future__ import annotations

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_KEPT_BYTES = 4 << 20
_OWN_MAPPING_BYTES = 1 << 20
_ARENAS = 2


def keep_freed_memory() -> None:
    """Keep some MiB that were freed, for the next pieces of a file.

    Where pieces come and go, glibc gives each back to the kernel; to have its pages cleared and mapped again takes
    longer than what is done with them.

    What is kept is bounded by the number of arenas, which is as small as the interpreter's lock allows. Without effect
    where the C library is another.
    """
    # Not at the top: it is slow to import.
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for option, value in (
        (_M_ARENA_MAX, _ARENAS),
        (_M_MMAP_THRESHOLD, _OWN_MAPPING_BYTES),
        (_M_TRIM_THRESHOLD, _KEPT_BYTES),
    ):
        mallopt(option, value)
