"""Move the inputs of events in and the outputs of scripts out.

It chooses the storage, limits how many transfers run at once, and logs them. Before the first transfer, no module of a
storage is imported and no connection is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import StorageError, StoreFailed, WatchdogError
from ..logs.setup import get_logger
from ..logs.text import printable
from ..settings.storage_providers import Place, Provider, Storages
from ..telemetry.metrics import Metrics
from ..workspace.file_name import safe_file_name
from ..workspace.held_input import HeldInput
from ..workspace.outputs import Output
from .base import Storage
from .stored_object import StoredObject

log = get_logger("storage")

_AT_ONCE = 8
# As many failures one after the other, with no file stored meanwhile, are the storage's, not the files'.
_MOST_FAILURES = 8
_PROGRESS_INTERVAL_S = 10.0
_NAMED_FILES = 5
_VERSION_SHOWN = 100  # characters; the sender of an event writes it
# An event's source and the kinds of provider that may hold its object, the likeliest first: other servers than Amazon's
# send `aws:s3` too, and Ceph can be defined as either.
_KINDS = {
    "minio": ("minio", "s3"),
    "s3": ("s3", "minio"),
    "ceph": ("s3", "minio"),
    "onedata": ("onedata",),
    "webdav": ("webdav",),
}
# The certificates that a system trusts: Debian, Alpine; Fedora; openSUSE; Alpine, BSD.
_SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


class Watcher(Protocol):
    """Somebody who looks on, such as a progress bar."""

    def begin(self, verb: str, files: int, size_bytes: int | None) -> None:
        """``verb``: ``fetching``, ``storing``. ``size_bytes``: of all files; None: not known."""

    def moved(self, count: int) -> None: ...
    def file_done(self) -> None: ...
    def end(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Source:
    """Where an event's object is. ``version``: the id of the version that the event reports, or ""."""

    provider: str
    location: str
    version: str = ""

    def __str__(self) -> str:
        version = f" (version {self.version[:_VERSION_SHOWN]})" if self.version else ""
        return f"{self.provider}:{self.location}{version}"


