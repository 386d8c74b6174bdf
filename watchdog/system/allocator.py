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
    """Keep some MiB of freed memory for the next pieces of a file.

    Without this, glibc returns the memory of each piece to the kernel. For the next piece the kernel clears and maps
    the pages again, which takes longer than the work on the piece.

    The number of arenas limits how much memory is kept. Two arenas are enough, because Python's lock lets only one
    thread run at a time. With another C library than glibc this function has no effect.
    """
    # Imported here and not at the top, because the import is slow.
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
