"""Read the storage providers of a service definition, with their credentials, and check each.

The fields are those of OSCAR (``pkg/types/storage.go`` of version 4)::

    storage_providers:
      minio:   {ID: {endpoint, access_key, secret_key, region, verify}}
      s3:      {ID: {access_key, secret_key, region}}          # also endpoint, verify
      webdav:  {ID: {hostname, login, password}}               # dCache is one; also verify
      onedata: {ID: {oneprovider_host, token, space}}          # also verify

Each may also have ``ca_file``. OSCAR writes ``hidden`` in place of the keys of the default MinIO
(``pkg/handlers/create.go``). It mounts the real keys into jobs: ``<secrets_dir>/minio.<ID>/accessKey`` and
``secretKey``. Mounted keys override keys of the definition.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from ..system.files import small_file
from ..system.pattern import pattern
from .service_definition import ServiceDefinition, StoragePath

KINDS = ("minio", "s3", "webdav", "onedata")


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """One provider with all that is needed to use it.

    ``endpoint``: ``https://host:port``, for WebDAV with the path of its root; ``""`` for Amazon's own S3.
    ``user``, ``secret``: access and secret key, or login and password; for Onedata ``secret`` is the token.
    ``space``: the space of Onedata. ``ca_file``: the file of trusted certificates; None for those of the system.
    ``verify``: False to accept any certificate.
    """

    kind: str
    id: str
    endpoint: str
    user: str = ""
    secret: str = ""
    region: str = ""
    space: str = ""
    verify: bool = True
    ca_file: str | None = None

    @property
    def name(self) -> str:
        """Return the name as definitions write it: ``minio.default``."""
        return f"{self.kind}.{self.id}"

    def __str__(self) -> str:
        return f"{self.name} at {self.endpoint or 'Amazon S3'}"

    def __repr__(self) -> str:
        """Return a summary without credentials."""
        return f"<Provider {self}>"


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of ``input`` or ``output``.

    ``provider``: its full name, such as ``minio.default``. ``path``: without slashes at its ends; for S3 and MinIO the
    bucket is its first part. ``prefix``, ``suffix``: the beginnings and ends of names that the entry is for; an empty
    list is for all names.
    """

    provider: str
    path: str
    prefix: list[str] = []
    suffix: list[str] = []

    def takes(self, name: str) -> bool:
        """Return whether a file with this name, relative to ``TMP_OUTPUT_DIR``, is stored here."""
        return (not self.prefix or name.startswith(tuple(self.prefix))) and (
            not self.suffix or name.endswith(tuple(self.suffix))
        )

    def __str__(self) -> str:
        return f"{self.provider}:{self.path}"


class Storages(msgspec.Struct, frozen=True, kw_only=True):
    """The storages of one service.

    ``providers``: the usable providers by name. ``unusable``: why the other defined providers cannot be used, by name.
    ``inputs``, ``outputs``: each provider of these is in ``providers`` or ``unusable``.
    """

    providers: dict[str, Provider] = {}
    unusable: dict[str, str] = {}
    inputs: list[Place] = []
    outputs: list[Place] = []

    def __repr__(self) -> str:
        return f"<Storages {', '.join([*self.providers, *self.unusable])}>"

    def withheld(self) -> list[str]:
        """Return a line for each entry that cannot be used although the definition has no fault."""
        return [
            f"{what} {place}: {self.unusable[place.provider]}"
            for what, places in (("input", self.inputs), ("output", self.outputs))
            for place in places
            if place.provider in self.unusable
        ]