class Transfers:
    """All transfers of one server or job.

    Args:
        timeout_s: the longest silence of a storage, and how long its failures are tried again.
        environ: the image's; of it ``SSL_CERT_FILE`` is read.
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
        self._timeout_s = timeout_s
        self._ca_bundle = environ.get("SSL_CERT_FILE")
        self._metrics = metrics
        metrics.expect_transfers(storages.providers)
        self._watcher = watcher
        self._opened: dict[str, Storage] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)

    @property
    def has_providers(self) -> bool:
        """Does the service definition name any storage provider?"""
        return bool(self._storages.providers or self._storages.unusable)

    def knows(self, kind: str) -> bool:
        """Does the service definition name a storage provider that could hold an object of this kind?"""
        return bool(self._of_kinds(_KINDS[kind]))

    def why_unusable(self, stored: StoredObject, *, is_trusted: bool) -> str:
        """Return why an event's record cannot be processed, whatever the service is; "" if it can.

        Args:
            is_trusted: the event comes from the platform, as a job's.
        """
        return stored.fault or _why_leads_elsewhere(stored, is_trusted=is_trusted)

    def source_of(self, stored: StoredObject, named: str, *, is_trusted: bool) -> Source | None:
        """Return the place of an event's object that is usable; None if no ``input`` of the service covers it.

        An object that no input covers is not fetched. Otherwise, with a notification for a whole bucket, the service
        would process its own outputs for ever, and callers could read all that the function's credentials can.

        Args:
            named: the provider that a delegated event names, or "".
            is_trusted: the event comes from the platform, as a job's. It is fetched from the provider that it names,
                and from the likeliest one if the service has no input at all.

        Raises:
            StorageError: the provider that the event names is not defined; a trusted event is in a storage that is not
                defined.
        """
        kinds = _KINDS[stored.kind]
        provider = self._resolved(named, kinds) if named else None
        if named and provider is None:
            known = ", ".join(self._of_kinds(kinds)) or "none"
            raise StorageError(
                f"the event names the storage provider {named[:100]!r}, which is not among storage_providers of the "
                f"service definition; of its kind are defined: {known}"
            )
        covering = [
            place
            for place in self._storages.inputs
            if self._covers(place, stored, kinds) and provider in (None, place.provider)
        ]
        if not covering and not (is_trusted and (named or not self._storages.inputs)):
            return None
        if provider is None and covering:
            provider = covering[0].provider
        if provider is None:
            provider = self._likeliest(stored, kinds)
        return Source(provider, self._location(provider, stored, covering), stored.version)

    def _covers(self, place: Place, stored: StoredObject, kinds: Sequence[str]) -> bool:
        kind = place.provider.partition(".")[0]
        if kind not in kinds:
            return False
        if kind == "webdav":
            # dCache tells the name alone; the path is the input's.
            return True
        if kind == "onedata":
            known = self._storages.providers.get(place.provider)
            return known is None or (
                known.space == stored.container and _is_below(stored.key, place.path.removeprefix(known.space + "/"))
            )
        return _is_below(f"{stored.container}/{stored.key}", place.path)

    def _of_kinds(self, kinds: Sequence[str]) -> list[str]:
        names = [*self._storages.providers, *self._storages.unusable]
        return [name for kind in kinds for name in names if name.partition(".")[0] == kind]

    def _resolved(self, named: str, kinds: Sequence[str]) -> str | None:
        """The provider of a name: ``minio.default``, ``default``, or ``minio``, whose id is ``default`` then."""
        for name in self._of_kinds(kinds):
            if named in (name, name.partition(".")[2]) or f"{named}.default" == name:
                return name
        return None

    def _likeliest(self, stored: StoredObject, kinds: Sequence[str]) -> str:
        known = self._of_kinds(kinds)
        for name in known:
            if name.endswith(".default"):
                return name
        if len(known) == 1:
            return known[0]
        found = f"several could be meant: {', '.join(known)}" if known else "none of its kind is defined"
        raise StorageError(
            f"the event tells of {_object_name(stored)}, but not in which storage provider, and {found}; "
            "name it in an input of the service definition"
        )

    def _location(self, provider: str, stored: StoredObject, covering: Sequence[Place]) -> str:
        if stored.kind != "webdav":
            return f"{stored.container}/{stored.key}"
        paths = [place.path for place in covering if place.provider == provider]
        return "/".join(filter(None, [paths[0] if paths else "", stored.key.strip("/")]))

    async def fetch(self, source: Source, held: HeldInput, *, most_bytes: int, call_id: str) -> tuple[str, int]:
        """Fetch an object into ``held``, under the last part of its name; return the file's name and size.

        Raises:
            StorageError, InputTooLarge, NoSpace, OSError: as :meth:`Storage.fetch`.
        """
        name = safe_file_name(source.location.rstrip("/").rpartition("/")[2]) or f"event-file-{uuid.uuid4()}"
        file = held.create(name)
        began_s = time.monotonic()
        with self._counted("fetch", source.provider) as count:
            storage = self._storage(source.provider)
            async with self._watched("fetching", 1, None, call_id) as moving, self._slots:
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
        """Does the service store outputs?"""
        return any(place.provider in self._storages.providers for place in self._storages.outputs)

    async def store(self, outputs: Sequence[Output], *, call_id: str) -> None:
        """Store each output where the definition wants it.

        One that fails does not keep the others from being stored; a storage that fails again and again does.

        Raises:
            StoreFailed: not all of them could be stored; it tells which.
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
        async with self._watched("storing", len(work), size_bytes, call_id) as moving, asyncio.TaskGroup() as group:
            for _ in range(min(_AT_ONCE, len(work))):
                group.create_task(self._store_some(storing, moving, call_id))
        duration_s = round(time.monotonic() - began_s, 6)
        if not storing.not_stored:
            log.info("outputs stored", call_id=call_id, files=len(work), size_bytes=size_bytes, duration_s=duration_s)
            return
        for where, reason in list(storing.not_stored.items())[:100]:
            log.error("output not stored", call_id=call_id, target=where, reason=reason)
        raise StoreFailed(_told(storing.not_stored, len(work)), stored=storing.stored, not_stored=storing.not_stored)

    async def _store_some(self, storing: _Storing, moving: _Moving, call_id: str) -> None:
        for item in storing.left:
            provider = item.place.provider
            where = f"{provider}:{printable(item.location)}"
            if storing.failures.get(provider, 0) >= _MOST_FAILURES:
                storing.not_stored[where] = "not tried any more, after so many failures"
                continue
            if not _is_unicode(item.location):
                storing.not_stored[where] = (
                    "its name is not UTF-8, and a storage takes no other; rename it in the script"
                )
                continue
            try:
                with self._counted("store", provider) as count:
                    storage = self._storage(provider)
                    async with self._slots:
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
        """Close connections to storages. No transfer may be under way."""
        while self._opened:
            _, storage = self._opened.popitem()
            await storage.close()

    def _storage(self, name: str) -> Storage:
        if name not in self._opened:
            if name in self._storages.unusable:
                raise StorageError(f"{name} cannot be used: {self._storages.unusable[name]}")
            provider = self._storages.providers[name]
            ca_file = provider.ca_file or self._ca_bundle or _system_bundle()
            self._opened[name] = _open(provider, self._timeout_s, ca_file if provider.verify else None)
        return self._opened[name]

    @contextlib.contextmanager
    def _counted(self, direction: str, provider: str) -> Iterator[Callable[[int], None]]:
        """Count a transfer, however it ends; the function lent takes the bytes of one that ended well."""
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

    @contextlib.asynccontextmanager
    async def _watched(self, verb: str, files: int, size_bytes: int | None, call_id: str) -> AsyncIterator[_Moving]:
        """Tell of a transfer's progress, while it lasts."""
        moving = _Moving(verb, files, size_bytes, self._watcher)
        if self._watcher is not None:
            self._watcher.begin(verb, files, size_bytes)
        telling = asyncio.create_task(_tell(moving, call_id))
        try:
            yield moving
        finally:
            telling.cancel()
            if self._watcher is not None:
                self._watcher.end()


