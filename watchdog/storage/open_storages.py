"""Open the storages of a service definition, each one when it is first used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..errors import StorageError
from ..settings.storage_providers import Provider, Storages
from ..system.certificates import system_bundle
from .base import Storage

if TYPE_CHECKING:
    from .onedata import Onedata
    from .s3 import S3
    from .webdav import WebDav


class OpenStorages:
    """The storages that are in use. A storage connects only for its first transfer.

    The code for the inputs and outputs of the service definition is imported at the start. The import takes about
    0.1 s, or 0.5 s with 0.2 CPU. A later import would stop the event loop for this time, so all calls and
    probes would wait. The code of another provider is imported when an event names that provider.

    Args:
        timeout_s: the longest silence of a storage, and how long failed requests are repeated.
        environ: the environment of the image. Only ``SSL_CERT_FILE`` is read from it.
    """

    def __init__(self, storages: Storages, *, timeout_s: float, environ: Mapping[str, str]) -> None:
        self._storages = storages
        self._timeout_s = timeout_s
        self._ca_bundle = environ.get("SSL_CERT_FILE")
        self._opened: dict[str, Storage] = {}
        for place in (*storages.inputs, *storages.outputs):
            if (provider := storages.providers.get(place.provider)) is not None:
                _class_of(provider)

    def get(self, name: str) -> Storage:
        """Return the storage of a provider. Raise ``StorageError`` if the definition of the provider cannot be used."""
        if name not in self._opened:
            if name in self._storages.unusable:
                raise StorageError(f"{name} cannot be used: {self._storages.unusable[name]}")
            provider = self._storages.providers[name]
            ca_file = provider.ca_file or self._ca_bundle or system_bundle()
            self._opened[name] = _open(provider, self._timeout_s, ca_file if provider.verify else None)
        return self._opened[name]

    async def close(self) -> None:
        """Close the connections to storages. No transfer may be running."""
        while self._opened:
            _, storage = self._opened.popitem()
            await storage.close()


def _open(provider: Provider, timeout_s: float, ca_file: str | None) -> Storage:
    return _class_of(provider)(provider, timeout_s=timeout_s, ca_file=ca_file)


def _class_of(provider: Provider) -> type[S3 | WebDav | Onedata]:
    if provider.kind in ("minio", "s3"):
        from .s3 import S3

        return S3
    if provider.kind == "webdav":
        from .webdav import WebDav

        return WebDav
    from .onedata import Onedata

    return Onedata
