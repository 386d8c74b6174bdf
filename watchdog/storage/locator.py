"""Where the object of an event is: which storage provider, and which input of the service covers it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import StorageError
from ..logs.text import printable
from ..settings.storage_providers import Place, Storages
from .stored_object import StoredObject

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


@dataclass(frozen=True, slots=True)
class Source:
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
