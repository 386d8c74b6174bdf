"""Make the report of ``watchdog check``: each setting with its source, and what is wrong."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..system.files import open_regular
from .declarations import SETTINGS, Settings, shown_value
from .load import Configuration
from .text import in_quotes, one_line, why_unreadable


def script_problems(configuration: Configuration) -> list[str]:
    """Return why the script cannot be read now. This does not stop a start, because the script may be mounted later.

    Return nothing if the setting that names the script could not be read, because the script is not known then.
    """
    if configuration.script_text is not None or configuration.settings.fprocess is not None:
        return []
    if configuration.unread & {"SCRIPT", "fprocess", "script_path"}:
        return []
    is_defined = configuration.service is not None or not configuration.unread & {
        "service_definition",
        "FUNCTION_CONFIG",
    }
    if not configuration.is_set("script_path") and not is_defined:
        return []
    path = configuration.settings.script_path
    source = configuration.sources["script_path"]
    prefix = f"script_path: {source} is {in_quotes(path)}; "
    try:
        os.close(open_regular(path))
    except (FileNotFoundError, NotADirectoryError):
        return [prefix + "there is no such file; mount the script there, or set SCRIPT to base64 of its text"]
    except OSError as error:
        return [prefix + why_unreadable(error)]
    return []


def report(configuration: Configuration, problems: Sequence[str] | None = None) -> str:
    """Return the text of ``watchdog check``: each setting with its value and source, then problems, then warnings.

    ``problems``: the list to show in place of ``configuration.problems``, for a caller that found more.
    Secrets are masked, and unprintable characters in values are escaped.
    """
    rows = [("setting", "value", "from")]
    for name, setting in SETTINGS.items():
        value = getattr(configuration.settings, setting.attribute)
        rows.append((name, shown_value(setting, value), one_line(str(configuration.sources[name]))))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{name:{widths[0]}}  {value:{widths[1]}}  {source}" for name, value, source in rows]

    lines.append("")
    if configuration.settings.fprocess is not None:
        lines.append(f"classic function: {one_line(configuration.settings.fprocess)}")
    elif configuration.script_text is not None:
        lines.append(f"script: environment SCRIPT, {len(configuration.script_text)} bytes")
    else:
        lines.append(f"script: {one_line(configuration.settings.script_path)}")
    if configuration.settings.warm:
        lines.append(_about_warm(configuration.settings))
    service = configuration.service
    if service is None:
        lines.append("service definition: none")
    else:
        lines.append(f"service definition: {one_line(service.name) or 'without a name'}")
        for title, names in (
            ("variables", list(service.variables)),
            ("input", [f"{entry.storage_provider}:{entry.path}" for entry in service.inputs]),
            ("output", [f"{entry.storage_provider}:{entry.path}" for entry in service.outputs]),
            ("storage providers", [str(provider) for provider in configuration.storages.providers.values()]),
            ("not usable", [f"{name} ({reason})" for name, reason in configuration.storages.unusable.items()]),
        ):
            if names:
                lines.append(f"  {title}: {one_line(', '.join(names))}")
    if configuration.ignored_names:
        lines.append(f"accepted without effect: {one_line(', '.join(configuration.ignored_names))}")

    for title, found in (
        ("problems", configuration.problems if problems is None else problems),
        ("warnings", configuration.warnings),
    ):
        lines += ["", f"{title}:"] if found else ["", f"{title}: none"]
        lines += [f"  {one_line(line)}" for line in found]
    return "\n".join(lines)


def _about_warm(settings: Settings) -> str:
    workers = "1 worker" if settings.places == 1 else f"{settings.places} workers"
    limits = [
        f"{shown_value(SETTINGS[name], getattr(settings, SETTINGS[name].attribute))} {what}"
        for name, what in (("warm_max_calls", "calls"), ("warm_max_memory", "bytes of memory"))
        if getattr(settings, SETTINGS[name].attribute)
    ]
    replaced = f", each replaced after {' or '.join(limits)}" if limits else ""
    return f"warm: {workers}; the script starts once, writes `ready` to descriptor 4, and serves many calls{replaced}"
