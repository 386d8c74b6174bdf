"""The arguments of a command line: a command, and a text for each setting that has a flag."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

# The commands that have settings, but no arguments of their own.
WITH_SETTINGS_ONLY = ("serve", "check", "health", "job")
COMMANDS = (*WITH_SETTINGS_ONLY, "run", "helper", "init", "invoke")


class Arguments(msgspec.Struct, frozen=True):
    """The arguments of one command line.

    ``flags``: texts of settings, by the name of the setting. ``own``: the values of the command's own arguments, by
    their names in ``catalogue.py``.
    """

    command: str
    flags: dict[str, str]
    own: Mapping[str, Any] = {}
