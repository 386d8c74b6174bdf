"""Read the settings once at the start, and find every problem with them.

``Settings`` (``declarations.py``) is the one declaration. Environment variables, flags, the help of the command line,
the tables of the docs and ``watchdog check`` follow from it. A value comes from the default, the service definition, an
environment variable or a flag; a later one of these wins. Only the value that wins is checked, so a value without
effect cannot stop the start.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ..errors import ConfigError
from .checks import check_metrics_port, check_script, check_tmp_dir, check_unknown_names, check_warm
from .declarations import SETTINGS, Settings
from .definition_source import read_service_definition, read_storages
from .openfaas_names import IGNORED_NAMES, OF_CLASSIC_FUNCTIONS, check_fprocess, check_openfaas_names
from .reading import Reading
from .service_definition import ServiceDefinition
from .source import DEFAULT, SettingSource
from .storage_providers import Storages
from .token_file import check_auth_all, read_token_file


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is known at the start. Do not use it before ``require_valid`` has accepted it.

    ``sources``: the source of each setting, by the setting's name. ``storages``: where inputs of events are fetched and
    outputs are stored. ``ignored_names``: variables that are accepted without effect; the server logs their names once
    at DEBUG. ``script_text``: the decoded text of ``SCRIPT``. ``secret_names``: variables of the environment that no
    script may see. ``service_name``: the service's name on the platform or in the service definition. ``unread``: the
    settings and variables that were given but could not be read, so that their effect is not known.
    """

    settings: Settings
    service: ServiceDefinition | None
    storages: Storages
    sources: dict[str, SettingSource]
    problems: list[str]
    warnings: list[str]
    ignored_names: list[str]
    script_text: bytes | None
    secret_names: frozenset[str]
    service_name: str
    unread: frozenset[str]

    def is_set(self, name: str) -> bool:
        """Return whether a source other than the default sets this setting."""
        return self.sources[name] != DEFAULT

    def __repr__(self) -> str:
        """Return a summary without the script's text, which may contain secrets."""
        return f"<Configuration {self.settings!r}, {self.service!r}, {len(self.problems)} problems>"


def load(environ: Mapping[str, str], flags: Mapping[str, str]) -> Configuration:
    """Read all settings, the service definition and the file of the token.

    Bad input does not raise: faults are collected in ``problems``, and a setting with a bad value gets its default.

    Args:
        flags: the texts from the command line, by the name of the setting (``max_queue``).
    """
    reading = Reading(environ, flags)
    reading.read("service_definition")
    service, service_source = read_service_definition(reading)
    reading.read("fprocess")
    check_fprocess(reading)
    check_openfaas_names(reading)
    for name in SETTINGS:
        if name in OF_CLASSIC_FUNCTIONS and reading.values["fprocess"] is None:
            reading.leave_out(name)
        elif name not in ("service_definition", "fprocess"):
            reading.read(name)
    check_script(reading)
    check_warm(reading)
    check_metrics_port(reading)
    check_tmp_dir(reading)
    read_token_file(reading)
    check_auth_all(reading)
    check_unknown_names(reading)
    storages = read_storages(reading, service, service_source)
    script_text = reading.decode("SCRIPT", "the script's text", "base64 -w0 script.sh")

    return Configuration(
        settings=Settings(**{SETTINGS[name].attribute: value for name, value in reading.values.items()}),
        service=service,
        storages=storages,
        sources={name: reading.sources[name] for name in SETTINGS},
        problems=reading.problems,
        warnings=reading.warnings,
        ignored_names=reading.ignored_names + [name for name in environ if name.lower() in IGNORED_NAMES],
        script_text=script_text,
        secret_names=frozenset(reading.secret_names),
        service_name=(
            environ.get("K_SERVICE")
            or environ.get("OSCAR_SERVICE_NAME")
            or (service.name if service is not None else "")
            or "oscar-watchdog"
        )
        # A name that is not UTF-8 could not be sent in headers, documents and spans.
        .encode("utf-8", "backslashreplace")
        .decode(),
        unread=frozenset(reading.unread),
    )


def require_valid(configuration: Configuration) -> Configuration:
    """Return the configuration, or raise ``ConfigError`` with all its problems."""
    if configuration.problems:
        raise ConfigError(configuration.problems)
    return configuration


def without_outputs(configuration: Configuration) -> Configuration:
    """Return the same configuration without outputs, so that nothing is stored."""
    storages = msgspec.structs.replace(configuration.storages, outputs=[])
    return msgspec.structs.replace(configuration, storages=storages)
