"""Read the values of settings from their sources: flags, environment variables, the service definition, defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..system.pattern import pattern
from .declarations import SETTINGS, Known, Setting
from .kinds import PORT
from .source import DEFAULT, SettingSource
from .text import Correctable, in_quotes

# Kubernetes gives a pod the address of every Service of its namespace in variables. A Service named `watchdog` sets
# WATCHDOG_PORT to such a value.
SERVICE_LINK_VALUE = pattern(r"(?:tcp|udp|sctp)://", re.IGNORECASE)


class Reading:
    """The values that were read so far, their sources, and the problems that were found.

    ``from_service``: text and source of a setting that the service definition sets. ``spellings``: the names of
    variables by their lower case. Names that differ only in case are in one list.
    """

    def __init__(self, environ: Mapping[str, str], flags: Mapping[str, str]) -> None:
        self.environ = environ
        self.flags = flags
        self.from_service: dict[str, tuple[str, SettingSource]] = {}
        self.values: dict[str, Any] = {}
        self.sources: dict[str, SettingSource] = {}
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.ignored_names: list[str] = []
        self.unread: set[str] = set()
        self.secret_names = {"WATCHDOG_AUTH_TOKEN"}
        # Names without WATCHDOG_ may be in lower, upper or mixed case. Lower case wins, then the first in ASCII order.
        self.spellings: dict[str, list[str]] = {}
        for spelling in sorted(environ, key=lambda name: (name != name.lower(), name)):
            self.spellings.setdefault(spelling.lower(), []).append(spelling)

    def read(self, name: str) -> None:
        """Read one setting. The highest source that sets it wins."""
        setting = SETTINGS[name]
        text, source = self.find(setting)
        if text is not None:
            try:
                if not text.strip():
                    raise ValueError(text)
                self.values[name] = setting.kind.parse(text)
                self.sources[name] = source
                return
            except ValueError as error:
                if name == "log_level" and source.kind == "environment" and source.name != setting.variable:
                    # This is the only bad value that does not stop the start. The variable may be meant for the script.
                    self.warnings.append(
                        f"log_level: {source} is {in_quotes(text)}, which is not a known level, so INFO is used; "
                        f"to choose a level, set {setting.variable} to {setting.kind.accepts}"
                    )
                else:
                    expected = error if isinstance(error, Correctable) else f"expected {setting.kind.accepts}"
                    shown = "not a usable token (not shown)" if setting.secret and text.strip() else in_quotes(text)
                    self.problem(name, source, f"is {shown}; {expected}")

        self.set_default(setting)

    def leave_out(self, name: str) -> None:
        """Give a setting its default, because the setting has no effect. Its value is not checked."""
        text, source = self.find(SETTINGS[name])
        if text is not None:
            self.ignored_names.append(source.name)
        self.set_default(SETTINGS[name])

    def set_default(self, setting: Setting) -> None:
        name, default = setting.name, setting.default
        self.values[name] = default(Known(self.environ, self.values)) if callable(default) else default
        self.sources[name] = DEFAULT

    def find(self, setting: Setting) -> tuple[str | None, SettingSource]:
        """Return the text of the highest source that sets this setting, and the source."""
        if setting.name in self.flags:
            return self.flags[setting.name], SettingSource("flag", setting.flag)
        value = self.environ.get(setting.variable)
        if value is not None:
            if setting.kind is PORT and SERVICE_LINK_VALUE.match(value):
                self.warnings.append(
                    f"{setting.name}: environment {setting.variable} is {in_quotes(value)}, which Kubernetes "
                    "sets for a Service of that name, so it is ignored; to remove it, set "
                    "enableServiceLinks: false for the pod"
                )
            else:
                return value, SettingSource("environment", setting.variable)
        if setting.bare:
            for spelling in self.spellings.get(setting.name, ()):
                if self.environ[spelling]:
                    return self.environ[spelling], SettingSource("environment", spelling)
        return self.from_service.get(setting.name, (None, DEFAULT))

    def problem(self, name: str, source: SettingSource, text: str) -> None:
        """Note that the value from ``source`` cannot be used. So the effect of the setting is not known."""
        self.unread.add(name)
        self.problems.append(f"{name}: {source} {text}")

    def decode(self, variable: str, meaning: str, command: str) -> bytes | None:
        """Return the decoded value of a variable in base64; None if it is not set, or not base64.

        The base64 has characters of one alphabet only. It may have line breaks, and its padding may be missing.
        """
        text = self.environ.get(variable)
        if not text or not text.strip():
            return None
        from ..system.base64_reader import decoded_text

        decoded = decoded_text(text.encode(errors="replace"))
        if decoded is None:
            # The value is not shown, because scripts and service definitions may contain secrets.
            self.problem(
                variable,
                SettingSource("environment", variable),
                f"is not base64; set it to base64 of {meaning}: {command}",
            )
        return decoded
