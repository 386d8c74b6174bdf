"""Run one call, step by step: admit it, read its input, wait for a place, run, store, hand over, clean up.

These steps do not depend on HTTP. The server, ``watchdog run``, jobs and tests use them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from ..errors import Draining, ScriptFailed, ScriptKilled, WatchdogError
from ..logs.setup import get_logger
from ..logs.sink import LogWriter
from ..output.answer import Result
from ..process.supervisor import Supervisor
from ..settings.load import Configuration
from ..storage.transfer import Transfers
from ..storage.transfer_progress import Watcher
from ..system.cgroup import Cgroup
from ..telemetry.metrics import Metrics
from ..workspace.disposal import Disposal
from ..workspace.held_outputs import HeldOutputs
from ..workspace.outputs import Output, size_of
from ..workspace.response_file import NO_OVERRIDES
from ..workspace.space import is_full
from ..workspace.spool import Spool
from ..workspace.workspace import Workspace
from ..workspace.workspaces import Workspaces
from .accounting import Accounting
from .admission import Admission, Ticket
from .call import Call, Record, Task, add_run
from .choose_function import function_of
from .cleanups import Cleanups
from .doubts import Doubts
from .drainable_waits import DrainableWaits
from .environment import environment_of_all_calls
from .failures import Failures
from .found_outputs import check_size, found_outputs
from .inputs import Inputs
from .narration import Narration
from .outcome import outcome_of
from .refusal import refused_by_system
from .results import NOTHING, joined
from .run import Run
from .runner import Runner

log = get_logger("invocation")
_LONGEST_WAIT_FOR_SPACE_S = 1.0
# Number of outputs. A list of 1,000 outputs takes 0.4 MiB of memory. Only calls with a place may have longer lists, so
# there are few longer lists at a time.
_MOST_WITHOUT_PLACE = 1_000


class Invocations:
    """Runs the function, once for each call.

    Args:
        environ: the environment of the image. The function gets all of it except the server's secrets.
        sink: receives the lines that the function prints.
        watcher: is informed of the progress of transfers from and to storages.
    """

    def __init__(
        self,
        configuration: Configuration,
        environ: Mapping[str, str],
        *,
        sink: LogWriter,
        workspaces: Workspaces,
        supervisor: Supervisor,
        admission: Admission,
        metrics: Metrics,
        watcher: Watcher | None = None,
    ) -> None:
        self._settings = settings = configuration.settings
        self._admission = admission
        self._workspaces = workspaces
        self._disposal = Disposal(
            workspaces, others_run=lambda: bool(supervisor.running), not_removed=_report_not_removed
        )
        self._function = function_of(
            configuration,
            environment_of_all_calls(configuration, environ),
            admission=admission,
            sink=sink,
            supervisor=supervisor,
            workspaces=workspaces,
            disposal=self._disposal,
            metrics=metrics,
        )
        self._workers = self._function.workers
        self._transfers = Transfers(
            configuration.storages,
            timeout_s=settings.storage_timeout_s,
            environ=environ,
            metrics=metrics,
            watcher=watcher,
        )
        # The transfers of calls that have no place yet, and those of calls that have or had a place.
        self._before_place = DrainableWaits(admission.refusal)
        self._after_place = DrainableWaits(admission.refusal)
        self._inputs = Inputs(configuration, self._function, self._transfers, self._before_place)
        self._cgroup = Cgroup()
        self._runner = Runner(settings, self._function, sink=sink, cgroup=self._cgroup)
        self._failures = Failures(settings, self._function, self._cgroup)
        self._doubts = Doubts(settings.tmp_dir)
        self._held_outputs = HeldOutputs(self._disposal.in_thread)
        self._accounting = Accounting(self._function.noun, metrics)
        self._narration = Narration() if sink.form.is_for_people else None
        self._handing_over = 0
        # Whether outputs are stored in a storage.
        self.stores = self._transfers.stores and self._function.works_with_files
        # Whether a body may be an event of a storage of the service definition. If not, each body is data.
        self.takes_events = self._inputs.may_be_events

    async def invoke(self, call: Call, record: Record, hand_over: Callable[[Result], Awaitable[None]]) -> None:
        """Run the function on the body of the call, and hand over its result. Then remove the files of the call.

        If the body is an event without an object to process, the script does not run and the call does not wait for a
        place. Then the result is empty, ``record.outcome`` is ``SKIPPED``, and ``record.reason`` has the reason.

        Raises:
            WatchdogError: any type of ``errors.py``. ``record`` has the values of all steps before the error. The
                failure of a classic function is usually not raised: it is a part of the result, together with stdout.
            Exception: the error that ``hand_over`` raised.
        """
        with self._accounting.of(call, record), self._admission.enter() as ticket, Cleanups() as cleanups:
            await self._wait_for_disk_space()
            tasks = await self._inputs.tasks(call, record, cleanups)
            if not tasks:
                await hand_over(NOTHING)
                return
            await self._wait_for_place(call, ticket, record)
            if len(tasks) == 1:
                result = await self._run(call, tasks[0], ticket, record, cleanups)
            else:
                result = await self._run_all(call, tasks, ticket, record, cleanups)
            if not record.keeps_place:
                ticket.hand_over()
            ticket.holds(record.input_bytes + size_of(result.outputs) + result.stdout.size_bytes)
            self._handing_over += 1
            try:
                await hand_over(result)
            finally:
                self._handing_over -= 1

    async def _wait_for_disk_space(self) -> None:
        """If the disk is full, wait a moment for the calls that are about to finish, because they free space.

        The files of an answer are removed only after the caller has the whole answer. So a caller may send its next
        call before the disk has space again.
        """
        until_s = time.monotonic() + _LONGEST_WAIT_FOR_SPACE_S
        while (self._disposal.has_work or self._handing_over) and is_full(self._settings.tmp_dir):
            if time.monotonic() > until_s:
                return
            await asyncio.sleep(0.005)

    async def _wait_for_place(self, call: Call, ticket: Ticket, record: Record) -> None:
        if self._narration is not None and not self._admission.has_free_place:
            self._narration.waits(call, self._admission.waiting + 1)
        try:
            with call.trace.phase("wait for a place"):
                await ticket.place(None if call.observer is None else call.observer.queued)
        finally:  # also for a call that got no place
            record.queue_wait_s = ticket.waited_s

    async def _run_all(
        self, call: Call, tasks: Sequence[Task], ticket: Ticket, record: Record, cleanups: Cleanups
    ) -> Result:
        """Run the function for each task, one after the other. After a failure, the next tasks still run."""
        results, failures = [], []
        for number, task in enumerate(tasks, 1):
            try:
                if task.failure is not None:
                    raise task.failure
                if number > 1:
                    await self._inputs.fetch(call, task, record, self._after_place, cleanups)
                is_last = number == len(tasks)
                results.append(await self._run(call, task, ticket if is_last else None, record, cleanups))
            except Draining:
                raise
            except WatchdogError as error:
                error.args = (f"object {number} of {len(tasks)}, {task.source}: {error}",)
                log.error("object of an event failed", call_id=call.call_id, reason=str(error))
                failures.append(error)
        if failures:
            if len(failures) > 1:
                failures[0].args = (f"{failures[0]}; {len(failures)} of {len(tasks)} objects failed, see the log",)
            raise failures[0]
        return joined(results)

    async def _run(self, call: Call, task: Task, ticket: Ticket | None, record: Record, cleanups: Cleanups) -> Result:
        """Run the function once, and store its outputs.

        The call gives its place back when the function has ended and the next script cannot reach its files any more.

        Args:
            ticket: None if another run of the same call follows. Then the call keeps its place.
        """
        settings, function = self._settings, self._function
        if self._after_place.are_ended:
            raise self._admission.refusal()
        if settings.max_inflight == 1:
            await self._disposal.until_no_name_is_left()
        workspace = self._workspace(call, cleanups)
        stdout = Spool(settings.tmp_dir, settings.max_output_size_bytes)
        cleanups.add(stdout.close)
        await self._inputs.give_names(task, workspace)
        if self._narration is not None:
            self._narration.starts(call, task, record, is_loading=self.is_loading)
        run = await self._runner.run(call, task, workspace, stdout, function.stdin(call.body, record))
        add_run(record, run)
        failure = self._failure_of(run, record)
        outputs, skipped = await found_outputs(workspace, run, call.call_id) if function.works_with_files else ([], 0)
        if self._narration is not None:
            self._narration.leaves(record, outputs, stdout.size_bytes)
        check_size(outputs, record.outputs, stdout, settings.max_output_size_bytes, function.noun)
        warnings = await self._doubts.warnings_of(
            run,
            workspace,
            call.call_id,
            has_failed=failure is not None,
            skipped=skipped,
            is_empty=function.works_with_files and not outputs and not stdout.size_bytes,
        )
        outputs = self._put_out_of_reach(outputs, workspace, call, record, cleanups)
        if ticket is not None and not record.keeps_place:
            # A call that stores its outputs stays inside, because it still has files in tmp_dir. Otherwise a slow
            # storage could let the number of such files grow without bound.
            (ticket.leave_place if self.stores else ticket.hand_over)()
        if self.stores:
            with call.trace.phase("store outputs"):
                async with self._after_place.wait():
                    await self._transfers.store(outputs, call_id=call.call_id)
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

    def _workspace(self, call: Call, cleanups: Cleanups) -> Workspace:
        try:
            workspace = self._workspaces.make()
        except OSError as error:
            raise refused_by_system("a workspace", error) from error
        cleanups.add(self._disposal.dispose, workspace, workspace.loan, call.call_id)
        return workspace

    def _failure_of(self, run: Run, record: Record) -> ScriptFailed | ScriptKilled | None:
        """Raise the error of a run. If stdout is the answer in spite of the failure, return the error instead."""
        try:
            self._failures.raise_for(run)
        except (ScriptFailed, ScriptKilled) as error:
            if not self._function.answers_with(error):
                raise
            record.outcome, record.reason = outcome_of(error), str(error)
            if isinstance(error, ScriptKilled) or (record.chosen.status or 0) < 400:
                record.chosen = NO_OVERRIDES
            return error
        return None

    def _put_out_of_reach(
        self, outputs: list[Output], workspace: Workspace, call: Call, record: Record, cleanups: Cleanups
    ) -> list[Output]:
        """Make the files of a run unreachable for the next script, and return its outputs.

        All scripts run as the same user. If there are few outputs, the server opens them and removes their names. If
        there are many and the server has only one place, the call keeps this place until its answer is sent. A call
        with very many outputs always keeps its place, because their list takes memory.
        """
        record.outputs += len(outputs)
        record.keeps_place |= record.outputs > _MOST_WITHOUT_PLACE
        held = self._held_outputs.hold(outputs)
        if held is None:
            record.keeps_place |= self._settings.max_inflight == 1
            return outputs
        if held:
            cleanups.add(self._held_outputs.release, held)
        self._disposal.dispose(workspace, workspace.loan, call.call_id)
        return held

    @property
    def script_problem(self) -> str | None:
        """The reason why no call could be answered now, or None."""
        return self._function.problem

    @property
    def script_has_crlf(self) -> bool:
        """Whether the script was a shell script with Windows line ends when it was last read."""
        return self._function.has_crlf

    @property
    def script_has_mark(self) -> bool:
        """Whether the script began with a byte order mark when it was last read."""
        return self._function.has_mark

    @property
    def running(self) -> int:
        """The number of calls whose function runs now."""
        return self._runner.running

    @property
    def is_warm(self) -> bool:
        """Whether the function is a script that stays alive between calls."""
        return self._workers is not None

    @property
    def is_loading(self) -> bool:
        """Whether the workers of a warm function load, and none of them is ready or has failed yet."""
        return self._workers is not None and self._workers.is_loading

    def start(self) -> None:
        """Prepare for calls: the workers of a warm function begin to load."""
        if self._workers is not None:
            self._workers.start()

    async def until_started(self) -> None:
        """Wait until a worker of a warm function is ready, or a load has failed."""
        if self._workers is not None:
            await self._workers.until_loaded()

    def refuse_waiting(self, *, of_all: bool) -> None:
        """Reject the calls that are fetching their first input, and those that wait for a worker.

        Args:
            of_all: also reject the calls that have or had a place, if they are fetching or storing objects. From then
                on no script and no transfer starts, not even for a call that is running.
        """
        self._before_place.end()
        if self._workers is not None:
            self._workers.refuse(self._admission.refusal)
        if of_all:
            self._after_place.end()

    async def end_workers(self) -> None:
        """Ask the workers of a warm function to end, and return when they have ended.

        Call this only when no invocation runs any more.
        """
        if self._workers is not None:
            await self._workers.close()

    async def close(self) -> None:
        """End all workers, remove all files, and close all connections to storages.

        Call this only when no invocation runs any more.
        """
        await self.end_workers()
        await self._disposal.finish()
        await self._transfers.close()
        self._cgroup.close()


def _report_not_removed(workspace: Workspace, call_id: str | None, error: OSError) -> None:
    log.error("workspace not removed", call_id=call_id, path=workspace.path, reason=str(error))
