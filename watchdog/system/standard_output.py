"""Write to this process's stdout, whose reader may end first (``watchdog run photo.jpg | head -c 10``)."""

from __future__ import annotations

import os
import sys

from ..errors import StdoutClosed, StdoutUnwritable


def write(data: bytes) -> int:
    """Write to stdout and flush.

    Raises:
        StdoutClosed: the reader of stdout has closed it.
        StdoutUnwritable: stdout cannot be written, for example because its disk is full.
    """
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_rest()
        raise StdoutClosed("the reader of stdout has closed it") from None
    except OSError as error:
        _discard_rest()
        raise StdoutUnwritable(f"stdout cannot be written: {error.strerror}; redirect it elsewhere") from error
    return len(data)


def write_line(text: str) -> None:
    """Write a line of text. Raises the same errors as :func:`write`."""
    write(f"{text}\n".encode(sys.stdout.encoding, "backslashreplace"))


def flush() -> None:
    """Write what Python still holds for stdout. Raises the same errors as :func:`write`."""
    write(b"")


def _discard_rest() -> None:
    """Send the rest to /dev/null. Otherwise Python's flush at exit fails, prints an error and changes the exit code."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
