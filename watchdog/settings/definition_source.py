"""Read the service definition, and take settings and storages from it."""

from __future__ import annotations

import os

from ..system.files import small_file
from . import service_definition, storage_providers
from .declarations import DEFAULT_SERVICE_DEFINITION, SETTINGS
from .reading import Reading
from .service_definition import ServiceDefinition
from .source import DEFAULT, SettingSource
from .storage_providers import Storages
from .text import in_quotes, why_unreadable

_SERVICE_DEFINITION_MOST_BYTES = 4 * 1024 * 1024


def read_service_definition(reading: Reading) -> tuple[ServiceDefinition | None, SettingSource]:
    """Return the service definition and its source. The file overrides ``FUNCTION_CONFIG``, as in OSCAR."""
    variable = reading.environ.get("FUNCTION_CONFIG") or ""
    if service_definition.holds_secrets(variable.encode(errors="replace")):
        reading.secret_names.add("FUNCTION_CONFIG")

    path = reading.values["service_definition"]
    text: bytes | None
    try:
        text = small_file(path, _SERVICE_DEFINITION_MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        text = None
        if path != DEFAULT_SERVICE_DEFINITION:
            source = reading.sources["service_definition"]
            reading.problem("service_definition", source, f"is {in_quotes(path)}; there is no such file")
    except OSError as error:
        text = None
        source = reading.sources["service_definition"]
        reading.problem("service_definition", source, f"is {in_quotes(path)}; {why_unreadable(error)}")

    before = len(reading.problems)
    from_variable = reading.decode(
        "FUNCTION_CONFIG", "the service definition's text", "base64 -w0 function_config.yaml"
    )
    if from_variable is not None and service_definition.holds_secrets(from_variable):
        reading.secret_names.add("FUNCTION_CONFIG")
    if text is not None:
        del reading.problems[before:]  # FUNCTION_CONFIG has no effect if there is a file
        return _take(reading, text, path, beside=os.path.dirname(path))
    if from_variable is not None:
        return _take(reading, from_variable, "FUNCTION_CONFIG", beside=None)
    return None, DEFAULT


def _take(
    reading: Reading, text: bytes, origin: str, *, beside: str | None
) -> tuple[ServiceDefinition | None, SettingSource]:
    source = SettingSource("service definition", origin)
    parsed = service_definition.parse(text, origin)
    reading.problems += parsed.problems
    reading.warnings += parsed.warnings
    if parsed.service is None:
        reading.unread.add("service_definition")
        return None, source
    if parsed.service.log_level.strip():
        reading.from_service["log_level"] = (parsed.service.log_level, source)
    script_path = parsed.service.script_path
    if script_path and (beside is not None or os.path.isabs(script_path)):
        reading.from_service["script_path"] = (os.path.join(beside or "", script_path), source)
    elif script_path:
        reading.warnings.append(
            f"{source}: script {in_quotes(script_path)} is ignored, because a definition in a variable has no "
            "directory; set SCRIPT or WATCHDOG_SCRIPT_PATH"
        )
    # OSCAR gives these variables to the container, too. So a definition means the same with and without OSCAR.
    for setting in SETTINGS.values():
        value = parsed.service.variables.get(setting.variable)
        if value is not None and not setting.secret and setting.name != "service_definition":
            name = f"{origin}, variable {setting.variable}"
            reading.from_service[setting.name] = (value, SettingSource("service definition", name))
    return parsed.service, source


def read_storages(reading: Reading, service: ServiceDefinition | None, source: SettingSource) -> Storages:
    """Return the storages of a service definition. ``source``: the source of the definition."""
    if service is None:
        return Storages()
    storages, problems, warnings = storage_providers.read(service, reading.values["secrets_dir"])
    reading.problems += [f"{source}: {line}" for line in problems]
    reading.warnings += [f"{source}: {line}" for line in warnings]
    reading.warnings += [
        f"{source}: {line}, so nothing is fetched from it or stored in it; calls are answered as usual"
        for line in storages.withheld()
    ]
    if storages.outputs and reading.values["fprocess"] is not None:
        reading.warnings.append(
            f"{source}: output has no effect with fprocess, because the answer is what a classic function prints"
        )
        return Storages()
    return storages
