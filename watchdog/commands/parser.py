"""The command line for argparse: all commands, a flag for each setting, help, and errors."""

from __future__ import annotations

import argparse
import shlex

from .. import __version__
from ..settings.declarations import secret_names
from ..settings.report import flag_specs
from .arguments import COMMANDS, Arguments


def parse_all(words: list[str]) -> Arguments:
    """Return the command and its arguments, or exit after printing an error, the help or the version."""
    parser = argparse.ArgumentParser(
        prog="watchdog",
        description="Run a container's script for each file that is sent over HTTP, and answer with its outputs.",
        epilog="The default command is serve. `watchdog COMMAND --help` lists the settings.",
    )
    version = f"oscar-watchdog {__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    descriptions = {
        "serve": "run the HTTP server",
        "run": "run the script once on a local file, without HTTP",
        "check": "print every setting with its source, and every problem; exit 2 if there are problems",
        "health": "exit 0 if the local server is ready, else 1 (for a container's HEALTHCHECK)",
        "job": "run the script on one event from stdin or $EVENT, store the outputs, print the answer",
        "helper": "print a file that keeps a script loaded between calls, to be copied into an image",
    }
    for name, description in descriptions.items():
        command = commands.add_parser(name, help=description, description=description)
        command.add_argument("--version", action="version", version=version)
        if name == "helper":
            command.add_argument("helper", metavar="NAME", nargs="?", help="without it, list the names")
            continue
        if name == "run":
            command.add_argument("file", metavar="FILE", help="the input file; - means stdin")
            command.add_argument(
                "-o",
                "--output",
                metavar="PATH",
                help="where to write the outputs: a file for one output, a directory for several",
            )
            command.add_argument(
                "--no-store", action="store_true", help="store no outputs, even if the service definition says to"
            )
        settings = command.add_argument_group(
            "settings", "each is also an environment variable: docs/reference/settings.md"
        )
        for spec in flag_specs():
            settings.add_argument(
                spec.flag,
                dest=spec.name,
                metavar=spec.metavar,
                help=f"{spec.help} (default: {spec.default})".replace("%", "%%"),
            )
        for setting in secret_names():
            command.add_argument("--" + setting.replace("_", "-"), action=_Secret, help=argparse.SUPPRESS)
    if words[0] not in COMMANDS and not words[0].startswith("-"):
        parser.error(
            f"there is no command {words[0]!r}; the commands are {', '.join(COMMANDS)}; to start another program of "
            f"the image, use docker run --entrypoint {shlex.quote(words[0])} IMAGE"
        )
    found = vars(parser.parse_args(words))
    return Arguments(
        found["command"],
        {spec.name: found[spec.name] for spec in flag_specs() if found.get(spec.name) is not None},
        file=found.get("file", ""),
        output=found.get("output"),
        stores=not found.get("no_store", False),
        helper=found.get("helper"),
    )


class _Secret(argparse.Action):
    """A flag for a secret. To use this flag is always an error.

    Without this class, argparse would read ``--auth-token`` as an abbreviation of ``--auth-token-file``.
    """

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        variable = f"WATCHDOG_{self.dest.upper()}"
        parser.error(
            f"every process can read a secret on the command line (ps); set the environment variable {variable} "
            f"or --{self.dest.replace('_', '-')}-file"
        )
