"""Names of answers: safe paths below the directory that the user named."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from urllib.parse import unquote_to_bytes

from ..errors import AnswerBroken, quoted
from ..output.media_type import ending_of

_LONGEST_NAME_BYTES = 255  # NAME_MAX of Linux


def name_in_header(value: str) -> str:
    """Return the name in ``X-Output-Name``, which is percent-encoded. Its bytes may be UTF-8 or not."""
    return os.fsdecode(unquote_to_bytes(value.encode("utf-8", "surrogateescape")))


def parts_of(name: str) -> list[str]:
    """Return the folders of a name, and the file's own name at the end.

    Raises:
        AnswerBroken: the path leads out of the directory, or is not the path of a file.
    """
    parts = name.split("/")
    if "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise AnswerBroken(
            f"the service named an output {quoted(name)}, which is not the path of a file below a directory, so the "
            "answer was not kept"
        )
    return parts


def name_for(label: str, content_type: str) -> str:
    """Return the name of the input with an ending that fits the content type, for an answer without a name."""
    ending = ending_of(content_type.partition(";")[0].strip().lower())
    return os.fsdecode(os.fsencode(label)[: _LONGEST_NAME_BYTES - len(ending)]) + ending


def numbered(name: str) -> Iterator[str]:
    """Yield ``gray-2.jpg``, ``gray-3.jpg`` and so on."""
    stem, ending = os.path.splitext(name)
    number = 2
    while True:
        yield f"{stem}-{number}{ending}"
        number += 1


def distinct(labels: Iterable[str]) -> list[str]:
    """Return the labels in their order. A label that occurs again gets a number: ``x.jpg``, ``x-2.jpg``."""
    taken: dict[str, None] = {}
    others: dict[str, Iterator[str]] = {}
    for label in labels:
        name = label
        if name in taken:
            name = next(each for each in others.setdefault(label, numbered(label)) if each not in taken)
        taken[name] = None
    return list(taken)
