"""Changes that another program may make to a file while it is sent."""

from __future__ import annotations

import os
from pathlib import Path


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"?")


def rewrite(path: Path) -> None:
    """Replace the last byte. The size does not change."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
