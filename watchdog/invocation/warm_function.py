"""A warm script: its workers load once, and each of them serves many calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping

from ..errors import Draining, WatchdogError
from ..logs.sink import LogWriter
from ..process.ended import Ended
from ..process.supervisor import Supervisor
from ..settings.declarations import Settings
from ..system.cgroup import Cgroup
from ..telemetry.metrics import Metrics
from ..warm.worker import Limits, Worker, WorkerCall
from ..warm.workers import REASONS, Workers
from ..workspace.disposal import Disposal
from ..workspace.workspace import Workspace
from ..workspace.workspaces import Workspaces
from .call import Call, Record, Task
from .environment import INPUT_FILE_PATH, variables_of
from .failures import oom_kill_meanwhile, out_of_memory
from .functions import ScriptFunction
from .refusal import refused_by_system
from .streams import Streams

# The private directory of a worker, which is removed when the worker has ended.
WORKER_DIR = "WORKER_DIR"


class WarmFunction(ScriptFunction):
    """A script that stays alive between calls.

    Args:
        count: the number of workers.
        queue_timeout_s: the longest time for which a call waits, for its place and for a worker.
    """

    def __init__(
        self,
        settings: Settings,
        environment: Mapping[str, str],
        supervisor: Supervisor,
        text: bytes | None,
        *,
        count: int,
        sink: LogWriter,
        workspaces: Workspaces,
        disposal: Disposal,
        metrics: Metrics,
        queue_timeout_s: float,
    ) -> None:
        # A worker has no input before its first call, even if the image sets this variable.
        environment = {name: value for name, value in environment.items() if name != INPUT_FILE_PATH}
        super().__init__(settings, environment, supervisor, text)
        self._sink = sink
        self._workspaces = workspaces
        self._disposal = disposal
        self._metrics = metrics
        self._checked_state: tuple[object, ...] = ()
        self._cgroup = Cgroup()
        self._oom_kills = self._cgroup.oom_kills()
        self._oom_kills_before: int | None = None  # their number when the last worker was started
        self._limits = Limits(
            start_timeout_s=settings.warm_start_timeout_s,
            kill_grace_s=settings.kill_grace_s,
            log_bytes_per_s=settings.max_log_rate_bytes,
        )
        self._workers = Workers(
            count,
            start=self._start_worker,
            script_state=self._script_state,
            max_calls=settings.warm_max_calls,
            max_memory_bytes=settings.warm_max_memory_bytes,
            queue_timeout_s=queue_timeout_s,
            note_loaded=metrics.worker_loaded,
            note_ended=self._note_ended,
            hint=self._hint_of_load,
        )
        metrics.expect_workers(self._workers.states, REASONS)

    @property
    def problem(self) -> str | None:
        """The reason why no call could be answered now, or None."""
        return super().problem or self._workers.problem

    @property
    def is_loading(self) -> bool:
        return self._workers.is_loading

    def start(self) -> None:
        self._workers.start()

    async def until_started(self) -> None:
        await self._workers.until_loaded()

    def refuse(self, refusal: Callable[[], Draining]) -> None:
        self._workers.refuse(refusal)

    async def close(self) -> None:
        await self._workers.close()
        self._oom_kills.close()

    def command(self, workspace: Workspace | None) -> list[str]:
        """Check that the script could be run. For a call, there is no command: a worker runs the script.

        After an edit, this also renews ``has_crlf`` and ``has_mark``.

        Raises:
            ScriptUnavailable: it could not be run.
        """
        if workspace is None:
            return super().command(None)
        self._script_state()
        return []

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
        """Let a worker serve a call. Return how the call ended, in the same form as for a script that is not warm.

        Raises:
            WorkerNotLoaded, Overloaded, Draining, ScriptUnavailable: no worker took the call.
            asyncio.CancelledError: this call was cancelled. No worker serves it any more.
        """
        self._workers.start()  # a job and a local run start the workers only when they need one
        before_s = record.queue_wait_s or 0.0
        served = WorkerCall(
            call_id=call.call_id,
            variables=variables_of(call, task, workspace, self._environment, works_with_files=True),
            timeout_s=timeout_s,
            stdout=streams.take_stdout,
            stderr=streams.take_stderr,
            observer=call.observer,
        )
        try:
            # Only the first run of a call has waited for its place.
            return await self._workers.serve(served, before_s if record.duration_s is None else 0.0)
        finally:  # also for a call that got no worker
            record.queue_wait_s = before_s + served.waited_s

    def _script_state(self) -> object:
        """Return a value that is different if the script has changed.

        Raises:
            ScriptUnavailable: the script could not be run. If it has not changed since it was last checked, its
                interpreter is not checked again: the running workers do not need it.
        """
        if self._text is not None:
            super().command(None)
            return ()
        state = self._script.current_state()
        if not state or state != self._checked_state:
            super().command(None)
            state = self._checked_state = self._script.state
        return state

    def _start_worker(self) -> Worker:
        try:
            workspace = self._workspaces.make()
        except OSError as error:
            raise refused_by_system("a workspace", error) from error
        try:
            command = super().command(workspace)
            self._oom_kills_before = self._oom_kills.count()
            environment = {**self._environment, WORKER_DIR: workspace.path + "/"}
            return Worker(
                self._supervisor, self._sink, self._limits, command, environment, workspace, self._script.state
            )
        except (WatchdogError, OSError) as error:
            self._remove(workspace)
            if isinstance(error, OSError):
                raise refused_by_system("the pipes of a worker", error) from error
            raise

    def _hint_of_load(self, ended: Ended) -> str:
        """Return a likely reason why a load ended in this way, as the end of a sentence; empty if none is known."""
        has_oom_kill = self._oom_kills.count() != self._oom_kills_before
        if has_oom_kill and ended.was_killed:
            return f": {out_of_memory(self._cgroup)}; give the container more memory, or use fewer workers"
        hint = self.hint(ended.exit_code) if ended.exit_code else ""
        return hint + (oom_kill_meanwhile(self._cgroup) if has_oom_kill else "")

    def _note_ended(self, worker: Worker) -> None:
        if worker.end_reason in REASONS:
            self._metrics.worker_restarted(worker.end_reason)
        self._remove(worker.workspace)

    def _remove(self, workspace: Workspace) -> None:
        """Remove the directory of a worker soon."""
        self._disposal.dispose(workspace, workspace.loan, None)
