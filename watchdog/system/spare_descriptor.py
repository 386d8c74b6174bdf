"""Keep one descriptor in reserve, for the case that all others are in use."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator


class SpareDescriptor:
    """A descriptor that is kept open so that it can be closed when another one is needed. Any thread may borrow it."""

    def __init__(self) -> None:
        self._fd = -1
        self._is_kept = False
        self._lock = threading.Lock()

    def keep(self) -> None:
        """Begin to keep a descriptor, or keep one again if it was lost while it was lent."""
        with self._lock:
            self._is_kept = True
            self._open()

    def keep_after_fork(self) -> None:
        """Begin to keep a descriptor in a fork of this process that has closed all descriptors of this process."""
        # Another thread may have held the lock at the time of the fork. That thread does not exist in the fork.
        self._lock = threading.Lock()
        self._fd = -1
        self.keep()

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Close the descriptor until the end of the context, so that the context can open another one."""
        with self._lock:
            self._close()
            try:
                yield
            finally:
                self._open()

    def close(self) -> None:
        """Keep no descriptor any more."""
        with self._lock:
            self._is_kept = False
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        if self._is_kept and self._fd < 0:
            with contextlib.suppress(OSError):  # then no descriptor is in reserve until the end of the next context
                self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


# The reserve of this process, for files in /proc: the server must see the processes of a script also if the calls hold
# all other descriptors.
spare = SpareDescriptor()
