"""Compare what a script printed with the lines of its log that were shown."""

from __future__ import annotations

import hashlib
import os
import sys
from typing import BinaryIO

from ..logs.level import LINE_BYTES
from ..logs.text import decode


class ShownText:
    """The lines that were shown, of any number.

    The log shows no blank lines, no escape sequences, and no carriage return at the end of a line. So these do not
    count.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._lines = 0

    def take(self, text: str) -> None:
        """Take one line or several."""
        for line in text.split("\n"):
            if line := line.rstrip():
                self._sha256.update(line.encode("utf-8", "backslashreplace") + b"\n")
                self._lines += 1

    def is_all_of(self, printed: BinaryIO) -> bool:
        """Return whether exactly the lines of this file were shown. The result is false if none was shown."""
        other = ShownText()
        while self._lines and (line := printed.readline(LINE_BYTES + 1)):
            if len(line) > LINE_BYTES:  # the log cuts such a line
                return False
            other.take(decode(line))
        return 0 < self._lines == other._lines and self._sha256.digest() == other._sha256.digest()


def have_same_terminal() -> bool:
    """Return whether stdout and stderr are the same terminal."""
    return sys.stdout.isatty() and sys.stderr.isatty() and os.path.samestat(os.fstat(1), os.fstat(2))
