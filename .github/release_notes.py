#!/usr/bin/env python3
"""Print the notes of a release: the section of CHANGELOG.md for its version.

    python .github/release_notes.py TAG

The release stops with an error if the tag is not `v` and the version of the program, or if the changelog has no section
for this version with a date: `## [0.2.0] - 2026-11-28`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_PROJECT = Path(__file__).resolve().parent.parent


def main(tag: str) -> None:
    version = _version(_PROJECT / "watchdog/__init__.py")
    if tag != f"v{version}":
        sys.exit(
            f"the tag {tag} is not v{version}, the version in watchdog/__init__.py: move the tag or change the version"
        )
    print(_section((_PROJECT / "CHANGELOG.md").read_text(), version))


def _version(file: Path) -> str:
    match = re.search(r'^__version__ = "(.+)"$', file.read_text(), re.MULTILINE)
    if match is None:
        sys.exit(f'{file} has no line __version__ = "…"')
    return match[1]


def _section(changelog: str, version: str) -> str:
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n"
    match = re.search(heading + r"(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if match is None:
        sys.exit(
            f"CHANGELOG.md has no heading '## [{version}] - YYYY-MM-DD': name the version and the date of the release"
        )
    if not (text := match[1].strip()):
        sys.exit(f"the section of CHANGELOG.md for {version} is empty: say what changed")
    return text


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: release_notes.py TAG")
    main(sys.argv[1])
