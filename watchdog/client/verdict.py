"""The verdict of a call that succeeded."""

from __future__ import annotations

import http

import msgspec

from .folder import Kept


class Verdict(msgspec.Struct, frozen=True):
    """The verdict.

    ``kept``: the files; empty if the answer went to stdout, or if there was nothing to keep. ``exit_code``: that of the
    script. A server with ``error_status=false`` answers 200 also if it is not 0. ``warnings``: why the result may be
    wrong.
    """

    kept: list[Kept]
    exit_code: int
    warnings: list[str]


def about_status(status: int) -> list[str]:
    """Return a warning if a script that succeeded chose a status that reports an error or a redirect."""
    return [f"the script chose the status {status_line(status)}"] if status >= 300 else []


def status_line(status: int) -> str:
    """Return a status with its name: ``404 Not Found``."""
    try:
        return f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def exit_code_in(header: str) -> int | None:
    """Return the number in ``X-Exit-Code``; None if the header is missing or has no number."""
    # Nine digits are more than any exit code has. Python refuses to read a number of thousands of digits.
    return int(header[:9]) if header.isdecimal() else None


def exit_code_from(code: int | None) -> int:
    """Return an exit code that the service reports. A number that is not an exit code counts as a failure."""
    return 0 if code is None else code if 0 <= code < 256 else 1
