"""Show values and errors in one line of text."""

from __future__ import annotations

import os


class Correctable(ValueError):
    """The text of a setting cannot be read. The message says what is wrong and what to write instead."""


def in_quotes(value: str) -> str:
    """Return a value in quotes, printable and short enough to read."""
    return repr(value) if len(value) <= 200 else repr(value[:200]) + " and more"


def one_line(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def why_unreadable(error: OSError) -> str:
    if isinstance(error, IsADirectoryError):
        return "it is a directory (docker makes one when the file to mount does not exist); give a file"
    if isinstance(error, PermissionError):
        return f"user {os.geteuid()} has no permission to read it; allow that (chmod, or the mode of the mount)"
    return f"it cannot be read: {error.strerror}"
