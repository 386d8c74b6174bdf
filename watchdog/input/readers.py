"""Define the interface of a reader of a body, and the reader that writes the bytes unchanged."""

from __future__ import annotations

from typing import Protocol

from ..system.base64_reader import ByteSink


class Reader(Protocol):
    """Takes the bytes of a body, and writes what it reads from them into a file."""

    def feed(self, data: bytes) -> None: ...
    def finish(self) -> None: ...


class Raw:
    """Writes the bytes unchanged."""

    def __init__(self, file: ByteSink) -> None:
        self._file = file

    def feed(self, data: bytes) -> None:
        self._file.write(data)

    def finish(self) -> None:
        self._file.close()
