"""Run the function once, with its environment and its log, and collect the facts about its end."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator

from ..errors import BadScriptResponse
from ..logs.setup import get_logger
from ..logs.sink import LogWriter
from ..logs.text import printable
from ..output.call_warning import STILL_WORKING
from ..process.ended import Ended
from ..settings.declarations import Settings
from ..system.cgroup import Cgroup
from ..workspace.response_file import ResponseOverrides, read_response_file
from ..workspace.spool import Spool
from ..workspace.workspace import Workspace
from .call import Call, Task
from .functions import Function
from .run import Run
from .streams import Streams

log = get_logger("invocation")
_MOST_NAMES = 10  # names of processes in one log event
_KILLED_CHILD = 128 + signal.SIGKILL  # the exit code of a shell whose last child was killed


class Runner:
    """Runs the function.

    Args:
        sink: receives the lines that the function prints.

    Attributes:
        running: the number of calls whose function runs now.
    """

    def __init__(
        self,
        settings: Settings,
        function: Function,
        *,
        sink: LogWriter,
        cgroup: Cgroup,
    ) -> None:
        self._settings = settings
        self._function = function
        self._sink = sink
        self._cgroup = cgroup
        self.running = 0

    async def run(
        self, call: Call, task: Task, workspace: Workspace, stdout: Spool, stdin: AsyncIterator[bytes] | None
    ) -> Run:
        """Run the function in a workspace that has its input, and return when all its processes are gone.

        A function that fails does not raise an error: the result says how it ended.

        Args:
            stdout: receives what the function prints.
            stdin: the bytes for the function's stdin; None means that stdin is empty.

        Raises:
            ScriptUnavailable: the function cannot be started.
            asyncio.CancelledError: this call was cancelled. All processes are gone then, too.
            Exception: the error that ``stdin`` raised. All processes are gone then, too.
        """
        function, settings = self._function, self._settings
        command = function.command(workspace)
        has_crlf, has_mark = function.has_crlf, function.has_mark
        streams = Streams(
            self._sink,
            call.call_id,
            settings.max_log_rate_bytes,
            stdout,
            is_data=not function.works_with_files,
            observer=call.observer,
        )
        timeout_s = _shorter(settings.exec_timeout_s, call.timeout_s)
        oom_kills = self._cgroup.oom_kills()
        started_ns = time.time_ns()
        self.running += 1
        try:
            with call.trace.phase(f"run {function.noun}") as phase:
                ended = await function.execute(command, call, task, workspace, streams, stdin, timeout_s)
                phase.process_ended(ended.exit_code, ended.signal)
        finally:
            self.running -= 1
            streams.close()
        workspace.is_tree_gone = ended.is_tree_gone
        if ended.left or ended.survivors:
            self._report_left(call, ended)
        # The killed process may be the script, one of its children, or a process of another call.
        was_killed = _was_killed(ended)
        has_oom_kill = (was_killed or ended.exit_code == 0) and self._cgroup.oom_kills() != oom_kills
        chosen: ResponseOverrides | None = None
        bad_choice = None
        if not ended.timed_out and not ended.ended_early:
            try:
                chosen = read_response_file(workspace.response_file)
            except BadScriptResponse as error:
                bad_choice = str(error)
        if bad_choice is not None and ended.exit_code != 0:
            # The failure of the script is more important than its response file. So the caller gets the error of the
            # failure.
            log.warning("response file ignored", call_id=call.call_id, reason=bad_choice)
            bad_choice = None
        return Run(
            ended,
            timeout_s=timeout_s,
            started_ns=started_ns,
            chosen=chosen,
            bad_choice=bad_choice,
            has_oom_kill=has_oom_kill,
            is_out_of_memory=has_oom_kill and was_killed,
            has_no_space=workspace.is_full(),
            has_crlf=has_crlf,
            has_mark=has_mark,
            stdout_tail=streams.stdout_tail,
            stderr_tail=streams.stderr_tail,
            printed_type=streams.printed_type,
        )

    def _report_left(self, call: Call, ended: Ended) -> None:
        """Log the processes that the server had to end after the script's exit, and those that SIGKILL did not end."""
        if ended.left:
            event = f"processes that the {self._function.noun} left were ended"
            if ended.were_working:
                event += " while they still worked"
            log.warning(
                event,
                call_id=call.call_id,
                count=sum(ended.left.values()),
                names=[printable(name) for name in list(ended.left)[:_MOST_NAMES]],
                **({"reason": STILL_WORKING.detail} if ended.were_working else {}),
            )
        if ended.survivors:
            log.error("processes survived SIGKILL", call_id=call.call_id, count=ended.survivors)


def _was_killed(ended: Ended) -> bool:
    by_us = ended.timed_out or ended.ended_early
    return not by_us and (ended.signal == "SIGKILL" or ended.exit_code == _KILLED_CHILD)


def _shorter(limit_s: float, asked_s: float) -> float:
    """Return the shorter of two time limits. 0 means no limit."""
    return min(limit_s, asked_s) if limit_s and asked_s else limit_s or asked_s
