"""The command line of `watchdog invoke`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ..errors import ConfigError
from ..settings.kinds import DURATION, parse_duration_s


class InvokeArguments(msgspec.Struct, frozen=True):
    """The arguments of `watchdog invoke`. The durations are in seconds; ``timeout_s``: 0 means no limit."""

    url: str
    files: list[str]
    output: str | None
    form: str
    is_live: bool
    jobs: int
    replaces: bool
    input_form: str
    token_file: str | None
    ca_file: str | None
    timeout_s: float
    retry_for_s: float


def invoke_arguments(found: Mapping[str, Any]) -> InvokeArguments:
    """Return the arguments that argparse has found.

    Raises:
        ConfigError: they do not fit together.
    """
    if found["is_live"] and found["form"] is not None:
        raise ConfigError(["--live and --output cannot be used together; --live keeps each output as a file"])
    if found["files"].count("-") > 1:
        raise ConfigError(["stdin (-) can be sent only once"])
    return InvokeArguments(
        url=found["url"],
        files=found["files"],
        output=found["output_to"],
        form=found["form"] or "base64",
        is_live=found["is_live"],
        jobs=found["jobs"],
        replaces=found["replaces"],
        input_form=found["input_form"],
        token_file=found["token_file"],
        ca_file=found["ca_file"],
        timeout_s=found["timeout_s"],
        retry_for_s=found["retry_for_s"],
    )


class SecretFlag(argparse.Action):
    """A flag for a secret. Without this class, argparse would read ``--token`` as ``--token-file``."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        parser.error("every process can read a secret on the command line (ps); use --token-file PATH")


def choice(*choices: str, what: str) -> Callable[[str], str]:
    """Return a parser of an argument that must be one of ``choices``."""

    def parse(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}; choose one of {', '.join(choices)}")
        return text

    return parse


def jobs(text: str) -> int:
    """Parse a number of calls at the same time."""
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:5]) <= 1000):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1000")
    return int(text)


def duration(text: str) -> float:
    """Parse a duration, in seconds."""
    try:
        return parse_duration_s(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration; expected {DURATION.accepts}") from None
