"""Run the function for a call, from the private directory with the input to the stored outputs."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence

from ..errors import BadScriptResponse, Draining, OutOfResources, WatchdogError
from ..logs.setup import get_logger
from ..logs.sink import LogWriter
from ..logs.text import printable
from ..output.answer import Result
from ..output.call_warning import STILL_WORKING
from ..process.ended import Ended
from ..settings.declarations import Settings
from ..system.cgroup import Cgroup
from ..workspace.disposal import Disposal
from ..workspace.response_file import ResponseOverrides, read_response_file
from ..workspace.spool import Spool
from ..workspace.workspace import Workspace
from ..workspace.workspaces import Workspaces
from .admission import Ticket
from .call import Call, Record, Task
from .cleanups import Cleanups
from .doubts import Doubts
from .drainable_waits import DrainableWaits
from .failures import Failures
from .functions import Function
from .inputs import Inputs
from .narration import Narration
from .outputs import Outputs
from .refusal import refused_by_system
from .results import JoinedResult
from .run import Run
from .streams import Streams

log = get_logger("invocation")
_MOST_NAMES = 10  # names of processes in one log event


class Runner:
    """Runs the function, once for each task of a call.

    Args:
        sink: receives the lines that the function prints.
        after_place: the waits of calls that have or had a place. When they are ended, no run starts any more.
        narration: logs the start of each run; None if the log is for programs.

    Attributes:
        running: the number of calls whose function runs now.
    """

    def __init__(
        self,
        settings: Settings,
        function: Function,
        *,
        inputs: Inputs,
        outputs: Outputs,
        workspaces: Workspaces,
        disposal: Disposal,
        after_place: DrainableWaits,
        sink: LogWriter,
        narration: Narration | None,
    ) -> None:
        self._settings = settings
        self._function = function
        self._inputs = inputs
        self._outputs = outputs
        self._workspaces = workspaces
        self._disposal = disposal
        self._after_place = after_place
        self._sink = sink
        self._narration = narration
        cgroup = Cgroup()
        self._oom_kills = cgroup.oom_kills()
        self._failures = Failures(settings, function, cgroup)
        self._doubts = Doubts(settings.tmp_dir)
        self.running = 0

    async def run(
        self, call: Call, task: Task, ticket: Ticket | None, record: Record, cleanups: Cleanups, stdout: Spool
    ) -> Result:
        """Run the function once, and store its outputs.

        The call gives its place back when the function has ended and the next script cannot reach its files any more.

        Args:
            stdout: receives what the function prints, after what earlier runs of the call printed.
            ticket: None if another run of the same call follows. Then the call keeps its place.

        Raises:
            WatchdogError: the run failed, unless stdout is the answer in spite of the failure.
            asyncio.CancelledError: this call was cancelled. All processes are gone then, too.
            Exception: the error that the body raised. All processes are gone then, too.
        """
        settings, function = self._settings, self._function
        if self._after_place.are_ended:
            raise self._after_place.refusal()
        if settings.max_inflight == 1:
            await self._disposal.until_no_name_is_left()
        workspace = self._workspace(call, cleanups)
        printed_before = stdout.size_bytes
        await self._inputs.give_names(task, workspace)
        if self._narration is not None:
            self._narration.starts(call, task, record, is_loading=function.is_loading)
        run = await self._execute(call, task, workspace, stdout, function.stdin(call.body, record), record)
        run.add_to(record)
        failure = self._failures.of(run, record)
        outputs, skipped = await self._outputs.find(workspace, run, call.call_id)
        if self._narration is not None:
            self._narration.leaves(record, outputs, stdout.size_bytes - printed_before)
        self._outputs.check_size(outputs, record)
        warnings = await self._doubts.warnings_of(
            run,
            workspace,
            call.call_id,
            has_failed=failure is not None,
            skipped=skipped,
            is_empty=function.works_with_files
            and not outputs
            and stdout.size_bytes == printed_before
            and not stdout.overflowed,
        )
        outputs = self._outputs.put_out_of_reach(outputs, workspace, call, record, cleanups)
        if ticket is not None and not record.keeps_place:
            # A call that stores its outputs stays inside, because it still has files in tmp_dir. Otherwise a slow
            # storage could let the number of such files grow without bound.
            (ticket.leave_place if self._outputs.are_stored else ticket.hand_over)()
        if self._outputs.are_stored:
            await self._outputs.store(outputs, call)
        return Result(
            outputs=outputs,
            stdout=stdout,
            exit_code=run.ended.exit_code,
            duration_s=run.ended.duration_s,
            stdout_tail=run.stdout_tail,
            stderr_tail=run.stderr_tail,
            failure=failure,
            printed_type=run.printed_type,
            warnings=warnings,
        )

    async def run_all(
        self, call: Call, tasks: Sequence[Task], ticket: Ticket, record: Record, cleanups: Cleanups, stdout: Spool
    ) -> Result:
        """Run the function for each task, one after the other. After a failure, the next tasks still run.

        There may be thousands of tasks. So each run frees its input, and a run that fails frees all that it used.
        """
        results = JoinedResult(stdout)
        first_failure, failures = None, 0
        for number, task in enumerate(tasks, 1):
            try:
                if task.failure is not None:
                    raise task.failure
                printed_before = stdout.size_bytes
                with Cleanups() as own:
                    with Cleanups() as of_input:
                        if number > 1:
                            await self._inputs.fetch(call, task, record, self._after_place, of_input)
                        is_last = number == len(tasks)
                        result = await self.run(call, task, ticket if is_last else None, record, own, stdout)
                    cleanups.take_over(own)
                results.add(result, stdout.size_bytes - printed_before)
            except Draining:
                raise
            except WatchdogError as error:
                error.args = (f"object {number} of {len(tasks)}, {task.source}: {error}",)
                log.error("object of an event failed", call_id=call.call_id, reason=str(error))
                first_failure, failures = first_failure or error, failures + 1
            task.held = None
        if first_failure is not None:
            if failures > 1:
                first_failure.args = (f"{first_failure}; {failures} of {len(tasks)} objects failed, see the log",)
            raise first_failure
        return results.result()

    def close(self) -> None:
        """Close the count of the control group. Call this only when nothing runs any more."""
        self._oom_kills.close()

    def _workspace(self, call: Call, cleanups: Cleanups) -> Workspace:
        try:
            workspace = self._workspaces.make()
        except OSError as error:
            raise refused_by_system("a workspace", error) from error
        cleanups.add(self._disposal.dispose, workspace, workspace.loan, call.call_id)
        return workspace

    async def _execute(
        self,
        call: Call,
        task: Task,
        workspace: Workspace,
        stdout: Spool,
        stdin: AsyncIterator[bytes] | None,
        record: Record,
    ) -> Run:
        """Execute the function in a workspace that has its input, and return when all its processes are gone.

        A function that fails does not raise an error: the returned facts say how it ended.

        Args:
            stdout: receives what the function prints.
            stdin: the bytes for the function's stdin; None means that stdin is empty.
            record: gets the time for which the call waits for a worker.

        Raises:
            ScriptUnavailable, OutOfResources: the function cannot be started.
            asyncio.CancelledError, Exception: as in :meth:`run`.
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
        oom_kills = self._oom_kills.count()
        started_ns = time.time_ns()
        self.running += 1
        try:
            with call.trace.phase(f"run {function.noun}") as phase:
                ended = await function.execute(command, call, task, workspace, streams, stdin, timeout_s, record)
                phase.process_ended(ended.exit_code, ended.signal)
        finally:
            self.running -= 1
            streams.close()
        workspace.is_tree_gone = ended.is_tree_gone
        if ended.left or ended.survivors:
            self._report_left(call, ended)
        # The killed process may be the script, one of its children, or a process of another call.
        has_oom_kill = self._oom_kills.count() != oom_kills
        chosen: ResponseOverrides | None = None
        bad_choice: BadScriptResponse | OutOfResources | None = None
        if not ended.timed_out and not ended.ended_early:
            try:
                chosen = read_response_file(workspace.response_file)
            except (BadScriptResponse, OutOfResources) as error:
                bad_choice = error
        if bad_choice is not None and ended.exit_code != 0:
            # The failure of the script is more important than its response file. So the caller gets the error of the
            # failure.
            log.warning("response file ignored", call_id=call.call_id, reason=str(bad_choice))
            bad_choice = None
        return Run(
            ended,
            timeout_s=timeout_s,
            started_ns=started_ns,
            chosen=chosen,
            bad_choice=bad_choice,
            has_oom_kill=has_oom_kill,
            is_out_of_memory=has_oom_kill and ended.was_killed,
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


def _shorter(limit_s: float, asked_s: float) -> float:
    """Return the shorter of two time limits. 0 means no limit."""
    return min(limit_s, asked_s) if limit_s and asked_s else limit_s or asked_s
