"""The arguments of a command line: a command, and a text for each setting that has a flag."""

from __future__ import annotations

import msgspec

COMMANDS = ("serve", "run", "check", "health", "job", "helper")


class Arguments(msgspec.Struct, frozen=True):
    """The arguments of one command line. ``flags``: texts of settings, by the name of the setting.

    ``file``, ``output``, ``stores``: only for ``run``. ``helper``: only for ``helper``.
    """

    command: str
    flags: dict[str, str]
    file: str = ""
    output: str | None = None
    stores: bool = True
    helper: str | None = None
