"""Start a command in its own session, with new pipes, default signals, and the marks that show what belongs to it."""

from __future__ import annotations

import asyncio
import errno
import os
import shlex
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from ..errors import OutOfResources, ScriptUnavailable, WatchdogError
from ..system.files import MORE_DESCRIPTORS, TOO_MANY_OPEN_FILES
from .child import Child
from .decoy import Decoy
from .guardian import Guardian
from .limit_mark import LimitMark
from .oom_preference import OomPreference
from .pipes import Consumer, Feed, Pipe
from .progress_descriptor import PROGRESS_FD
from .watch import Watch

# Python ignores SIGPIPE and SIGXFSZ. If the server was started with `&` or nohup, other signals may be ignored, too.
# The script would inherit this.
_DEFAULT_SIGNALS = [s for s in signal.valid_signals() if s not in (signal.SIGKILL, signal.SIGSTOP)]
_NO_STDIN = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)


class Spawner:
    """Starts commands. A new command gets a limit and an oom_score_adj. The guardian knows it, the decoy aims at it."""

    def __init__(
        self, watch: Watch, limit_mark: LimitMark, preference: OomPreference, guardian: Guardian, decoy: Decoy
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._watch = watch
        self._limit_mark = limit_mark
        self._preference = preference
        self._guardian = guardian
        self._decoy = decoy

    def spawn(
        self,
        command: list[str],
        environment: Mapping[str, str],
        mark: str,
        stdout: Consumer,
        stderr: Consumer | None,
        stdin: AsyncIterator[bytes] | None,
        progress: Consumer | None,
        kill_grace_s: float,
        descriptors: Sequence[int] = (),
    ) -> Child:
        """Start a command. The arguments are those of :meth:`Supervisor.start`.

        Raises:
            ScriptUnavailable, OutOfResources: the command cannot be started.
        """
        mark_bytes = os.fsencode(mark)
        slot = self._guardian.note(mark_bytes)
        pipes: tuple[Pipe, ...] = ()
        stdin_ends: tuple[int, ...] = ()
        try:
            pipes = (Pipe(self._watch, stdout),)
            to_stdout = (os.POSIX_SPAWN_DUP2, pipes[0].writing_fd, 1)
            if stderr is None:
                to_stderr = (os.POSIX_SPAWN_DUP2, 1, 2)
            else:
                pipes = (*pipes, Pipe(self._watch, stderr))
                to_stderr = (os.POSIX_SPAWN_DUP2, pipes[1].writing_fd, 2)
            from_stdin: tuple[Any, ...] = _NO_STDIN
            if stdin is not None:
                stdin_ends = os.pipe()
                from_stdin = (os.POSIX_SPAWN_DUP2, stdin_ends[0], 0)
            more = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(descriptors, 3)]
            if progress is not None:
                pipes = (*pipes, Pipe(self._watch, progress))
                more.append((os.POSIX_SPAWN_DUP2, pipes[-1].writing_fd, PROGRESS_FD))
            limit = self._limit_mark.next()
            with self._preference:
                pid = os.posix_spawn(
                    command[0],
                    command,
                    environment,
                    file_actions=(to_stdout, to_stderr, from_stdin, *more),
                    setsid=True,
                    setsigmask=[],
                    setsigdef=_DEFAULT_SIGNALS,
                )
        except (OSError, ValueError) as error:
            self._guardian.forget(slot)
            for fd in stdin_ends:
                os.close(fd)
            for pipe in pipes:
                pipe.close()
            if isinstance(error, ValueError):  # a NUL in an argument or a variable, or `=` in a variable's name
                raise ScriptUnavailable(f"cannot start {shlex.join(command)}: {error}") from error
            raise _cannot_start(command, environment, error) from error
        self._guardian.note_session(slot, pid)
        self._preference.give(pid)
        self._decoy.aim_at(pid)
        feed = None
        if stdin is not None:
            os.close(stdin_ends[0])
            feed = Feed(self._loop, stdin_ends[1], stdin)
        self._limit_mark.give(pid, limit)
        try:
            child = Child(pid, mark_bytes, limit, pipes, feed, self._loop, self._watch, slot, kill_grace_s)
        except RuntimeError as error:
            # There is neither a pidfd nor a thread that could wait for the exit.
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self._guardian.forget(slot)
            if feed is not None:
                feed.close()
            for pipe in pipes:
                pipe.close()
            raise OutOfResources(
                f"cannot start {shlex.join(command)}: no thread can wait for its exit; the container's limit of "
                "processes or memory is reached"
            ) from error
        if feed is not None:
            feed.start(if_broken=child.ask_to_end)
        return child


def _cannot_start(command: list[str], environment: Mapping[str, str], error: OSError) -> WatchdogError:
    text = f"cannot start {shlex.join(command)}: {error.strerror}"
    if error.errno in (errno.EAGAIN, errno.ENOMEM):
        return OutOfResources(f"{text}; the container's limit of processes or memory is reached")
    if error.errno in TOO_MANY_OPEN_FILES:
        return OutOfResources(text + MORE_DESCRIPTORS)
    if error.errno == errno.E2BIG:
        size = sum(len(os.fsencode(k)) + len(os.fsencode(v)) + 2 for k, v in environment.items())
        text += f"; its environment has {size} bytes: send shorter headers or turn cgi_headers off"
    elif error.errno == errno.ENOEXEC:
        text += "; it is neither a program for this machine's processor nor a script that begins with #!"
    return ScriptUnavailable(text)
