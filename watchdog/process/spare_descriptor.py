"""One descriptor in reserve, for the case that all others are in use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


class SpareDescriptor:
    """One descriptor in reserve, for the case that all others are in use."""

    def __init__(self) -> None:
        self._fd = -1
        self._open()

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Free the descriptor while the context lasts."""
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
        with contextlib.suppress(OSError):  # none is in reserve then; it is opened later
            self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
