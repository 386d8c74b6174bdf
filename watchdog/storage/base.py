"""Define what a storage does: fetch one object to a file, store one file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from ..system.threads import settled
from ..workspace.outputs import Output

# Called with the number of bytes that moved since the last call. The number is negative when a transfer starts again.
Moved = Callable[[int], None]


class Storage(Protocol):
    """The objects of one provider. Several transfers may use it at the same time.

    ``location``: the place of an object, without a slash at either end. Its first part is the bucket (S3, MinIO) or the
    space (Onedata). For WebDAV the whole location is a path below the provider's URL. Parts are plain text and not
    encoded. The location of an output has no ``..``, ``.`` or empty parts.

    Each method repeats requests that failed for a reason that may pass (a lost connection, 429, 5xx, silence), and
    resumes a transfer if it can. It gives up if the server has been silent, or has only failed, for ``timeout_s``. So
    its time is bounded. A cancelled method leaves no part of a file under ``location``, and no multipart upload.
    """

    async def fetch(self, location: str, fd: int, *, version: str = "", most_bytes: int, moved: Moved) -> int:
        """Write the object to an empty file. Return its size in bytes, which is the size that the server announced.

        Args:
            fd: the descriptor of the file, which stays open.
            version: the id of one version of the object in its bucket; "" is the latest. Only S3 has versions.
            most_bytes: the size of the largest object that is fetched; 0 means no limit.

        Raises:
            ObjectMissing: the object, version, bucket or space does not exist.
            InputTooLarge: the object is larger than ``most_bytes``; at most ``most_bytes`` were read.
            StorageError: the server cannot be reached, refuses the request, is silent or closes the connection.
            NoSpace: the disk is full.
            OSError: the file cannot be written for another reason.
        """

    async def store(self, output: Output, location: str, *, moved: Moved) -> None:
        """Store the file, and replace an object with the same location.

        Readers of ``location`` see the old object until the new one is complete, except in Onedata (``onedata.py``).

        Raises:
            ObjectMissing: the bucket or space does not exist.
            StorageError: the server cannot be reached, refuses the request, is silent or closes the connection.
            OutputUnreadable: the file is gone or changed after it was listed. Nothing is stored then, with one
                exception: S3 may have stored a small file as it was when it was sent.
        """

    async def close(self) -> None:
        """Close the connections. No transfer may be running."""


# The longest time for which an upload that failed or was cancelled removes what is left of it.
CLEANUP_S = 5.0


async def finished(cleanup: Coroutine[Any, Any, None]) -> None:
    """Run the cleanup of a transfer to its end, even if the waiting task is cancelled again and again.

    Give up after five seconds, because the server may be silent. Raise no error of the cleanup: the caller raises the
    error of the transfer itself.

    Raises:
        asyncio.CancelledError: the waiting task was cancelled meanwhile.
    """
    task = asyncio.ensure_future(asyncio.wait_for(cleanup, CLEANUP_S))
    try:
        await asyncio.wait({task})
    finally:
        await settled(task)
