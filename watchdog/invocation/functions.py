"""The kinds of function: a script, a warm script, or the command of ``fprocess``. The settings choose one at the start.

A script gets its input as a file and writes its outputs as files. Usually it starts once for each call. A warm script
(``warm_function.py``) stays alive and serves many calls. A classic function reads the body from its stdin while the
body arrives. So it gets its place before the body is complete. Its answer is what it prints.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping

from ..errors import (
    Draining,
    InputTooLarge,
    OutOfResources,
    ScriptFailed,
    ScriptKilled,
    ScriptOutOfMemory,
    ScriptOutOfSpace,
    ScriptUnavailable,
)
from ..process.byte_order_mark import MARK_HINT, has_mark, refuse_utf16
from ..process.command import CRLF_HINT, Script, command_for, found_command, has_crlf, is_shell_script
from ..process.ended import Ended
from ..process.supervisor import Supervisor
from ..settings.declarations import Settings
from ..system.files import open_regular
from ..workspace.space import raise_if_no_space
from ..workspace.workspace import Workspace
from .call import Call, Record, Task
from .environment import environment_of
from .refusal import refused_by_system
from .streams import Streams

# The first bytes of a script, which are enough to find the reason for its failure.
_READ_FOR_HINT_BYTES = 64 * 1024
# The exit codes of /bin/sh for a syntax error and for a command that is not found. It returns them for the text of
# another language, for example Python.
_SHELL_CANNOT_READ = frozenset({2, 127})
_NO_INTERPRETER_HINT = (
    "its first line names no interpreter, so /bin/sh ran it: for Python, the first line is #!/usr/bin/env python3"
)


class Function(ABC):
    """The program that a call runs.

    Args:
        environment: the variables that are the same for all calls; see :mod:`environment`.

    ``noun``: the word for it in messages. ``works_with_files``: its input and its outputs are files.
    ``has_crlf``: when :meth:`command` last ran, the program was a shell script with Windows line ends. ``has_mark``: at
    that time, the program began with a byte order mark.

    Only a warm function has workers. For the other kinds, the methods for workers do nothing.
    """

    noun: str
    works_with_files: bool
    has_crlf = False
    has_mark = False

    def __init__(self, settings: Settings, environment: Mapping[str, str], supervisor: Supervisor) -> None:
        self._settings = settings
        self._environment = environment
        self._search_path = environment.get("PATH", os.defpath)
        self._supervisor = supervisor

    async def execute(
        self,
        command: list[str],
        call: Call,
        task: Task,
        workspace: Workspace,
        streams: Streams,
        stdin: AsyncIterator[bytes] | None,
        timeout_s: float,
        record: Record,
    ) -> Ended:
        """Run the function for a call, and return how it ended.

        After the return, no process of the function can delay the call.

        Args:
            command: what :meth:`command` returned.
            streams: take what the function prints.
            stdin: the bytes for the function's stdin; None means that stdin is empty.
            timeout_s: the longest time that it may run; 0 means no limit.
            record: gets the time for which the call waits for a worker.

        Raises:
            ScriptUnavailable, OutOfResources: the function cannot be started.
            asyncio.CancelledError: this call was cancelled.
            Exception: the error that ``stdin`` raised.
        """
        settings = self._settings
        child = self._supervisor.start(
            command,
            environment_of(call, task, workspace, self._environment, works_with_files=self.works_with_files),
            # With the slash, the mark of workspace 1 is not a prefix of the mark of workspace 10.
            mark=workspace.path + "/",
            stdout=streams.take_stdout,
            stderr=None if settings.combine_output else streams.take_stderr,
            progress=streams.take_progress,
            stdin=stdin,
            kill_grace_s=settings.kill_grace_s,
        )
        if call.observer is not None:
            call.observer.started(None)
        return await self._supervisor.until_ended(
            child, timeout_s=timeout_s, linger_timeout_s=settings.linger_timeout_s
        )

    @abstractmethod
    def command(self, workspace: Workspace | None) -> list[str]:
        """Return the command to run. Without a workspace, only check that it could be run.

        Raises:
            ScriptUnavailable, OutOfResources: it could not be run.
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
        except (ScriptUnavailable, OutOfResources) as error:
            return str(error)
        return None

    @property
    def is_loading(self) -> bool:
        """Whether workers load, and none of them is ready or has failed yet."""
        return False

    def start(self) -> None:  # noqa: B027
        """Begin to load the workers. A second call does nothing."""

    async def until_started(self) -> None:  # noqa: B027
        """Wait until a worker is ready, or a load has failed."""

    def refuse(self, refusal: Callable[[], Draining]) -> None:  # noqa: B027
        """Reject the calls that wait for a worker, now and later, and load no more workers.

        Args:
            refusal: makes the error of these calls.
        """

    async def close(self) -> None:  # noqa: B027
        """Ask the workers to end, and return when they have ended. Call this only when no invocation runs any more."""

    def hint(self, exit_code: int) -> str:
        """Return a likely reason for this exit code, as the end of a sentence. The text is empty if none is known."""
        return ", which a shell returns if a command is not found in the image" if exit_code == 127 else ""


class ScriptFunction(Function):
    """A script: the file ``script_path``, or the text in the variable ``SCRIPT``.

    Args:
        text: the text of ``SCRIPT``; None if the script is the file. The file possibly does not exist yet.
    """

    noun = "script"
    works_with_files = True

    def __init__(
        self, settings: Settings, environment: Mapping[str, str], supervisor: Supervisor, text: bytes | None
    ) -> None:
        super().__init__(settings, environment, supervisor)
        self._path = settings.script_path
        self._text = text
        self._script = Script(self._path)
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
        if text is not None and exit_code in _SHELL_CANNOT_READ and not text.startswith((b"#!", b"\x7fELF")):
            return f"{super().hint(exit_code)}; {_NO_INTERPRETER_HINT}"
        return super().hint(exit_code)


class ClassicFunction(Function):
    """The command of ``fprocess``."""

    noun = "function"
    works_with_files = False

    def __init__(self, settings: Settings, environment: Mapping[str, str], supervisor: Supervisor) -> None:
        super().__init__(settings, environment, supervisor)
        self._command = shlex.split(settings.fprocess or "")

    def command(self, workspace: Workspace | None) -> list[str]:
        return found_command(self._command, self._search_path)

    async def stdin(self, body: AsyncIterator[bytes], record: Record) -> AsyncIterator[bytes]:
        """Yield the pieces of the body as they arrive, and count the bytes in ``record``.

        Raises:
            InputTooLarge: the body is larger than ``max_input_size_bytes``.
        """
        limit_bytes = self._settings.max_input_size_bytes
        async for piece in body:
            record.input_bytes += len(piece)
            if limit_bytes and record.input_bytes > limit_bytes:
                raise InputTooLarge(f"the input is over {limit_bytes} bytes (max_input_size)")
            yield piece

    def answers_with(self, failure: ScriptFailed | ScriptKilled) -> bool:
        # If memory or disk space ran out, the call must fail with that error. Then the operator notices the shortage.
        return not isinstance(failure, (ScriptOutOfMemory, ScriptOutOfSpace))
