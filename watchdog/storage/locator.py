"""Find the storage provider of an event's object, and the input of the service that covers the object."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..errors import StorageError
from ..logs.text import printable
from ..settings.storage_providers import Place, Storages
from .stored_object import StoredObject

_VERSION_SHOWN = 100  # characters; the sender of an event may write any id
# The kinds of provider that may have the object of an event, by the source of the event; the most likely kind is first.
# Servers other than Amazon's also send `aws:s3`, and a definition may call Ceph either `s3` or `minio`.
_KINDS = {
    "minio": ("minio", "s3"),
    "s3": ("s3", "minio"),
    "ceph": ("s3", "minio"),
    "onedata": ("onedata",),
    "webdav": ("webdav",),
}


class Source(msgspec.Struct, frozen=True):
    """Where an event's object is. ``version``: the id of the version that the event reports, or ""."""

    provider: str
    location: str
    version: str = ""

    def __str__(self) -> str:
        version = f" (version {self.version[:_VERSION_SHOWN]})" if self.version else ""
        return f"{self.provider}:{self.location}{version}"


class Locator:
    """Finds the objects of events in the storages of one service definition."""

    def __init__(self, storages: Storages) -> None:
        self._storages = storages

    @property
    def has_providers(self) -> bool:
        """Return whether the service definition names any storage provider."""
        return bool(self._storages.providers or self._storages.unusable)

    def knows(self, kind: str) -> bool:
        """Return whether the service definition names a storage provider that could have an object of this kind."""
        return bool(self._of_kinds(_KINDS[kind]))

    def why_unusable(self, stored: StoredObject, *, is_trusted: bool) -> str:
        """Return why no service can process this record of an event; "" if a service can.

        Args:
            is_trusted: whether the event comes from the platform, like the event of a job.
        """
        return stored.fault or _why_leads_elsewhere(stored, is_trusted=is_trusted)

    def source_of(self, stored: StoredObject, named: str, *, is_trusted: bool) -> Source | None:
        """Return where the object of a usable record is; None if no ``input`` of the service covers the object.

        An object that no input covers is not fetched. Otherwise, with a notification for a whole bucket, the service
        would process its own outputs for ever, and callers could read everything that the function's credentials can
        read. The object of a trusted event is also fetched if the event names its provider, or if the service has no
        input at all. In the second case it is fetched from the most likely provider.

        Args:
            named: the provider that a delegated event names, or "".
            is_trusted: whether the event comes from the platform, like the event of a job.

        Raises:
            StorageError: the provider that the event names is not defined. Or the event is trusted, and its provider
                is not defined or not clear.
        """
        kinds = _KINDS[stored.kind]
        provider = self._resolved(named, kinds) if named else None
        if named and provider is None:
            known = ", ".join(self._of_kinds(kinds)) or "none"
            raise StorageError(
                f"the event names the storage provider {named[:100]!r}, which is not in storage_providers of the "
                f"service definition; providers for this kind of event: {known}"
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
            # dCache sends only the name of the file, whose directory is the path of the input.
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
        """Return the provider that a name means. ``default`` and ``minio`` may mean ``minio.default``."""
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
        found = f"several are possible: {', '.join(known)}" if known else "no provider of its kind is defined"
        raise StorageError(
            f"the event reports {_object_name(stored)}, but does not name the storage provider, and {found}; "
            "name the provider in an input of the service definition"
        )

    def _location(self, provider: str, stored: StoredObject, covering: Sequence[Place]) -> str:
        if stored.kind != "webdav":
            return f"{stored.container}/{stored.key}"
        paths = [place.path for place in covering if place.provider == provider]
        return "/".join(filter(None, [paths[0] if paths else "", stored.key.strip("/")]))


def _why_leads_elsewhere(stored: StoredObject, *, is_trusted: bool) -> str:
    """Return why a server could look for the object outside its folder; "" if no server could."""
    if "/" in stored.container or stored.container in (".", ".."):
        return "its bucket has an impossible name"
    # For S3 a key is not a path, but a server behind a proxy may resolve the `..` in it.
    if ".." in stored.key.split("/") and (not is_trusted or stored.kind in ("onedata", "webdav")):
        return "its key has a .. that leads out of its folder"
    return ""


def _is_below(path: str, directory: str) -> bool:
    return not directory or path == directory or path.startswith(directory.rstrip("/") + "/")


def _object_name(stored: StoredObject) -> str:
    return printable(stored.location)[:200]
