"""Read the service definition (FDL), in which the author of a function describes it for the platform.

It is the flat service object that OSCAR mounts, or the document that authors write, with one service in it::

    functions:
      oscar:
        - my-cluster:
            name: plants
            script: script.sh
            ...
    storage_providers: {...}

Only the fields that concern a running function are read. The others are for the platform.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from ..system.pattern import pattern

# Fields that are accepted without effect, because they concern the platform, or the supervisor on other platforms.
# Sources: OSCAR's `pkg/types/service.go` of versions 2 to 4, its `docs/fdl.md` and examples, and the documentation of
# faas-supervisor.
# fmt: off
_PLATFORM_FIELDS = frozenset({
    "alpine", "allowed_users", "annotations", "bucket_list", "cluster_id", "clusters", "container", "cpu",
    "created_at", "delegation", "enable_gpu", "enable_sgx", "ephemeral_storage_request", "execution_mode", "expose",
    "expose_options", "federation", "image", "image_prefetch", "image_pull_secrets", "init_script",
    "interlink_node_name", "isolation_level", "kserve", "labels", "memory", "mount", "namespace", "owner",
    "propagate_token", "replicas", "rescheduler_threshold", "supervisor", "synchronous", "token", "total_cpu",
    "total_memory", "visibility", "vo", "volume", "volume_status", "workspace",
})
# fmt: on
_SECTIONS = frozenset({"environment", "input", "output", "storage_providers"})
_OWN_FIELDS = frozenset({"name", "log_level", "script", "file_stage_in"}) | _SECTIONS
_SECRET_SECTIONS = ("secrets", "Secrets")
_VARIABLE_SECTIONS = ("variables", "Variables", *_SECRET_SECTIONS)
_STORAGE_FIELDS = frozenset({"storage_provider", "path", "prefix", "suffix"})
# The kernel's MAX_ARG_STRLEN (execve(2)). It includes the name, `=` and the NUL at the end.
_LONGEST_VARIABLE_BYTES = 131_072
# str() refuses integers with more than 4300 digits, and `!!int 0x…` can make such an integer.
_MOST_DECIMAL_BITS = 14_000


class StoragePath(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of ``input`` or ``output``.

    ``storage_provider``: as written, such as ``minio.default``. ``path``: as written, below the provider's root.
    ``prefix``, ``suffix``: the beginnings and ends of names that the entry is for; an empty list is for all names. A
    single text in the definition becomes a list of one.
    """

    storage_provider: str
    path: str = ""
    prefix: list[str] = []
    suffix: list[str] = []


class ServiceDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a service definition that concern a running function.

    ``script_path``: relative to the document's directory; None for a flat object, in which ``script`` is the script's
    text. ``variables``: for the script's environment, without secrets whose values the definition does not have.
    ``storage_providers``: as written, with credentials.
    """

    name: str = ""
    log_level: str = ""
    script_path: str | None = None
    variables: dict[str, str] = {}
    inputs: list[StoragePath] = []
    outputs: list[StoragePath] = []
    storage_providers: dict[str, Any] = {}
    file_stage_in: bool = False

    def __repr__(self) -> str:
        """Return a summary without variables and storage providers. They have secrets, and a repr may get into logs."""
        return f"<ServiceDefinition {self.name!r}: {len(self.inputs)} inputs, {len(self.outputs)} outputs>"


class Parsed(msgspec.Struct, frozen=True):
    """A parsed document. ``service`` is None if there are problems. Each problem and warning names origin and field."""

    service: ServiceDefinition | None
    problems: list[str]
    warnings: list[str]


def parse(text: bytes, origin: str) -> Parsed:
    """Read a service definition. ``origin``: its name in problems. Bad input does not raise.

    Problems never show values, because a credential may be in any place by mistake.
    """
    reader = _Reader(origin)
    try:
        document, duplicates = _load_yaml(text)
    except _BadYaml as error:
        reader.problem("", str(error))
        return Parsed(None, reader.problems, reader.warnings)
    for key, lines in duplicates:
        distinct = list(dict.fromkeys(lines))
        where = " and ".join(filter(None, (", ".join(map(str, distinct[:-1])), str(distinct[-1]))))
        where = f"{'lines' if len(distinct) > 1 else 'line'} {where}"
        reader.warn(_name(key), f"occurs {len(lines)} times in one object, in {where}; only the last one counts")
    service = reader.document(document)
    return Parsed(None if reader.problems else service, reader.problems, reader.warnings)


_SECRET_FIELD = pattern(rb"\b(storage_providers|clusters|token)[\"']?\s*:")


def holds_secrets(text: bytes) -> bool:
    """Return whether a text looks like a service definition with credentials. Its YAML may have errors."""
    return _SECRET_FIELD.search(text) is not None if text else False


class _Reader:
    """The reader of one document, which collects problems and warnings."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def problem(self, field: str, text: str) -> None:
        self.problems.append(f"service definition {self.origin}: {field + ' ' if field else ''}{text}")

    def warn(self, field: str, text: str) -> None:
        self.warnings.append(f"service definition {self.origin}: {field} {text}")

    def document(self, document: object) -> ServiceDefinition | None:
        if not isinstance(document, dict) or not document:
            self.problem(
                "",
                f"is {_kind(document)}; expected a service object or a document with `functions: oscar:`",
            )
            return None
        if "functions" not in document:
            return self.service(document, "", whole=False)

        functions = self.mapping(document["functions"], "functions")
        entries = self.sequence(functions.get("oscar"), "functions.oscar")
        services = []
        for index, entry in enumerate(entries):
            place = f"functions.oscar[{index}]"
            for cluster, service in self.mapping(entry, place).items():
                services.append((f"{place}.{_name(cluster)}", service))
        if self.problems:
            return None
        if len(services) != 1:
            places = ", ".join(place for place, _ in services) or "none"
            self.problem("functions.oscar", f"has {len(services)} services ({places}); expected one service")
            return None
        for key in document:
            if key not in ("functions", "storage_providers", "clusters"):
                self.warn(_name(key), "is not known, so it is ignored")
        place, service = services[0]
        return self.service(
            self.mapping(service, place),
            place + ".",
            whole=True,
            shared_providers=self.mapping(document.get("storage_providers"), "storage_providers"),
        )

    def service(
        self,
        fields: dict[Any, Any],
        place: str,
        *,
        whole: bool,
        shared_providers: dict[Any, Any] | None = None,
    ) -> ServiceDefinition:
        for key in fields:
            if key not in _OWN_FIELDS and key not in _PLATFORM_FIELDS:
                self.warn(place + _name(key), "is not known, so it is ignored")
        script = self.text(fields.get("script"), place + "script")
        providers = self.mapping(fields.get("storage_providers"), place + "storage_providers")
        return ServiceDefinition(
            name=self.text(fields.get("name"), place + "name"),
            log_level=self.text(fields.get("log_level"), place + "log_level"),
            script_path=script if whole and script else None,
            variables=self.variables(fields.get("environment"), place + "environment"),
            inputs=self.storage_paths(fields.get("input"), place + "input"),
            outputs=self.storage_paths(fields.get("output"), place + "output"),
            storage_providers={**(shared_providers or {}), **providers},
            file_stage_in=self.truth(fields.get("file_stage_in"), place + "file_stage_in"),
        )

    def variables(self, value: object, place: str) -> dict[str, str]:
        variables: dict[str, str] = {}
        for section, content in self.mapping(value, place).items():
            if section not in _VARIABLE_SECTIONS:
                self.warn(f"{place}.{_name(section)}", "is not known, so it is ignored")
                continue
            for name, variable in self.mapping(content, f"{place}.{section}").items():
                field = f"{place}.{section}.{_name(name)}"
                if isinstance(name, bool):  # `true:` is a valid name of a variable, too
                    name = _text_of(name)
                if not isinstance(name, str) or not name or "=" in name or "\0" in name:
                    self.problem(field, "is not a variable's name; expected text without '=' and NUL, not empty")
                    continue
                text = self.text(variable, field)
                if not text and section in _SECRET_SECTIONS:
                    # OSCAR mounts definitions with empty secrets (`pkg/handlers/create.go`). Their values are in the
                    # pod's environment, and must not be replaced.
                    continue
                if "\0" in text:
                    self.problem(field, "has a NUL character in its value, which a variable cannot have")
                if len(os.fsencode(name)) + len(os.fsencode(text)) + 2 > _LONGEST_VARIABLE_BYTES:
                    self.problem(
                        field, f"is longer than {_LONGEST_VARIABLE_BYTES} bytes, the limit of Linux for a variable"
                    )
                variables[name] = text
        return variables

    def storage_paths(self, value: object, place: str) -> list[StoragePath]:
        paths = []
        for index, entry in enumerate(self.sequence(value, place)):
            here = f"{place}[{index}]"
            fields = self.mapping(entry, here)
            if entry is not None and not isinstance(entry, dict):
                continue
            for key in fields:
                if key not in _STORAGE_FIELDS:
                    self.warn(f"{here}.{_name(key)}", "is not known, so it is ignored")
            provider = self.text(fields.get("storage_provider"), here + ".storage_provider")
            if not fields.get("storage_provider"):
                self.problem(here + ".storage_provider", "is missing; expected text like minio.default")
            paths.append(
                StoragePath(
                    storage_provider=provider,
                    path=self.text(fields.get("path"), here + ".path"),
                    prefix=self.texts(fields.get("prefix"), here + ".prefix"),
                    suffix=self.texts(fields.get("suffix"), here + ".suffix"),
                )
            )
        return paths

    def texts(self, value: object, place: str) -> list[str]:
        if value is not None and not isinstance(value, (list, dict)):
            value = [value] if value != "" else []
        return [self.text(item, f"{place}[{index}]") for index, item in enumerate(self.sequence(value, place))]

    def text(self, value: object, place: str) -> str:
        if isinstance(value, (dict, list, bytes)):
            self.problem(place, f"is {_kind(value)}; expected text")
            return ""
        return _text_of(value)

    def truth(self, value: object, place: str) -> bool:
        if value is None or isinstance(value, bool):
            return bool(value)
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        self.problem(place, f"is {_kind(value)}; expected true or false")
        return False

    def mapping(self, value: object, place: str) -> dict[Any, Any]:
        if value is None or isinstance(value, dict):
            return value or {}
        self.problem(place, f"is {_kind(value)}; expected an object")
        return {}

    def sequence(self, value: object, place: str) -> list[Any]:
        if value is None or isinstance(value, list):
            return value or []
        self.problem(place, f"is {_kind(value)}; expected a list")
        return []


