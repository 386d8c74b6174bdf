"""Write the bytes of an input into files, and limit the number of bytes."""

from __future__ import annotations

import os

from ..errors import BadInput, InputTooLarge
from ..system.base64_reader import ByteSink
from ..workspace.held_input import HeldFile, HeldInput

BATCH_BYTES = 1024 * 1024


class Limit:
    """Limits the total number of bytes in the files of one call. 0 means no limit."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.taken = 0

    def take(self, count: int) -> None:
        self.taken += count
        if self.max_bytes and self.taken > self.max_bytes:
            self.check(self.taken)

    def check(self, count: int) -> None:
        """Raise InputTooLarge if ``count`` bytes are more than the limit."""
        if self.max_bytes and count > self.max_bytes:
            raise InputTooLarge(f"the decoded input is over {self.max_bytes} bytes (max_input_size)")


class Held:
    """Keeps the written bytes in memory until the target file is known."""

    def __init__(self) -> None:
        self._data = b""
        self._file: ByteSink | None = None

    def release(self, file: ByteSink) -> None:
        """Write the kept bytes to ``file``. Later bytes go there directly."""
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
    """An input file whose bytes are counted for the limit."""

    def __init__(self, file: HeldFile, limit: Limit) -> None:
        self._file = file
        self._limit = limit

    def write(self, data: bytes) -> None:
        self._limit.take(len(data))
        self._file.write(data)

    def close(self) -> None:
        """Do nothing: the owner of the file closes it."""


class Files:
    """The files of one input. Each file has a different name."""

    def __init__(self, held: HeldInput, limit: Limit) -> None:
        self._held = held
        self._limit = limit
        # The name of the only field (key True) and of the only file (key False); "" if there are several.
        self._only: dict[bool, str] = {}
        # The number of files that came with the same name, for each name that came more than once.
        self._counts: dict[bytes, int] = {}

    def create(self, name: str, *, is_field: bool = False) -> _File:
        name = self._unused(name)
        self._only[is_field] = "" if is_field in self._only else name
        return _File(self._held.create(name), self._limit)

    def input_name(self) -> str:
        """Return the name of the only file, or of the only field if there is no file; "" if there are several.

        Raises:
            BadInput: there is neither a file nor a field.
        """
        for is_field in (False, True):
            if is_field in self._only:
                return self._only[is_field]
        raise BadInput("the form has no part; send at least one file (curl -F file=@FILE)")

    def _unused(self, name: str) -> str:
        if not self._held.has(name):
            return name
        stem, extension = os.path.splitext(name)
        key, unused = os.fsencode(name), name
        while self._held.has(unused):
            self._counts[key] = count = self._counts.get(key, 1) + 1
            unused = f"{stem}-{count}{extension}"
        return unused
