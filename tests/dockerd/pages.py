"""The commands with Docker in the pages for users, and other blocks of code that they need."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[2]
# The changelog may contain commands of earlier versions.
PAGES = sorted(
    str(path.relative_to(PROJECT))
    for pattern in ("*.md", "docs/**/*.md", "examples/*.md", "examples/*/*.md")
    for path in PROJECT.glob(pattern)
    if path.name != "CHANGELOG.md"
)

_BLOCK = re.compile(r"^```([\w-]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# At the beginning of a command, also behind `$ `, `sudo`, `;`, `|`, `&&` and in `$(…)`.
_DOCKER = re.compile(r"(?:^|\$\(|[;|&]\s*)(?:sudo\s+)?docker(?:-compose)?\s")
_INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")


def text_of(page: str) -> str:
    return (PROJECT / page).read_text()


def commands(page: str) -> list[str]:
    """Each command with Docker, in the order of the page; continued lines are one line."""
    text = text_of(page)
    found = [(start, command) for start, command in _typed(text) if _DOCKER.search(command)]
    outside = _BLOCK.sub(lambda match: " " * len(match[0]), text)
    for match in _INLINE.finditer(outside):
        words = match[1].split()
        # A page may also speak of `docker run`, without arguments.
        if words[:1] == ["docker"] and len(words) > 2:
            found.append((match.start(), " ".join(words)))
    return [command for _, command in sorted(found)]


def _typed(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that a reader types, each with a number that gives their order in the text."""
    for block in _BLOCK.finditer(text):
        if block[1] not in ("", "console", "sh", "bash", "shell"):
            continue
        lines = re.sub(r"\\\n\s*", "", block[2]).splitlines()
        has_prompts = any(line.startswith("$ ") for line in lines)
        for number, line in enumerate(lines):
            if line.startswith("$ ") or not has_prompts:
                yield block.start() + number, line.removeprefix("$ ").strip()


def block(page: str, kind: str, contains: str) -> str:
    """The first block of code of this kind with this text in it."""
    found = [match[2] for match in _BLOCK.finditer(text_of(page)) if match[1] == kind and contains in match[2]]
    assert found, f"{page} has no block of {kind} with the text {contains!r}"
    return found[0]
