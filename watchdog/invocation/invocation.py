"""Run one call, step by step: admit it, read its input, wait for a place, run, store, hand over, clean up.

These steps do not depend on HTTP. The server, ``watchdog run``, jobs and tests use them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from ..logs.setup import get_logger
from ..logs.sink import LogWriter
from ..output.answer import Result
from ..process.supervisor import Supervisor
from ..settings.load import Configuration
from ..storage.transfer import Transfers
from ..storage.transfer_progress import Watcher
from ..telemetry.metrics import Metrics
from ..workspace.disposal import Disposal
from ..workspace.outputs import size_of
from ..workspace.space import is_full
from ..workspace.spool import Spool
from ..workspace.workspace import Workspace
from ..workspace.workspaces import Workspaces
from .accounting import Accounting
from .admission import Admission, Ticket
from .call import Call, Record
from .choose_function import function_of
from .cleanups import Cleanups
from .drainable_waits import DrainableWaits
from .environment import environment_of_all_calls
from .inputs import Inputs
from .narration import Narration
from .outputs import Outputs
from .results import NOTHING
from .runner import Runner

log = get_logger("invocation")
_LONGEST_WAIT_FOR_SPACE_S = 1.0


class Invocations:
    """Runs the function, once for each call.

    Args:
        environ: the environment of the image. The function gets all of it except the server's secrets.
        sink: receives the lines that the function prints.
        watcher: is informed of the progress of transfers from and to storages.

    Attributes:
        function: the program that a call runs.
        stores: the outputs are stored in a storage.
        takes_events: a body may be an event of a storage of the service definition. If not, each body is data.
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
        self._disposal = Disposal(
            workspaces, others_run=lambda: bool(supervisor.running), not_removed=_report_not_removed
        )
        self.function = function_of(
            configuration,
            environment_of_all_calls(configuration, environ),
            admission=admission,
            sink=sink,
            supervisor=supervisor,
            workspaces=workspaces,
            disposal=self._disposal,
            metrics=metrics,
        )
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
        self._inputs = Inputs(configuration, self.function, self._transfers, self._before_place)
        outputs = Outputs(settings, self.function, self._transfers, self._disposal, self._after_place)
        self._accounting = Accounting(self.function.noun, metrics)
        self._narration = Narration() if sink.form.is_for_people else None
        self._runner = Runner(
            settings,
            self.function,
            inputs=self._inputs,
            outputs=outputs,
            workspaces=workspaces,
            disposal=self._disposal,
            after_place=self._after_place,
            sink=sink,
            narration=self._narration,
        )
        self._handing_over = 0
        self._outputs = outputs
        self.stores = outputs.are_stored
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
            stdout = Spool(self._settings.tmp_dir, self._settings.max_output_size_bytes)
            cleanups.add(stdout.close)
            if len(tasks) == 1:
                result = await self._runner.run(call, tasks[0], ticket, record, cleanups, stdout)
            else:
                result = await self._runner.run_all(call, tasks, ticket, record, cleanups, stdout)
            self._outputs.check_stdout(stdout, record)
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

    @property
    def running(self) -> int:
        """The number of calls whose function runs now."""
        return self._runner.running

    def refuse_waiting(self, *, of_all: bool) -> None:
        """Reject the calls that are fetching their first input, and those that wait for a worker.

        Args:
            of_all: also reject the calls that have or had a place, if they are fetching or storing objects. From then
                on no script and no transfer starts, not even for a call that is running.
        """
        self._before_place.end()
        self.function.refuse(self._admission.refusal)
        if of_all:
            self._after_place.end()

    async def close(self) -> None:
        """End all workers, remove all files, and close all connections to storages.

        Call this only when no invocation runs any more.
        """
        await self.function.close()
        await self._disposal.finish()
        await self._transfers.close()
        self._runner.close()


def _report_not_removed(workspace: Workspace, call_id: str | None, error: OSError) -> None:
    log.error("workspace not removed", call_id=call_id, path=workspace.path, reason=str(error))
