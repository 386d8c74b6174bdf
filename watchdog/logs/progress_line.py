"""Read the lines in which a script reports its progress: ``progress F`` or ``progress F any text``, F from 0 to 1."""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from ..system.pattern import pattern
from .text import decode, printable

LONGEST_LINE_BYTES = 4096

_FRACTION = rb"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_PROGRESS = pattern(rb"progress (" + _FRACTION + rb")(?: (.*))?", re.DOTALL)  # the text may contain "\r"


class Progress(msgspec.Struct, frozen=True):
    """``fraction``: from 0 to 1. ``text``: one line without control characters, possibly empty."""

    fraction: float
    text: str = ""


def progress_of(line: bytes) -> Progress | None:
    """Return the progress that a line without its line end reports, or None if it reports none."""
    if (match := _PROGRESS.fullmatch(line)) and (fraction := float(match[1])) <= 1:
        return Progress(fraction, printable(decode(match[2] or b"")))
    return None


class ProgressLines:
    """Take the bytes that a script writes to fd 4, which may be cut anywhere. Ignore lines that are not progress.

    A script may write faster than a caller can read. So only the last progress of each piece is reported.

    Args:
        report: takes the fraction and the text.
    """

    def __init__(self, report: Callable[[float, str], None]) -> None:
        self._report = report
        self._line = b""

    def take(self, data: bytes) -> None:
        """Take the next bytes."""
        *lines, rest = (self._line + data).split(b"\n")
        self._line = rest[: LONGEST_LINE_BYTES + 1]  # a longer line stays too long, and is ignored
        for line in reversed(lines):
            if len(line) < LONGEST_LINE_BYTES and (found := progress_of(line.removesuffix(b"\r"))) is not None:
                self._report(found.fraction, found.text)
                return
