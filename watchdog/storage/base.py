"""Define what a storage does: fetch one object to a file, store one file.

::

    event.py          recognise an event, with or without envelopes     uses no network
    records.py        find the objects that one event reports           uses no network
    stored_object.py  one such object                                   uses no network
    envelope.py       take events out of envelopes of SQS and SNS       uses no network
    job_event.py      the event of a job, as a shell passes it on       uses no network
    skipped.py        objects of events that are not processed          uses no network
    locator.py        the storage and the path of an event's object     uses no network
    s3.py             }
    webdav.py         } a Storage each, imported only when it is used; all three use http_client.py
    onedata.py        }
    open_storages.py  the storages that are in use
    transfer.py       inputs of an event in, outputs of a script out: 8 at a time, logged, all or a clear error

``settings/storage_providers.py`` reads the providers of the service definition, with their credentials.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from ..workspace.outputs import Output

# Told the bytes that moved since it was told last; a negative number when a transfer begins anew.
Moved = Callable[[int], None]


class Storage(Protocol):
    """One provider's objects. Safe to use for several transfers at once.

    ``location``: where an object is, without a slash at either end. Its first part is the bucket (S3, MinIO) or the
    space (Onedata); for WebDAV all of it is a path below the provider's URL. Parts are text as it is, encoded for
    nothing; ``..``, ``.`` and empty parts do not occur in what is stored.

    Each verb tries again what may pass (lost connections, 429, 5xx, silence), resumes where it can, and ends in bounded
    time: a server that is silent for ``timeout_s``, or fails for as long, is given up. Cancelled, each leaves nothing
    behind: no part of a file under ``path``, none under ``location``, no multipart upload.
    """

    async def fetch(self, location: str, fd: int, *, version: str = "", most_bytes: int, moved: Moved) -> int:
        """Write the object to an empty file and return its size in bytes, which is what the server announced.

        Args:
            fd: of the file; stays open.
            version: the id of one version of the object in its bucket, "" is the latest. Other storages have none.
            most_bytes: the largest object; 0 is no limit.

        Raises:
            ObjectMissing: there is no such object, version, bucket or space.
            InputTooLarge: it is over ``most_bytes``; nothing, or no more than that, is read.
            StorageError: the server cannot be reached, refuses, is silent or breaks off.
            NoSpace: the disk is full.
            OSError: the file cannot be written for another reason.
        """

    async def store(self, output: Output, location: str, *, moved: Moved) -> None:
        """Store the file, in place of what is there. Nobody sees a part of it under ``location``.

        Raises:
            ObjectMissing: there is no such bucket or space.
            StorageError: the server cannot be reached, refuses, is silent or breaks off.
            OutputUnreadable: the file is gone or changed since it was listed; nothing is stored, but that S3 may have a
                small one as it was sent.
        """

    async def close(self) -> None:
        """Close connections. No transfer may be under way."""


_TIDY_S = 5.0


async def tidied(tidying: Coroutine[Any, Any, None]) -> None:
    """Let what tidies up after a transfer come to its end, also if who waits for it is cancelled, a second time even.

    A server that is silent is given up after five seconds. What goes wrong is not raised: the transfer's own end is.
    """
    task = asyncio.ensure_future(tidying)
    until_s = time.monotonic() + _TIDY_S
    while not task.done() and (left_s := until_s - time.monotonic()) > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task}, timeout=left_s)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
