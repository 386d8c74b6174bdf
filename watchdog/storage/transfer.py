"""Fetch the inputs of events and store the outputs of scripts: 8 files of a storage at a time, logged and counted."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from ..errors import StorageError, StoreFailed, WatchdogError
from ..logs.setup import get_logger
from ..logs.text import printable
from ..settings.storage_providers import Place, Provider, Storages
from ..telemetry.metrics import Metrics
from ..workspace.file_name import new_file_name, safe_file_name
from ..workspace.held_input import HeldInput
from ..workspace.outputs import Output
from .locator import Locator, Source
from .open_storages import OpenStorages
from .transfer_progress import Moving, Watcher, reported

log = get_logger("storage")

_AT_ONCE = 8
# After this number of failures in a row, the cause is the storage, not a file. So no more files are sent to it.
_MOST_FAILURES = 8
_NAMED_FILES = 5


class Transfers:
    """All transfers of one server or job. ``locator`` finds the objects of events.

    Args:
        timeout_s: the longest silence of a storage, and how long failed requests are repeated.
        environ: the environment of the image. Only ``SSL_CERT_FILE`` is read from it.
    """

    def __init__(
        self,
        storages: Storages,
        *,
        timeout_s: float,
        environ: Mapping[str, str],
        metrics: Metrics,
        watcher: Watcher | None = None,
    ) -> None:
        self._storages = storages
        self.locator = Locator(storages)
        self._opened = OpenStorages(storages, timeout_s=timeout_s, environ=environ)
        self._metrics = metrics
        metrics.expect_transfers(storages.providers)
        self._watcher = watcher
        # By provider, so that a storage that does not answer delays no transfer of another storage.
        self._slots = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(_AT_ONCE))

    async def fetch(self, source: Source, held: HeldInput, *, most_bytes: int, call_id: str) -> tuple[str, int]:
        """Fetch an object into ``held``, with its own name but without folders. Return the name and size of the file.

        Raises:
            StorageError, InputTooLarge, NoSpace, OSError: for the same reasons as in :meth:`Storage.fetch`.
        """
        name = safe_file_name(source.location.rstrip("/").rpartition("/")[2]) or new_file_name()
        file = held.create(name)
        began_s = time.monotonic()
        with self._counted("fetch", source.provider) as count:
            storage = self._opened.get(source.provider)
            async with reported("fetching", 1, None, call_id, self._watcher) as moving, self._slots[source.provider]:
                size_bytes = await storage.fetch(
                    source.location,
                    file.descriptor(),
                    version=source.version,
                    most_bytes=most_bytes,
                    moved=moving.moved,
                )
            count(size_bytes)
        log.info(
            "input fetched",
            call_id=call_id,
            source=str(source),
            size_bytes=size_bytes,
            duration_s=round(time.monotonic() - began_s, 6),
        )
        file.written(size_bytes)
        return name, size_bytes

    @property
    def stores(self) -> bool:
        """Return whether the service stores outputs."""
        return any(place.provider in self._storages.providers for place in self._storages.outputs)

    async def store(self, outputs: Sequence[Output], *, call_id: str) -> None:
        """Store each output in each place that the service definition gives for it.

        If one output cannot be stored, the others are still stored. If a storage has failed eight times in a row, no
        more outputs are sent to it.

        Raises:
            StoreFailed: some outputs could not be stored; the error names them.
        """
        work = [
            _Item(output, place, self._storages.providers[place.provider])
            for place in self._storages.outputs
            if place.provider in self._storages.providers
            for output in outputs
            if place.takes(output.name)
        ]
        if not work:
            log.info("no output to store", call_id=call_id, outputs=len(outputs))
            return
        began_s = time.monotonic()
        size_bytes = sum(item.output.size_bytes for item in work)
        storing = _Storing(iter(work))
        async with (
            reported("storing", len(work), size_bytes, call_id, self._watcher) as moving,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(min(_AT_ONCE, len(work))):
                group.create_task(self._store_some(storing, moving, call_id))
        duration_s = round(time.monotonic() - began_s, 6)
        if not storing.not_stored:
            log.info("outputs stored", call_id=call_id, files=len(work), size_bytes=size_bytes, duration_s=duration_s)
            return
        for where, reason in list(storing.not_stored.items())[:100]:
            log.error("output not stored", call_id=call_id, target=where, reason=reason)
        raise StoreFailed(_summary(storing.not_stored, len(work)), stored=storing.stored, not_stored=storing.not_stored)

    async def _store_some(self, storing: _Storing, moving: Moving, call_id: str) -> None:
        for item in storing.left:
            provider = item.place.provider
            where = f"{provider}:{printable(item.location)}"
            if storing.failures.get(provider, 0) >= _MOST_FAILURES:
                storing.not_stored[where] = f"not tried, after {_MOST_FAILURES} failures of this storage in a row"
                continue
            if not _is_unicode(item.location):
                storing.not_stored[where] = (
                    "its name is not UTF-8, which every storage requires; rename it in the script"
                )
                continue
            try:
                with self._counted("store", provider) as count:
                    storage = self._opened.get(provider)
                    async with self._slots[provider]:
                        await storage.store(item.output, item.location, moved=moving.moved)
                    count(item.output.size_bytes)
            except (WatchdogError, OSError) as error:
                storing.not_stored[where] = str(error)
                if isinstance(error, StorageError):
                    storing.failures[provider] = storing.failures.get(provider, 0) + 1
            else:
                storing.stored.append(where)
                storing.failures[provider] = 0
                log.debug("output stored", call_id=call_id, target=where, size_bytes=item.output.size_bytes)
            moving.file_done()

    async def close(self) -> None:
        """Close the connections to storages. No transfer may be running."""
        await self._opened.close()

    @contextlib.contextmanager
    def _counted(self, direction: str, provider: str) -> Iterator[Callable[[int], None]]:
        """Count a transfer with its outcome.

        If the transfer succeeds, the code in the context calls the yielded function with the size.
        """
        outcome = "failed"
        sizes: list[int] = []
        try:
            yield sizes.append
            outcome = "ok"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._metrics.transfer_ended(direction, provider, outcome, sum(sizes))


class _Item(msgspec.Struct, frozen=True):
    output: Output
    place: Place
    provider: Provider

    @property
    def location(self) -> str:
        return "/".join(filter(None, [self.provider.space, self.place.path, self.output.name]))


class _Storing(msgspec.Struct):
    """The outputs of one invocation: left, stored and not stored. ``failures``: failures in a row, by provider."""

    left: Iterator[_Item]
    stored: list[str] = msgspec.field(default_factory=list)
    not_stored: dict[str, str] = msgspec.field(default_factory=dict)
    failures: dict[str, int] = msgspec.field(default_factory=dict)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _summary(not_stored: Mapping[str, str], count: int) -> str:
    named = [f"{where}: {reason}" for where, reason in list(not_stored.items())[:_NAMED_FILES]]
    more = f"; and {len(not_stored) - _NAMED_FILES} more" if len(not_stored) > _NAMED_FILES else ""
    return f"{len(not_stored)} of {count} outputs could not be stored: {'; '.join(named)}{more}"
