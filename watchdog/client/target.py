"""Where the answer of a call goes: to stdout, or to files below a directory.

Without ``-o``, text and everything that is redirected goes to stdout. On a terminal, other answers become files in the
current directory, because a picture would disturb the terminal and the result of a long run must not be lost.
"""

from __future__ import annotations

import os
import sys

import msgspec

from ..errors import AnswerNotKept, ConfigError
from ..logs.text import printable
from ..output.media_type import BYTES_TYPE, guessed_type

_TEXTS = frozenset({"application/json", "application/xml", "application/yaml", "image/svg+xml"})


class Target(msgspec.Struct, frozen=True):
    """The place for the answer of one call.

    ``directory``: the directory of the user; None means stdout, except for binary data on a terminal. ``prefix``: the
    folder below it for files that the script leaves. ``is_forced_to_stdout``: the user gave ``-o -``.
    """

    directory: str | None
    prefix: str = ""
    replaces: bool = False
    is_forced_to_stdout: bool = False

    def prepare(self) -> None:
        """Make the directory before the call, so that the result of a run is not lost.

        Raises:
            AnswerNotKept: the directory cannot be made, no file can be made in it, or its name looks like that of a
                file. Or stdout is a terminal, and no file can be made in the current directory.
        """
        if self.directory is None:
            if sys.stdout.isatty() and not self.is_forced_to_stdout and not _is_writable("."):
                raise AnswerNotKept(
                    "no file can be made in the current directory, so an answer that is not text would be lost; "
                    "use -o DIR, or -o - if the answer is text"
                )
            return
        if not os.path.lexists(self.directory) and guessed_type(self.directory) != BYTES_TYPE:
            raise AnswerNotKept(
                f"-o names a directory, and {self.directory} looks like a file; write the answer to it with "
                f"> {self.directory}, or give a directory (-o {self.directory}/)"
            )
        try:
            os.makedirs(self.directory, exist_ok=True)
        except OSError as error:
            why = str(error.strerror)
            if isinstance(error, FileExistsError | NotADirectoryError):
                why = "it is not a directory; give a directory, or write the answer to a file with > FILE"
            raise AnswerNotKept(f"the directory {self.directory} (-o) cannot be used: {why}") from None
        if not _is_writable(self.directory):
            raise AnswerNotKept(f"the directory {self.directory} (-o) cannot be used: no permission to write to it")

    def directory_for(self, content_type: str) -> str | None:
        """Return the directory for an answer of this type; None means stdout.

        Raises:
            AnswerNotKept: the answer would go to a terminal, and is not text.
        """
        if self.directory is not None or not sys.stdout.isatty() or is_text(content_type):
            return self.directory
        if self.is_forced_to_stdout:
            kind = printable(content_type) or "of unknown type"
            raise AnswerNotKept(
                f"the answer ({kind}) is not text, and is not written to the terminal; "
                "redirect stdout to a file (> FILE), or use -o DIR"
            )
        return "."


def _is_writable(directory: str) -> bool:
    return os.access(directory, os.W_OK | os.X_OK)


def is_text(content_type: str) -> bool:
    """Return whether a terminal can show data of this media type."""
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type.startswith("text/") or media_type in _TEXTS or media_type.endswith(("+json", "+xml"))


def targets(output: str | None, labels: list[str], *, replaces: bool) -> list[Target]:
    """Return the target of each input.

    Args:
        output: ``-o``.
        labels: a name for each input. No name occurs twice.

    Raises:
        ConfigError: there are several inputs, but ``output`` does not name a directory.
    """
    is_stdout = output in (None, "-")
    if len(labels) == 1:
        return [Target(None if is_stdout else output, "", replaces, output == "-")]
    if is_stdout:
        raise ConfigError(["several files need -o DIR, the directory for their answers"])
    return [Target(output, label, replaces) for label in labels]
