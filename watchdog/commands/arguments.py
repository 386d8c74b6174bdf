"""The command line: commands, and a flag for each setting."""

from __future__ import annotations

import argparse
import shlex

from .. import __version__
from ..settings.declarations import secret_names
from ..settings.report import flag_specs

_COMMANDS = ("serve", "run", "check", "health", "job")


def parse(words: list[str], called_as: str) -> argparse.Namespace:
    """Return the command and its arguments. Exit as argparse does: after an error, the help or the version.

    Args:
        called_as: the name of the program, which may choose the command.
    """
    if called_as == "supervisor":
        words = ["job", *words]
    elif words[:1] in (["-run-healthcheck"], ["--run-healthcheck"]):  # as OpenFaaS's watchdogs have it
        words = ["health"]
    elif words[:1] == ["-version"]:
        words = ["--version"]
    elif not words or (words[0].startswith("-") and words[0] not in ("-h", "--help", "--version")):
        words = ["serve", *words]

    parser = argparse.ArgumentParser(
        prog="watchdog",
        description="Runs a container's script for each file that is sent over HTTP, and answers with its outputs.",
        epilog="Without a command: serve. `watchdog COMMAND --help` lists the settings.",
    )
    version = f"oscar-watchdog {__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    descriptions = {
        "serve": "the HTTP server",
        "run": "run the script once on a local file, without HTTP",
        "check": "print every setting, where it came from, and every problem; exit 2 if there are problems",
        "health": "exit 0 if the local server is ready, else 1 (for a container's HEALTHCHECK)",
        "job": "run the script on one event from stdin or $EVENT, store the outputs, print the answer",
    }
    for name, description in descriptions.items():
        command = commands.add_parser(name, help=description, description=description)
        command.add_argument("--version", action="version", version=version)
        if name == "run":
            command.add_argument("file", metavar="FILE", help="the input; - is stdin")
            command.add_argument(
                "-o",
                "--output",
                metavar="PATH",
                help="where the outputs go: a file for one, a directory for several",
            )
            command.add_argument(
                "--no-store", action="store_true", help="store nothing, whatever the service definition says"
            )
        settings = command.add_argument_group(
            "settings", "each is also an environment variable: docs/reference/settings.md"
        )
        for setting, text, metavar, default in flag_specs():
            settings.add_argument(
                "--" + setting.replace("_", "-"),
                dest=setting,
                metavar=metavar,
                help=f"{text} (default: {default})".replace("%", "%%"),
            )
        for setting in secret_names():
            command.add_argument("--" + setting.replace("_", "-"), action=_Secret, help=argparse.SUPPRESS)
    if words[0] not in _COMMANDS and not words[0].startswith("-"):
        parser.error(
            f"there is no command {words[0]!r}, but {', '.join(_COMMANDS)}; another program of an image is started by "
            f"docker run --entrypoint {shlex.quote(words[0])} IMAGE"
        )
    return parser.parse_args(words)


class _Secret(argparse.Action):
    """Refuses a secret on the command line. Without it, argparse would take it for short of --auth-token-file."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        variable = f"WATCHDOG_{self.dest.upper()}"
        parser.error(
            f"a secret on the command line can be read by every process (ps); set the environment variable {variable} "
            f"or --{self.dest.replace('_', '-')}-file"
        )
