"""Read the command line, with argparse only if it is necessary."""

from __future__ import annotations

from collections.abc import Sequence

from ..settings.declarations import settings_with_flags
from .arguments import WITH_SETTINGS_ONLY, Arguments


def parse(words: list[str], called_as: str) -> Arguments:
    """Return the command and its arguments. Like argparse, exit after printing an error, the help or the version.

    Args:
        called_as: the name under which the program was started. ``supervisor`` chooses the command ``job``.
    """
    if called_as == "supervisor":
        words = ["job", *words]
    elif words[:1] in (["-run-healthcheck"], ["--run-healthcheck"]):  # the flag of OpenFaaS's watchdogs
        words = ["health"]
    elif words[:1] == ["-version"]:
        words = ["--version"]
    elif not words or (words[0].startswith("-") and words[0] not in ("-h", "--help", "--version")):
        words = ["serve", *words]
    # A server and a container's health check start without argparse: its import and the description of all flags take
    # 5 ms.
    if (arguments := without_argparse(words)) is not None:
        return arguments
    from .parser import parse_all

    return parse_all(words)


def without_argparse(words: Sequence[str]) -> Arguments | None:
    """Return the arguments if all are settings, written as ``--name value`` or ``--name=value``.

    Return None for everything else, such as help, abbreviations, errors, and commands with arguments of their own.
    """
    command, *rest = words
    if command not in WITH_SETTINGS_ONLY:
        return None
    names = {setting.flag: setting.name for setting in settings_with_flags()}
    flags = {}
    left = iter(rest)
    for word in left:
        flag, equals_sign, value = word.partition("=")
        if not equals_sign:
            value = next(left, "-")
            if value.startswith("-"):
                return None
        if flag not in names:
            return None
        flags[names[flag]] = value
    return Arguments(command, flags)
