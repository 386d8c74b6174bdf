"""Write the bytes of an input into files, and limit their number."""

from __future__ import annotations

import os

from ..errors import BadInput, InputTooLarge
from ..system.base64_reader import ByteSink
from ..workspace.held_input import HeldFile, HeldInput

BATCH_BYTES = 1024 * 1024


class Limit:
    """How much may be written, over all files of one call. 0 is no limit."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.taken = 0

    def take(self, count: int) -> None:
        self.taken += count
        self.check(self.taken)

    def check(self, count: int) -> None:
        """Raise InputTooLarge if so many bytes are too many."""
        if self.max_bytes and count > self.max_bytes:
            raise InputTooLarge(f"the decoded input is over {self.max_bytes} bytes (max_input_size)")


class Held:
    """Hold what is written until the target file is known."""

    def __init__(self) -> None:
        self._data = b""
        self._file: ByteSink | None = None

    def release(self, file: ByteSink) -> None:
        """Write what is held to ``file``, and everything from now on."""
        self._file = file
        self._file.write(self._data)

    def write(self, data: bytes) -> None:
        if self._file is None:
            self._data += data
        else:
            self._file.write(data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _File:
    """A file that counts what is written to it."""

    def __init__(self, file: HeldFile, limit: Limit) -> None:
        self._file = file
        self._limit = limit

    def write(self, data: bytes) -> None:
        self._limit.take(len(data))
        self._file.write(data)

    def close(self) -> None:
        """Do nothing: the owner of the file closes it."""


class Files:
    """The files of one input, each under its own name."""

    def __init__(self, held: HeldInput, limit: Limit) -> None:
        self._held = held
        self._limit = limit
        self._files: list[str] = []
        self._fields: list[str] = []
        self._names: set[str] = set()
        self._counts: dict[str, int] = {}

    def create(self, name: str, *, is_field: bool = False) -> _File:
        name = self._unused(name)
        (self._fields if is_field else self._files).append(name)
        return _File(self._held.create(name), self._limit)

    def input_name(self) -> str:
        names = self._files or self._fields
        if not names:
            raise BadInput("the form has no part; send at least one file (curl -F file=@FILE)")
        return names[0] if len(names) == 1 else ""

    def _unused(self, name: str) -> str:
        stem, extension = os.path.splitext(name)
        unused = name
        while unused in self._names:
            self._counts[name] = count = self._counts.get(name, 1) + 1
            unused = f"{stem}-{count}{extension}"
        self._names.add(unused)
        return unused
