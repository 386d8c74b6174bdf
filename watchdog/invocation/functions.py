"""The two kinds of function, of which one is chosen at the start: a script, or the command of ``fprocess``.

A script gets its input as a file and leaves files. A classic function reads the body from its stdin while the body
comes, so it has its place before the body is complete. Its answer is what it prints.
"""

from __future__ import annotations

import contextlib
import shlex
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

from ..errors import (
    InputTooLarge,
    ScriptFailed,
    ScriptKilled,
    ScriptOutOfMemory,
    ScriptOutOfSpace,
    ScriptUnavailable,
)
from ..process.byte_order_mark import MARK_HINT, has_mark, refuse_utf16
from ..process.command import CRLF_HINT, Script, command_for, found_command, has_crlf, is_shell_script
from ..settings.load import Configuration
from ..system.files import open_regular
from ..workspace.space import raise_if_no_space
from ..workspace.workspace import Workspace
from .call import Record
from .refusal import refused_by_system

# Enough of a script to explain its failure.
_READ_FOR_HINT_BYTES = 64 * 1024


class Function(ABC):
    """What a call runs.

    ``noun``: its name in messages. ``works_with_files``: its input is a file, and so are its outputs.
    ``has_crlf``, ``has_mark``: whether the script of the last :meth:`command` was a shell script with line ends of
    Windows, and whether it began with a byte order mark.
    """

    noun: str
    works_with_files: bool
    has_crlf = False
    has_mark = False

    @abstractmethod
    def command(self, workspace: Workspace | None) -> list[str]:
        """Return the command to run; without a workspace only find out whether it could be run.

        Raises:
            ScriptUnavailable: there is none that could be run.
        """

    @abstractmethod
    def stdin(self, body: AsyncIterator[bytes], record: Record) -> AsyncIterator[bytes] | None:
        """Return what the function reads from its stdin; None is the end of file."""

    @abstractmethod
    def answers_with(self, failure: ScriptFailed | ScriptKilled) -> bool:
        """Return whether what the function printed is the answer although it failed like this."""

    @property
    def problem(self) -> str | None:
        """Why no call could be served now, or None."""
        try:
            self.command(None)
        except ScriptUnavailable as error:
            return str(error)
        return None

    def hint(self, exit_code: int) -> str:
        """Return a likely reason for this exit code, as the rest of a sentence; empty if there is none."""
        return ", which a shell gives when a command is not found in the image" if exit_code == 127 else ""


class ScriptFunction(Function):
    """A script: the file ``script_path``, or the text given in ``SCRIPT``.

    Args:
        path: of the file; it may not exist yet.
        text: of the script, in place of the file.
        search_path: the script's ``PATH``.
    """

    noun = "script"
    works_with_files = True

    def __init__(self, path: str, text: bytes | None, search_path: str) -> None:
        self._path = path
        self._text = text
        self._search_path = search_path
        self._script = Script(path)
        if text is not None:
            self.has_crlf, self.has_mark = has_crlf(text), has_mark(text)

    def command(self, workspace: Workspace | None) -> list[str]:
        """See :meth:`Function.command`; ``workspace`` takes the file made of ``SCRIPT``."""
        if self._text is None:
            command = self._script.command(self._search_path)
            self.has_crlf, self.has_mark = self._script.has_crlf, self._script.has_mark
            return command
        if workspace is None:
            refuse_utf16(self._text, "SCRIPT")
            return ["/bin/sh"]
        script_path = workspace.path + "/script.sh"
        try:
            with open(script_path, "xb") as file:
                file.write(self._text)
        except OSError as error:
            raise_if_no_space(error, "the script given in SCRIPT")
            raise refused_by_system("the script given in SCRIPT", error) from error
        return command_for(script_path, self._search_path)

    def stdin(self, body: AsyncIterator[bytes], record: Record) -> AsyncIterator[bytes] | None:
        return None

    def answers_with(self, failure: ScriptFailed | ScriptKilled) -> bool:
        return False

    def hint(self, exit_code: int) -> str:
        text = self._text
        if text is None:
            with contextlib.suppress(OSError), open(open_regular(self._path), "rb") as file:
                text = file.read(_READ_FOR_HINT_BYTES)
        if text is not None and b"\r\n" in text and is_shell_script(text):
            return f"; {CRLF_HINT}"
        if text is not None and has_mark(text):
            return f"; {MARK_HINT}"
        return super().hint(exit_code)


class ClassicFunction(Function):
    """The command of ``fprocess``.

    Args:
        command: its words.
        search_path: the function's ``PATH``.
        max_input_size_bytes: of the body; 0 is no limit.
    """

    noun = "function"
    works_with_files = False

    def __init__(self, command: list[str], search_path: str, max_input_size_bytes: int) -> None:
        self._command = command
        self._search_path = search_path
        self._max_input_size_bytes = max_input_size_bytes

    def command(self, workspace: Workspace | None) -> list[str]:
        return found_command(self._command, self._search_path)

    async def stdin(self, body: AsyncIterator[bytes], record: Record) -> AsyncIterator[bytes]:
        """Yield the body as it comes, and count it in ``record``.

        Raises:
            InputTooLarge: the body is over ``max_input_size_bytes``.
        """
        limit_bytes = self._max_input_size_bytes
        async for piece in body:
            record.input_bytes += len(piece)
            if limit_bytes and record.input_bytes > limit_bytes:
                raise InputTooLarge(f"the input is over {limit_bytes} bytes (max_input_size)")
            yield piece

    def answers_with(self, failure: ScriptFailed | ScriptKilled) -> bool:
        # What a container lacks is for its operator to know, not only for the caller.
        return not isinstance(failure, (ScriptOutOfMemory, ScriptOutOfSpace))


def function_of(configuration: Configuration, search_path: str) -> Function:
    """Return the function of a service.

    Args:
        search_path: the function's ``PATH``.
    """
    settings = configuration.settings
    if settings.fprocess is not None:
        return ClassicFunction(shlex.split(settings.fprocess), search_path, settings.max_input_size_bytes)
    return ScriptFunction(settings.script_path, configuration.script_text, search_path)
