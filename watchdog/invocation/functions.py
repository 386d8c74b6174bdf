"""The two kinds of function: a script, or the command of ``fprocess``. The settings choose one of them at the start.

A script gets its input as a file and writes its outputs as files. A classic function reads the body from its stdin
while the body arrives. So it gets its place before the body is complete. Its answer is what it prints.
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

# The first bytes of a script, which are enough to find the reason for its failure.
_READ_FOR_HINT_BYTES = 64 * 1024


class Function(ABC):
    """The program that a call runs.

    ``noun``: the word for it in messages. ``works_with_files``: its input and its outputs are files.
    ``has_crlf``: when :meth:`command` last ran, the program was a shell script with Windows line ends. ``has_mark``: at
    that time, the program began with a byte order mark.
    """

    noun: str
    works_with_files: bool
    has_crlf = False
    has_mark = False

    @abstractmethod
    def command(self, workspace: Workspace | None) -> list[str]:
        """Return the command to run. Without a workspace, only check that it could be run.

        Raises:
            ScriptUnavailable: it could not be run.
        """

    @abstractmethod
    def stdin(self, body: AsyncIterator[bytes], record: Record) -> AsyncIterator[bytes] | None:
        """Return the bytes for the function's stdin; None means that stdin is empty."""

    @abstractmethod
    def answers_with(self, failure: ScriptFailed | ScriptKilled) -> bool:
        """Return whether the function's stdout is sent as the answer after this failure."""

    @property
    def problem(self) -> str | None:
        """The reason why no call could be answered now, or None."""
        try:
            self.command(None)
        except ScriptUnavailable as error:
            return str(error)
        return None

    def hint(self, exit_code: int) -> str:
        """Return a likely reason for this exit code, as the end of a sentence. The text is empty if none is known."""
        return ", which a shell returns if a command is not found in the image" if exit_code == 127 else ""


class ScriptFunction(Function):
    """A script: the file ``script_path``, or the text in the variable ``SCRIPT``.

    Args:
        path: the path of the file. Possibly it does not exist yet.
        text: the text of the script, if it replaces the file.
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
        """Return the command to run (:meth:`Function.command`). Write the text of ``SCRIPT`` into the workspace."""
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
        command: the words of the command.
        search_path: the function's ``PATH``.
        max_input_size_bytes: the largest size of the body; 0 means no limit.
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
        """Yield the pieces of the body as they arrive, and count the bytes in ``record``.

        Raises:
            InputTooLarge: the body is larger than ``max_input_size_bytes``.
        """
        limit_bytes = self._max_input_size_bytes
        async for piece in body:
            record.input_bytes += len(piece)
            if limit_bytes and record.input_bytes > limit_bytes:
                raise InputTooLarge(f"the input is over {limit_bytes} bytes (max_input_size)")
            yield piece

    def answers_with(self, failure: ScriptFailed | ScriptKilled) -> bool:
        # If memory or disk space ran out, the call must fail with that error, so that the operator notices it, too.
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
