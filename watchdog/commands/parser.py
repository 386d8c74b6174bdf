"""Read the command line with argparse: the commands of the catalogue, a flag for each setting, help, and errors."""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import sys
import textwrap
from collections.abc import Iterable
from typing import NoReturn

from .. import __version__
from ..settings.declarations import SETTINGS, settings_with_flags
from .arguments import COMMANDS, Arguments
from .catalogue import CATALOGUE, Command, Example
from .invoke_arguments import SecretFlag
from .setting_groups import setting_groups

_ABOUT = "Run a container's script for each file that is sent over HTTP, and answer with its outputs."
_USAGE = "watchdog [COMMAND] [ARGUMENTS]"
_HELP_WORDS = ("help", "-h", "--help")
_EXAMPLES_OF_ALL = ("init", "run", "serve")  # the commands whose first example is in the overview
# A flag is suggested only if its similarity to the unknown flag is at least this, from 0 to 1 (difflib).
_LIKENESS_OF_FLAGS = 0.6


def parse_all(words: list[str]) -> Arguments:
    """Return the command and its arguments, or exit after printing an error, the help or the version."""
    name, *rest = words
    if name in _HELP_WORDS:
        if not rest:
            print(overview())
            sys.exit(0)
        name, rest = rest[0], ["--help"]
    if name == "--version":
        rest = ["--version"]
    elif name not in COMMANDS:
        _exit_with_error(_USAGE, "watchdog", _no_command(name))
    return _parse(name if name in COMMANDS else "serve", rest)


def overview() -> str:
    """Return the text of ``watchdog --help``: all commands in groups, and examples."""
    lines = [f"usage: {_USAGE}", "", _ABOUT]
    width = max(map(len, CATALOGUE))
    for kind in dict.fromkeys(command.kind for command in CATALOGUE.values()):
        lines += ["", f"{kind}:"]
        lines += [f"  {name:{width}}  {each.summary}" for name, each in CATALOGUE.items() if each.kind == kind]
    lines += ["", "Examples:", *_example_lines(CATALOGUE[name].examples[0] for name in _EXAMPLES_OF_ALL)]
    lines += ["", "`watchdog help COMMAND` shows the arguments, settings and examples of a command."]
    return "\n".join(lines)


def parser_of(name: str) -> argparse.ArgumentParser:
    """Return the parser of one command. Its help shows only what has an effect on this command."""
    command = CATALOGUE[name]
    parser = _Parser(
        prog=f"watchdog {name}",
        usage=f"watchdog {name} {command.synopsis}",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        epilog="\n".join(["Examples:", *_example_lines(command.examples), *_lines_of(command.notes)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"oscar-watchdog {__version__}")
    for argument in command.arguments:
        parser.add_argument(*argument.names, help=argument.help.replace("%", "%%"), **argument.options)
    for flag in command.secrets:
        parser.add_argument(flag, action=SecretFlag, help=argparse.SUPPRESS)
    if command.settings:
        _add_settings(parser, command)
    return parser


def _add_settings(parser: argparse.ArgumentParser, command: Command) -> None:
    for title, names in setting_groups().items():
        group = parser.add_argument_group(title)
        is_shown = title in command.settings
        for setting in (SETTINGS[name] for name in names):
            if setting.secret:
                parser.add_argument(setting.flag, action=_Secret, help=argparse.SUPPRESS)
                continue
            text = f"{setting.help} (default: {setting.default_text})".replace("%", "%%")
            group.add_argument(
                setting.flag,
                dest=setting.name,
                metavar=setting.kind.metavar,
                help=text if is_shown else argparse.SUPPRESS,
            )


def _lines_of(notes: str) -> list[str]:
    return ["", *textwrap.wrap(notes, 100)] if notes else []


def _example_lines(examples: Iterable[Example]) -> list[str]:
    return [line for each in examples for line in (f"  {each.line}", f"      {each.meaning}")]


def _parse(name: str, words: list[str]) -> Arguments:
    parser = parser_of(name)
    found, unknown = parser.parse_known_args(words)
    if unknown:
        parser.error(_not_known(unknown[0], name))
    values = vars(found)
    settings = SETTINGS if CATALOGUE[name].settings else {}
    return Arguments(
        name,
        {each: values[each] for each in settings if values[each] is not None},
        {each: value for each, value in values.items() if each not in settings},
    )


def _no_command(name: str) -> str:
    nearest = difflib.get_close_matches(name.lower(), COMMANDS, n=1)
    suggestion = f"; the nearest name is {nearest[0]}" if nearest else ""
    if os.path.isfile(name):
        suggestion += f"; to run this file for each call, use watchdog serve --script-path {shlex.quote(name)}"
    return (
        f"there is no command {name!r}{suggestion}; the commands are {', '.join(CATALOGUE)}; to start another program "
        f"of the image, use docker run --entrypoint {shlex.quote(name)} IMAGE"
    )


def _not_known(word: str, command: str) -> str:
    if not word.startswith("-"):
        return "; ".join([f"the argument {word!r} is not expected", *_flags_for_a_path(command)])
    flag = word.partition("=")[0]
    flags = [setting.flag for setting in settings_with_flags()] if CATALOGUE[command].settings else []
    flags += [each for argument in CATALOGUE[command].arguments for each in argument.names if each.startswith("-")]
    nearest = difflib.get_close_matches(flag.lower().replace("_", "-"), flags, n=1, cutoff=_LIKENESS_OF_FLAGS)
    return f"there is no flag {flag!r}" + (f"; the nearest name is {nearest[0]}" if nearest else "")


def _flags_for_a_path(command: str) -> list[str]:
    """Return what a user may have forgotten before the path of a script or of an output."""
    hints = []
    if any("script_path" in setting_groups()[title] for title in CATALOGUE[command].settings):
        hints.append("name the script with --script-path PATH")
    if any("-o" in argument.names for argument in CATALOGUE[command].arguments):
        hints.append("name the output with -o PATH")
    return hints


def _exit_with_error(usage: str, program: str, text: str) -> NoReturn:
    topic = program.removeprefix("watchdog").strip()
    print(f"usage: {usage}\n{program}: error: {text}", file=sys.stderr)
    print(f"`watchdog help{f' {topic}' if topic else ''}` shows more.", file=sys.stderr)
    sys.exit(2)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors name the command that shows the help."""

    def error(self, message: str) -> NoReturn:
        _exit_with_error(str(self.usage), self.prog, message)


class _Secret(argparse.Action):
    """A flag for a secret. The parser reports an error whenever this flag is used.

    Without this class, argparse would read ``--auth-token`` as an abbreviation of ``--auth-token-file``.
    """

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        variable = f"WATCHDOG_{self.dest.upper()}"
        parser.error(
            f"every process can read a secret on the command line (ps); set the environment variable {variable} "
            f"or --{self.dest.replace('_', '-')}-file"
        )
