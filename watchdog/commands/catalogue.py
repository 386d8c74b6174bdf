"""Declare the commands: their arguments, their settings and examples. The parser, the help and the docs read this.

A new command needs an entry here, its name in ``arguments.py``, and a call in ``cli.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .setting_groups import ALL, WITHOUT_HTTP

LOCAL, IN_A_CONTAINER = "On your machine", "In a container"


class Argument(NamedTuple):
    """One argument of a command. ``names`` and ``options`` are those of argparse's ``add_argument``."""

    names: tuple[str, ...]
    help: str
    options: Mapping[str, Any] = {}


class Example(NamedTuple):
    line: str
    meaning: str


class Command(NamedTuple):
    """One command.

    ``kind``: the heading in the overview. ``summary``: one line. ``synopsis``: the arguments after the name.
    ``settings``: the groups of settings that its help shows. A command with some settings accepts all of them,
    because one line of flags may be used for several commands. Without groups, it accepts none.
    """

    kind: str
    summary: str
    synopsis: str
    examples: tuple[Example, ...]
    arguments: tuple[Argument, ...] = ()
    settings: tuple[str, ...] = ()


CATALOGUE: Mapping[str, Command] = {
    "init": Command(
        LOCAL,
        "write a first function: a script, a service definition, a Dockerfile and a README",
        "[DIR]",
        (
            Example("watchdog init my-function", "write the files into the directory my-function"),
            Example("watchdog init", "write those that are missing here; no file is overwritten"),
        ),
        (
            Argument(
                ("directory",), "the directory; by default, this one", {"metavar": "DIR", "nargs": "?", "default": "."}
            ),
        ),
    ),
    "run": Command(
        LOCAL,
        "run the script once on a local file, without HTTP",
        "FILE [-o PATH] [--no-store] [SETTINGS]",
        (
            Example("watchdog run photo.jpg -o gray.jpg", "run ./script.sh, and write its output to gray.jpg"),
            Example("watchdog run photo.jpg -o out/", "write each output into the directory out"),
            Example("watchdog run photo.jpg -o out.zip", "write all outputs into one ZIP"),
            Example("cat photo.jpg | watchdog run - > gray.jpg", "read stdin, and write the only output to stdout"),
        ),
        (
            Argument(("file",), "the input file; - means stdin", {"metavar": "FILE"}),
            Argument(
                ("-o", "--output"),
                "where to write the outputs: a file for one output, a directory for several, or a name with .zip",
                {"metavar": "PATH"},
            ),
            Argument(
                ("--no-store",),
                "store no outputs, even if the service definition says to",
                {"action": "store_true"},
            ),
        ),
        WITHOUT_HTTP,
    ),
    "serve": Command(
        LOCAL,
        "run the HTTP server; this is the default command",
        "[SETTINGS]",
        (
            Example("watchdog serve --script-path script.sh", "run script.sh for each call to http://localhost:8080"),
            Example("watchdog serve --port 9000 --max-inflight 2", "use another port; run two scripts at a time"),
            Example("watchdog serve --fprocess 'tr a-z A-Z'", "run a command that reads stdin and writes stdout"),
        ),
        settings=ALL,
    ),
    "check": Command(
        LOCAL,
        "print every setting with its source, and every problem; exit 2 if there are problems",
        "[SETTINGS]",
        (
            Example("watchdog check --script-path script.sh", "show what `serve` with this flag would use"),
            Example(
                "watchdog check --service-definition function_config.yaml", "find mistakes in a definition for OSCAR"
            ),
        ),
        settings=ALL,
    ),
    "health": Command(
        IN_A_CONTAINER,
        "exit 0 if the local server is ready, else 1 (for a container's HEALTHCHECK)",
        "[SETTINGS]",
        (Example("watchdog health --port 9000", "ask the server on port 9000"),),
        settings=("Listening",),
    ),
    "job": Command(
        IN_A_CONTAINER,
        "run the script on one event from stdin or $EVENT, store the outputs, print the answer",
        "[SETTINGS]",
        (Example("watchdog job < event.json", "process the objects that an event of a storage reports"),),
        settings=WITHOUT_HTTP,
    ),
    "helper": Command(
        IN_A_CONTAINER,
        "print a file that keeps a script loaded between calls, to be copied into an image",
        "[NAME]",
        (
            Example("watchdog helper", "list the names"),
            Example("watchdog helper python > watchdog_warm.py", "write the helper for Python"),
        ),
        (Argument(("name",), "which helper; without it, list the names", {"metavar": "NAME", "nargs": "?"}),),
    ),
}