@dataclass(frozen=True, slots=True)
class _Item:
    output: Output
    place: Place
    provider: Provider

    @property
    def location(self) -> str:
        return "/".join(filter(None, [self.provider.space, self.place.path, self.output.name]))


@dataclass(slots=True)
class _Storing:
    """What becomes of one invocation's outputs. ``failures``: failures in a row, by provider."""

    left: Iterator[_Item]
    stored: list[str] = field(default_factory=list)
    not_stored: dict[str, str] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Moving:
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


async def _tell(moving: _Moving, call_id: str) -> None:
    """Log how far a long transfer is."""
    while True:
        await asyncio.sleep(_PROGRESS_INTERVAL_S)
        fields = {"files_done": moving.files_done, "files": moving.files, "size_bytes": moving.size_bytes}
        known = {name: value for name, value in fields.items() if value is not None}
        log.info("transfer goes on", call_id=call_id, doing=moving.verb, moved_bytes=moving.moved_bytes, **known)


def _open(provider: Provider, timeout_s: float, ca_file: str | None) -> Storage:
    if provider.kind in ("minio", "s3"):
        from .s3 import S3

        return S3(provider, timeout_s=timeout_s, ca_file=ca_file)
    if provider.kind == "webdav":
        from .webdav import WebDav

        return WebDav(provider, timeout_s=timeout_s, ca_file=ca_file)
    from .onedata import Onedata

    return Onedata(provider, timeout_s=timeout_s, ca_file=ca_file)


def _system_bundle() -> str | None:
    """The certificates that the image trusts, else those that this program brings along."""
    for path in _SYSTEM_BUNDLES:
        if os.access(path, os.R_OK):
            return path
    import certifi

    return certifi.where()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _why_leads_elsewhere(stored: StoredObject, *, is_trusted: bool) -> str:
    """Return why a server could look for the object outside of the folder that it seems to be in, or ""."""
    if "/" in stored.container or stored.container in (".", ".."):
        return "its bucket has a name that no bucket can have"
    # To S3 a key is no path, but a server behind a proxy may walk it up.
    if ".." in stored.key.split("/") and (not is_trusted or stored.kind in ("onedata", "webdav")):
        return "its key has a .. that leads out of its folder"
    return ""


def _is_below(path: str, directory: str) -> bool:
    return not directory or path == directory or path.startswith(directory.rstrip("/") + "/")


def _object_name(stored: StoredObject) -> str:
    return printable(stored.location)[:200]


def _told(not_stored: Mapping[str, str], count: int) -> str:
    named = [f"{where}: {reason}" for where, reason in list(not_stored.items())[:_NAMED_FILES]]
    more = f"; and {len(not_stored) - _NAMED_FILES} more" if len(not_stored) > _NAMED_FILES else ""
    return f"{len(not_stored)} of {count} outputs could not be stored: {'; '.join(named)}{more}"
