"""Define what a reader of a body does, and the reader that writes the bytes unchanged."""

from __future__ import annotations

from typing import Protocol

from ..system.base64_reader import ByteSink


class Reader(Protocol):
    def feed(self, data: bytes) -> None: ...
    def finish(self) -> None: ...


class Raw:
    """The bytes as they are."""

    def __init__(self, file: ByteSink) -> None:
        self._file = file

    def feed(self, data: bytes) -> None:
        self._file.write(data)

    def finish(self) -> None:
        self._file.close()
