"""Group the settings for the help of the commands."""

from __future__ import annotations

from ..settings.declarations import SETTINGS

# The title of each group, by its first setting in the order of the declarations. A group ends where the next begins.
_TITLES = {
    "port": "Listening",
    "script_path": "Function",
    "log_level": "Log",
    "warm": "Warm functions",
    "max_inflight": "Queue",
    "exec_timeout": "Run of a script",
    "read_timeout": "Slow callers and the stop of the server",
    "max_input_size": "Files",
    "storage_timeout": "Storages",
    "suppress_lock": "Lock file and metrics",
    "auth_token": "Access",
    "cgi_headers": "Headers",
    "error_status": "Failures",
}
ALL = tuple(_TITLES.values())
# The groups that also have an effect without HTTP.
WITHOUT_HTTP = ("Function", "Log", "Warm functions", "Run of a script", "Files", "Storages", "Failures")


def setting_groups() -> dict[str, list[str]]:
    """Return the names of all settings by the title of their group, in the order of the declarations."""
    groups: dict[str, list[str]] = {}
    title = ""
    for name in SETTINGS:
        title = _TITLES.get(name, title)
        groups.setdefault(title, []).append(name)
    return groups