def read(service: ServiceDefinition, secrets_dir: str) -> tuple[Storages, list[str], list[str]]:
    """Return the storages of a definition, its problems and its warnings. Each is one line without credentials.

    The providers that ``input`` or ``output`` name must be complete. Others may be incomplete, as long as no event
    names them.
    """
    reading = _Reading(service, secrets_dir)
    inputs = [place for index, entry in enumerate(service.inputs) if (place := reading.place("input", index, entry))]
    outputs = [place for index, entry in enumerate(service.outputs) if (place := reading.place("output", index, entry))]
    reading.report_unusable_entries()
    for kind, ids in reading.defined.items():
        for provider_id in ids:
            reading.complete(kind, provider_id)
    for kind in reading.foreign:
        hint = f"; {_NO_RUCIO}" if kind == "rucio" else f"; known kinds: {', '.join(KINDS)}"
        reading.warnings.append(f"storage_providers.{kind} is not offered, so it is ignored{hint}")
    reading.warnings += [
        f"output[{index}] ({output}) lies in an input ({given}): each output starts the service again, without end; "
        "use two folders, neither of them inside the other, such as in and out"
        for index, output in enumerate(outputs)
        for given in inputs
        if _feeds(output, given)
    ]
    first, *others = [
        f"input[{index}] ({given})" for index, given in enumerate(inputs) if given.provider.startswith("webdav.")
    ] or [""]
    reading.warnings += [
        f"{other} is not used: events of dCache give only the name of a file, so the server looks for each file in the "
        f"first WebDAV input, {first}; make one service for each directory"
        for other in others
    ]
    storages = Storages(providers=reading.providers, unusable=reading.unusable, inputs=inputs, outputs=outputs)
    return storages, reading.problems, reading.warnings


def _feeds(output: Place, given: Place) -> bool:
    """Return whether the storage reports files of the output as new objects of the input."""
    if output.provider != given.provider:
        return False
    # dCache reports the files of one directory; a bucket and a space report all objects below a path.
    is_below = not given.path or output.path.startswith(given.path + "/")
    return output.path == given.path or (is_below and not output.provider.startswith("webdav."))


_ADDED_BY_OSCAR = (
    "OSCAR adds this provider when OSCAR deploys the service; to run the service without OSCAR, give endpoint, "
    "access_key and secret_key in storage_providers.minio.default"
)
_HIDDEN = "hidden"
_KEY_MOST_BYTES = 65536
_CA_MOST_BYTES = 16 * 1024 * 1024
_NO_RUCIO = (
    "datasets of Rucio are neither fetched nor registered here: copy them to S3 or WebDAV, or keep faas-supervisor for "
    "this service"
)
# The fields that have the endpoint, the user and the secret of each kind.
_FIELDS = {
    "minio": ("endpoint", "access_key", "secret_key"),
    "s3": ("endpoint", "access_key", "secret_key"),
    "webdav": ("hostname", "login", "password"),
    "onedata": ("oneprovider_host", "", "token"),
}
_UNSENDABLE = pattern(r"[\x00-\x1f\x7f\ud800-\udfff]")
_OTHER_FIELDS = frozenset({"region", "verify", "ca_file", "space"})


class _Unusable(Exception):
    """A provider cannot be used. ``is_withheld``: the platform withholds its keys, and the definition has no fault."""

    def __init__(self, text: str, *, is_withheld: bool = False) -> None:
        super().__init__(text)
        self.is_withheld = is_withheld


