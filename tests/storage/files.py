"""Common parts of tests of storages: files to store, and short forms of the two methods of a backend."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from watchdog.storage.base import Storage
from watchdog.workspace.outputs import Output

MIB = 1 << 20


class Moving:
    """Adds up the bytes that a transfer reports."""

    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self, count: int) -> None:
        self.bytes += count


def output_of(directory: Path, data: bytes, name: str = "output") -> Output:
    """Return a file as a script might have left it."""
    path = directory / name
    path.write_bytes(data)
    status = path.stat()
    return Output(str(path), name, status.st_size, status.st_mtime, status.st_mode)


def changing(output: Output, change: str) -> Callable[[int], None]:
    """Return a function that changes the file when the first bytes have moved."""
    done: list[bool] = []

    def moved(count: int) -> None:
        if done:
            return
        done.append(True)
        if change == "grown":
            with open(output.path, "ab") as file:
                file.write(b"more")
        elif change == "shortened":
            os.truncate(output.path, output.size_bytes - 1)
        else:
            os.utime(output.path, (output.mtime_s - 1, output.mtime_s - 1))

    return moved


async def stored(storage: Storage, directory: Path, location: str, data: bytes) -> int:
    """Store bytes. Return the number of bytes that the backend reported."""
    moving = Moving()
    await storage.store(output_of(directory, data), location, moved=moving)
    return moving.bytes


async def fetched(storage: Storage, directory: Path, location: str, most_bytes: int = 0, version: str = "") -> bytes:
    """Fetch an object into a file on the file system of a directory, and return its bytes."""
    moving = Moving()
    with tempfile.TemporaryFile(dir=directory) as file:
        size_bytes = await storage.fetch(location, file.fileno(), version=version, most_bytes=most_bytes, moved=moving)
        file.seek(0)
        data = file.read()
    assert len(data) == size_bytes == moving.bytes
    return data