def _text_of(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > _MOST_DECIMAL_BITS:
        return hex(value)
    return str(value)


def _name(key: object) -> str:
    """Return a key of the document as short printable text."""
    text = _text_of(key)
    return text if text.isprintable() and 0 < len(text) <= 100 else ascii(text[:100])


def _kind(value: object) -> str:
    if value is None or value == {}:
        return "empty"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return "true or false" if isinstance(value, bool) else "text"


def _duplicates_of(node: Any) -> Iterator[tuple[str, list[int]]]:
    lines: dict[tuple[str, str], list[int]] = {}
    for key, _ in node.value:
        if isinstance(key.value, str) and not key.tag.endswith(":merge"):
            value = key.value.lower() if key.tag.endswith(":bool") else key.value
            lines.setdefault((key.tag, value), []).append(key.start_mark.line + 1)
    for (_, name), found in lines.items():
        if len(found) > 1:
            yield name, found


class _BadYaml(Exception):
    """The text is not YAML. The message names the line if it is known."""


def _load_yaml(text: bytes) -> tuple[object, list[tuple[str, list[int]]]]:
    """Return the document, and the keys that occur more than once in one object, each with its lines."""
    # Imported here, because most functions have no service definition and should not wait for this import.
    import yaml

    safe_loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    duplicates: list[tuple[str, list[int]]] = []

    class Loader(safe_loader):  # type: ignore[misc]  # the base class is chosen when the program runs
        """A loader for which scalars are text as written, except null, true and false.

        The platform reads variables into Go strings, so `0755`, `1.10`, `no` and `2024-01-01` reach a script
        as the author wrote them. YAML 1.1 would change them to 493, 1.1, False and a date.
        """

        def __init__(self, stream: bytes) -> None:
            super().__init__(stream)
            self._seen: dict[int, Any] = {}

        def flatten_mapping(self, node: Any) -> None:
            """Look for duplicate keys when PyYAML sees an object for the first time.

            At that time the object is as its author wrote it. PyYAML then adds the keys of `<<` to the node.
            """
            if id(node) not in self._seen:
                self._seen[id(node)] = node
                duplicates.extend(_duplicates_of(node))
            super().flatten_mapping(node)

    Loader.yaml_implicit_resolvers = {
        first: [(tag, expression) for tag, expression in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in safe_loader.yaml_implicit_resolvers.items()
    }
    truth = re.compile("^(?:true|True|TRUE|false|False|FALSE)$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", truth, list("tTfF"))
    try:
        return yaml.load(text, Loader=Loader), sorted(duplicates, key=lambda found: found[1])
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise _BadYaml(f"is not YAML: {line}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise _BadYaml(f"is not YAML: {' '.join(str(error).split())}") from None
    except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError) as error:
        # PyYAML's constructors of explicit tags raise these (`!!int x`, `!!bool x`, `!!timestamp x`).
        raise _BadYaml(f"has a value that does not fit its tag: {type(error).__name__}") from None