class _Reading:
    def __init__(self, service: ServiceDefinition, secrets_dir: str) -> None:
        self.secrets_dir = secrets_dir
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.providers: dict[str, Provider] = {}
        self.unusable: dict[str, str] = {}
        self._withheld: set[str] = set()
        self.defined: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
        self.foreign: list[str] = []
        self._broken_kinds: set[str] = set()
        # By the name of a provider: what is wrong with it, and the entries that name it.
        self._unusable_entries: dict[str, tuple[str, list[str]]] = {}
        for kind, ids in service.storage_providers.items():
            self._take_kind(str(kind).lower(), ids)

    def _take_kind(self, kind: str, ids: object) -> None:
        if not ids:
            return
        if kind not in KINDS:
            self.foreign.append(_shown(kind))
        elif not isinstance(ids, dict):
            self._broken_kinds.add(kind)
            self.problems.append(f"storage_providers.{kind} is not an object; expected ids like `default`")
        else:
            for provider_id, fields in ids.items():
                # OSCAR 4 puts the kind before the id in delegated events, and some definitions do that, too.
                self.defined[kind][str(provider_id).removeprefix(kind + ".")] = fields

    def place(self, what: str, index: int, entry: StoragePath) -> Place | None:
        """Return an entry of ``input`` or ``output``; None if it has a fault."""
        here = f"{what}[{index}]"
        named = entry.storage_provider.strip()
        try:
            kind, provider_id = self.resolve(named)
        except _Unusable as error:
            kind, _, provider_id = named.partition(".")
            if kind.lower() not in self._broken_kinds:
                name = f"{kind.lower()}.{provider_id or 'default'}" if kind.lower() in KINDS else named
                self._note_unusable(name, f".storage_provider is {_shown(named)!r}: {error}", here)
            return None
        path = entry.path.strip().strip("/")
        if kind in ("minio", "s3") and not path:
            self.problems.append(f"{here}.path is empty; expected a bucket, or a bucket and a folder: photos/in")
            return None
        if any(part in ("", ".", "..") for part in path.split("/") if path) or "\0" in path:
            self.problems.append(f"{here}.path is {_shown(path)!r}; expected a path without empty parts, . and ..")
            return None
        name = f"{kind}.{provider_id}"
        self.complete(kind, provider_id)
        if name in self.unusable and name not in self._withheld:
            self._note_unusable(name, f": {self.unusable[name]}", here)
            return None
        return Place(provider=name, path=path, prefix=entry.prefix, suffix=entry.suffix)

    def _note_unusable(self, provider: str, reason: str, entry: str) -> None:
        self._unusable_entries.setdefault(provider, (reason, []))[1].append(entry)

    def report_unusable_entries(self) -> None:
        """Report each fault of a provider once, with the entries that name the provider."""
        for reason, entries in self._unusable_entries.values():
            others = f" (also {', '.join(entries[1:])})" if len(entries) > 1 else ""
            self.problems.append(entries[0] + reason + others)

    def resolve(self, named: str) -> tuple[str, str]:
        """Return the kind and the id of ``minio.default``, of ``minio``, or of an id that only one kind has."""
        kind, _, provider_id = named.partition(".")
        kind = kind.lower()
        if kind == "rucio":
            raise _Unusable(_NO_RUCIO)
        if kind in KINDS:
            provider_id = provider_id or "default"
            if provider_id not in self.defined[kind]:
                if (kind, provider_id) == ("minio", "default"):
                    raise _Unusable(f"storage_providers does not define it; {_ADDED_BY_OSCAR}")
                known = ", ".join(f"{kind}.{each}" for each in self.defined[kind]) or "none"
                raise _Unusable(f"storage_providers.{kind} has no {_shown(provider_id)!r}; it has: {known}")
            return kind, provider_id
        kinds = [each for each in KINDS if named in self.defined[each]]
        if len(kinds) != 1:
            found = f"{' and '.join(kinds)} each have it" if kinds else "no kind has it"
            raise _Unusable(f"{found}; expected KIND.ID with a kind of {', '.join(KINDS)}, as in minio.default")
        return kinds[0], named

    def complete(self, kind: str, provider_id: str) -> None:
        name = f"{kind}.{provider_id}"
        if name in self.providers or name in self.unusable:
            return
        try:
            self.providers[name] = self._provider(kind, provider_id, self.defined[kind][provider_id])
        except _Unusable as error:
            self.unusable[name] = str(error)
            if error.is_withheld:
                self._withheld.add(name)

    def _provider(self, kind: str, provider_id: str, fields: object) -> Provider:
        place = f"storage_providers.{kind}.{provider_id}"
        if not isinstance(fields, dict):
            raise _Unusable(
                f"{place} is not an object; expected an object with {', '.join(filter(None, _FIELDS[kind]))}"
            )
        texts = {}
        for key, value in fields.items():
            if isinstance(value, (dict, list, bytes)):
                raise _Unusable(f"{place}.{_shown(str(key))} is not text")
            texts[str(key)] = "" if value is None else str(value).strip()
            if key not in _FIELDS[kind] and key not in _OTHER_FIELDS:
                self.warnings.append(f"{place}.{_shown(str(key))} is not known, so it is ignored")
        endpoint_field = _FIELDS[kind][0]
        user, secret = self._credentials(place, kind, provider_id, texts)
        _require_one_line(f"{place}.region", texts.get("region", ""))
        space = texts.get("space", "").strip("/")
        if kind == "onedata" and (not space or "/" in space):
            raise _Unusable(f"{place}.space is {'missing' if not space else 'a path'}; expected the name of a space")
        return Provider(
            kind=kind,
            id=provider_id,
            endpoint=_endpoint(f"{place}.{endpoint_field}", kind, texts.get(endpoint_field, "")),
            user=user,
            secret=secret,
            region=texts.get("region", ""),
            space=space,
            verify=_truth(f"{place}.verify", texts.get("verify", "")),
            ca_file=_readable(f"{place}.ca_file", texts.get("ca_file", "")),
        )

    def _credentials(self, place: str, kind: str, provider_id: str, texts: dict[str, str]) -> tuple[str, str]:
        _, user_field, secret_field = _FIELDS[kind]
        if kind == "minio" and (mounted := self._mounted(provider_id)) is not None:
            return mounted
        user, secret = texts.get(user_field, ""), texts.get(secret_field, "")
        if kind == "minio" and user == secret == _HIDDEN:
            raise _Unusable(
                f"the platform withholds the keys of minio.{provider_id} ({place} has `{_HIDDEN}`) and has not mounted "
                f"them at {self._secret_directory(provider_id)}",
                is_withheld=True,
            )
        if kind == "webdav" and not user and not secret:
            return "", ""
        missing = [field for field, value in ((user_field, user), (secret_field, secret)) if field and not value]
        if missing:
            hint = ""
            if kind == "minio":
                hint = f", or the files accessKey and secretKey in {self._secret_directory(provider_id)}"
            fields = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'}"
            raise _Unusable(f"{place}.{fields} missing; give the missing fields{hint}")
        _require_one_line(f"{place}.{user_field}", user)
        _require_one_line(f"{place}.{secret_field}", secret)
        return user, secret

    def _secret_directory(self, provider_id: str) -> str:
        return os.path.join(self.secrets_dir, f"minio.{provider_id}")

    def _mounted(self, provider_id: str) -> tuple[str, str] | None:
        """Return both keys from the platform's secret; None if it is not mounted."""
        directory = self._secret_directory(provider_id)
        if "/" in provider_id or not os.path.isdir(directory):
            return None
        keys = []
        for name in ("accessKey", "secretKey"):
            path = os.path.join(directory, name)
            try:
                text = small_file(path, _KEY_MOST_BYTES).decode().strip()
            except FileNotFoundError:
                raise _Unusable(f"{path} is missing; the secret must have accessKey and secretKey") from None
            except UnicodeDecodeError:
                raise _Unusable(f"{path} is not UTF-8 text") from None
            except OSError as error:
                raise _Unusable(f"{path} cannot be read: {error.strerror}") from None
            if not text:
                raise _Unusable(f"{path} is empty; the secret must have accessKey and secretKey")
            _require_one_line(path, text)
            keys.append(text)
        return keys[0], keys[1]


