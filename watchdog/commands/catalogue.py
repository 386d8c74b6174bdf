"""Declare the commands: their arguments, their settings and examples. The parser, the help and the docs read this.

A new command needs an entry here, its name in ``arguments.py``, and a call in ``cli.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .invoke_arguments import choice, duration, jobs
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
    ``settings``: the groups of settings that its help shows. A command that has such groups accepts the flags of all
    settings, because users may give the same flags to several commands. A command without groups accepts no such flag.
    ``secrets``: flags that would contain a secret; the parser reports an error for them. ``notes``: the last lines of
    the help.
    """

    kind: str
    summary: str
    synopsis: str
    examples: tuple[Example, ...]
    arguments: tuple[Argument, ...] = ()
    settings: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    notes: str = ""


CATALOGUE: Mapping[str, Command] = {
    "init": Command(
        LOCAL,
        "write a first function: a script, a service definition, a Dockerfile and a README",
        "[DIR]",
        (
            Example("watchdog init my-function", "write the files into the directory my-function"),
            Example("watchdog init", "write the missing files into this directory; existing files stay as they are"),
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
                "where to write the outputs: a file for one output, a directory for several, or a ZIP (NAME.zip)",
                {"metavar": "PATH"},
            ),
            Argument(
                ("--no-store",),
                "do not store the outputs in the storages that the service definition names",
                {"action": "store_true"},
            ),
        ),
        WITHOUT_HTTP,
    ),
    "invoke": Command(
        LOCAL,
        "send files to a service over HTTP, and keep the answers",
        "URL FILE... [-o DIR] [-j N] [--live] [--token-file PATH] [OPTIONS]",
        (
            Example(
                "watchdog invoke http://localhost:8080 photo.jpg -o out", "write the answer into the directory out"
            ),
            Example("watchdog invoke http://localhost:8080 photo.jpg > gray.jpg", "write the answer to a file"),
            Example(
                "watchdog invoke https://CLUSTER/run/SERVICE *.jpg -o out -j 4 --token-file token.txt",
                "send many files to a service on OSCAR, four at a time",
            ),
            Example('echo "three words" | watchdog invoke http://localhost:8080 -', "send stdin"),
        ),
        (
            Argument(
                ("url",), "the service: http://HOST:PORT, or https://CLUSTER/run/SERVICE on OSCAR", {"metavar": "URL"}
            ),
            Argument(
                ("files",),
                "the files to send, each in a call of its own; - means stdin",
                {"metavar": "FILE", "nargs": "+"},
            ),
            Argument(("-o",), "the directory for answers; - means stdout", {"dest": "output_to", "metavar": "DIR"}),
            Argument(("--force",), "replace files that exist in DIR", {"dest": "replaces", "action": "store_true"}),
            Argument(
                ("-j",),
                "number of calls at the same time (default: 1)",
                {"dest": "jobs", "metavar": "N", "type": jobs, "default": 1},
            ),
            Argument(
                ("--live",),
                "show the script's log and progress while it runs",
                {"dest": "is_live", "action": "store_true"},
            ),
            Argument(
                ("--output",),
                "keep the answer as raw bytes, as a ZIP or as one JSON object; by default, each output is a file",
                {
                    "dest": "form",
                    "metavar": "FORM",
                    "type": choice("raw", "zip", "json", what="the form of the answer (for a directory, use -o DIR)"),
                },
            ),
            Argument(
                ("--input",),
                "send base64 (default), or raw: the bytes themselves, for a classic function (fprocess)",
                {
                    "dest": "input_form",
                    "metavar": "FORM",
                    "type": choice("base64", "raw", what="the form of the body"),
                    "default": "base64",
                },
            ),
            Argument(("--token-file",), "a file with the token of the service", {"metavar": "PATH"}),
            Argument(
                ("--ca-file",),
                "the certificates to trust (PEM), instead of the certificates of the system",
                {"metavar": "PATH"},
            ),
            Argument(
                ("--timeout",),
                "longest time for each FILE, with all waits; after this time the call is cancelled (default: no limit)",
                {"dest": "timeout_s", "metavar": "DURATION", "type": duration, "default": 0.0},
            ),
            Argument(
                ("--retry-for",),
                "how long to send a call again while the service is busy (429, 503) (default: 60s)",
                {"dest": "retry_for_s", "metavar": "DURATION", "type": duration, "default": 60.0},
            ),
        ),
        secrets=("--token", "--auth-token", "--password"),
        notes=(
            "Exit codes: the exit code of the script, or one of these: 65 bad input, 66 FILE cannot be read, "
            "69 no connection or no service, 73 answer not written, 75 service is busy, 76 answer cut off or damaged, "
            "77 wrong token, 124 took too long, 130 Ctrl-C, 1 another error or one of several files failed."
        ),
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
        "print a helper file for your image, with which a script stays loaded between calls",
        "[NAME]",
        (
            Example("watchdog helper", "list the names"),
            Example("watchdog helper python > watchdog_warm.py", "write the helper for Python"),
        ),
        (Argument(("name",), "which helper; without it, list the names", {"metavar": "NAME", "nargs": "?"}),),
    ),
}
