"""Describe where the value of a setting came from."""

from __future__ import annotations

from typing import Literal

import msgspec


class SettingSource(msgspec.Struct, frozen=True):
    """The source of a value. Its ``str`` is the text that `watchdog check` shows.

    ``name``: the variable, the flag, or the path of the file. The default has none.
    """

    kind: Literal["default", "environment", "flag", "service definition", "auth_token_file"]
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" if self.name else self.kind


DEFAULT = SettingSource("default")