def _require_one_line(where: str, text: str) -> None:
    """Raise ``_Unusable`` if HTTP cannot send the text in a header. The error does not show it: it may be a secret."""
    if _UNSENDABLE.search(text):
        raise _Unusable(f"{where} has a line break or another control character (not shown); expected one line of text")


def _endpoint(field: str, kind: str, text: str) -> str:
    if not text and kind == "s3":
        return ""
    wanted = "https://host or https://host:port" + (" or https://host/folder" if kind == "webdav" else "")
    if not text:
        raise _Unusable(f"{field} is missing; expected {wanted}")
    if "://" not in text and kind in ("webdav", "onedata"):
        text = "https://" + text
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise _Unusable(f"{field} is not a URL; expected {wanted}") from None
    path = parts.path.rstrip("/")
    is_wrong = parts.scheme not in ("http", "https") or not parts.hostname or port == 0
    # The text is not shown, because a password in it would get into logs.
    if is_wrong or parts.query or parts.fragment or "@" in parts.netloc or (path and kind != "webdav"):
        raise _Unusable(f"{field} is not the address of a server (not shown); expected {wanted}")
    return f"{parts.scheme}://{parts.netloc}{path}"


def _truth(field: str, text: str) -> bool:
    if text.lower() not in ("", "true", "false"):
        raise _Unusable(f"{field} is {_shown(text)!r}; expected true or false (set a file of certificates as ca_file)")
    return text.lower() != "false"


def _readable(field: str, path: str) -> str | None:
    if not path:
        return None
    try:
        text = small_file(path, _CA_MOST_BYTES)
    except OSError as error:
        raise _Unusable(f"{field} is {_shown(path)!r}, which cannot be read: {error.strerror}") from None
    if b"-----BEGIN CERTIFICATE-----" not in text:
        raise _Unusable(f"{field} is {_shown(path)!r}, which has no certificate; expected a PEM file")
    return path


def _shown(text: str) -> str:
    return text if text.isprintable() and len(text) <= 100 else ascii(text[:100])
