"""Report the progress of a transfer, every 10 s in the log, and to a progress bar."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from ..logs.setup import get_logger

log = get_logger("storage")

_PROGRESS_INTERVAL_S = 10.0


class Watcher(Protocol):
    """An observer of transfers, such as a progress bar."""

    def begin(self, verb: str, files: int, size_bytes: int | None) -> None:
        """Begin a transfer.

        ``verb``: ``fetching`` or ``storing``. ``size_bytes``: the size of all files; None if it is not known.
        """

    def moved(self, count: int) -> None: ...
    def file_done(self) -> None: ...
    def end(self) -> None: ...


@contextlib.asynccontextmanager
async def reported(
    verb: str, files: int, size_bytes: int | None, call_id: str, watcher: Watcher | None
) -> AsyncIterator[Moving]:
    """Report the progress of a transfer until the context ends."""
    moving = Moving(verb, files, size_bytes, watcher)
    if watcher is not None:
        watcher.begin(verb, files, size_bytes)
    log_task = asyncio.create_task(_log_progress(moving, call_id))
    try:
        yield moving
    finally:
        log_task.cancel()
        if watcher is not None:
            watcher.end()


class Moving(msgspec.Struct):
    """The count of bytes and files that have moved in one transfer of one or more files."""

    verb: str
    files: int
    size_bytes: int | None
    watcher: Watcher | None
    moved_bytes: int = 0
    files_done: int = 0

    def moved(self, count: int) -> None:
        self.moved_bytes += count
        if self.watcher is not None:
            self.watcher.moved(count)

    def file_done(self) -> None:
        self.files_done += 1
        if self.watcher is not None:
            self.watcher.file_done()


async def _log_progress(moving: Moving, call_id: str) -> None:
    """Log the progress of a long transfer."""
    while True:
        await asyncio.sleep(_PROGRESS_INTERVAL_S)
        fields = {"files_done": moving.files_done, "files": moving.files, "size_bytes": moving.size_bytes}
        known = {name: value for name, value in fields.items() if value is not None}
        log.info("transfer goes on", call_id=call_id, doing=moving.verb, moved_bytes=moving.moved_bytes, **known)
