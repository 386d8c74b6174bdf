"""Keep one descriptor in reserve, for the case that all others are in use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


class SpareDescriptor:
    """A descriptor that is kept open so that it can be closed when another one is needed."""

    def __init__(self) -> None:
        self._fd = -1
        self._open()

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Close the descriptor until the end of the context, so that the context can open another one."""
        self.close()
        try:
            yield
        finally:
            self._open()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        with contextlib.suppress(OSError):  # then no descriptor is in reserve until the end of the next context
            self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
