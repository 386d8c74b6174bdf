"""Tell the story of one call: admit, take the input, wait for a place, run, store, hand over, clean up.

Nothing here knows of HTTP: the server, ``watchdog run``, jobs and tests use the same steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import shlex
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from ..errors import (
    BadScriptResponse,
    Draining,
    InputTooLarge,
    OutOfResources,
    OutputError,
    OutputTooLarge,
    ScriptFailed,
    ScriptKilled,
    ScriptOutOfMemory,
    ScriptOutOfSpace,
    ScriptTimedOut,
    ScriptUnavailable,
    StorageError,
    WatchdogError,
)
from ..input.detect import BodyHints
from ..input.receive import Input, take_in
from ..logs.log_rate import LogRate
from ..logs.script_log import ScriptLog
from ..logs.setup import get_logger
from ..logs.sink import LogWriter
from ..logs.text import printable
from ..output import call_warning
from ..output.answer import Result
from ..output.call_warning import CallWarning
from ..output.printed import Printed, joined_type
from ..process.byte_order_mark import MARK_HINT, has_mark, refuse_utf16
from ..process.command import CRLF_HINT, Script, command_for, found_command, has_crlf, is_shell_script
from ..process.ended import Ended
from ..process.supervisor import Supervisor
from ..settings.load import Configuration
from ..storage import event as storage_event
from ..storage.event import Event
from ..storage.skipped import Skipped
from ..storage.stored_object import StoredObject
from ..storage.transfer import Transfers
from ..storage.transfer_progress import Watcher
from ..system import proc
from ..system.cgroup import Cgroup
from ..system.files import open_regular
from ..system.threads import OUTPUTS, REMOVALS, in_steps, to_its_end
from ..telemetry.metrics import Metrics
from ..workspace.held_input import HeldInput
from ..workspace.outputs import Listing, Output, hold_outputs, release_outputs
from ..workspace.response_file import ResponseOverrides, read_response_file
from ..workspace.space import is_full, raise_if_no_space
from ..workspace.spool import Joined, Spool, Tail
from ..workspace.workspace import MOST_OUTPUTS, Workspace
from ..workspace.workspaces import Workspaces
from .admission import DRAINING_RETRY_AFTER_S, Admission, Ticket
from .call import Call, Record, Task, add_run
from .cloud_event import REQUIRED_ATTRIBUTES
from .outcome import SKIPPED, outcome_of

log = get_logger("invocation")
_LOGGED_EVENT_ATTRIBUTES = ("id", "source", "type")
_MOST_WARNINGS = 100
# To free gigabytes takes a file system longer than the event loop may be held up.
_QUICKLY_FREED_BYTES = 64 << 20
_MOST_HELD = 16  # outputs of one call whose descriptors are kept open
# The list of more outputs takes so much memory (0.4 MiB for 1,000) that only calls with a place may have one.
_MOST_WITHOUT_PLACE = 1_000
# The warning of files in other directories is worth a short wait only.
_LOOK_ELSEWHERE_S = 5.0
_MOST_NAMES = 10  # names of processes in one log event
_MOMENT_FOR_ROOM_S = 1.0
_TIDY_FOR_S = 0.002
# How long the directory of an ended call waits for the next one.
_KEPT_S = 0.25
# MAX_ARG_STRLEN of the kernel (execve(2)), less the name, `=` and the NUL at the end.
_LONGEST_EVENT_BYTES = 131_072 - len("EVENT=\0")
# How the data of an event is read: an octet stream may be base64 or the bytes themselves.
_SAID_OF_DATA = {
    "bytes": BodyHints(encoding="raw"),
    "text": BodyHints(content_type="application/octet-stream"),
    "body": BodyHints(),
}
# Read in the event loop; more in a thread.
_SMALL_EVENT_BYTES = 64 * 1024
# The result of a call that had nothing to do.
_NOTHING = Result(outputs=(), stdout=Joined(()), exit_code=None, duration_s=0.0)
_KILLED_CHILD = 128 + signal.SIGKILL  # how a shell reports that its child was killed


class Invocations:
    """Runs the function, once for each call: the script, or the command of ``fprocess`` (a classic function).

    A script gets its input as a file. A classic function reads the body from its stdin while it comes, so it has its
    place before the body is complete, and its answer is what it prints.

    Args:
        environ: the environment of the image, of which the script gets all but the server's secrets.
        sink: where the script's lines go.
        watcher: looks on at transfers from and to storage.
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
        self.settings = configuration.settings
        self.admission = admission
        self.supervisor = supervisor
        self.workspaces = workspaces
        self.metrics = metrics
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._script_text = configuration.script_text
        self._text_has_crlf = self._script_text is not None and has_crlf(self._script_text)
        self._text_has_mark = self._script_text is not None and has_mark(self._script_text)
        self._script = Script(self.settings.script_path)
        fprocess = self.settings.fprocess
        self._classic_command = None if fprocess is None else shlex.split(fprocess)
        self._what = "script" if fprocess is None else "function"
        self._environ = {k: v for k, v in environ.items() if k not in configuration.secret_names}
        if configuration.service is not None:
            self._environ.update(configuration.service.variables)
        self._stages_in = configuration.service is None or not configuration.service.file_stage_in
        self._transfers = Transfers(
            configuration.storages,
            timeout_s=self.settings.storage_timeout_s,
            environ=environ,
            metrics=metrics,
            watcher=watcher,
        )
        self._stores = self._transfers.stores and self._classic_command is None
        self._transfers_before_place: set[asyncio.Timeout] = set()
        self._transfers_after_place: set[asyncio.Timeout] = set()
        self._begins_nothing = False
        self._cgroup = Cgroup()
        self._log = log.bind()
        self._removals: set[asyncio.Future[None]] = set()
        self._long_look: asyncio.Future[CallWarning | None] | None = None
        self._untidy: deque[tuple[Workspace, str]] = deque()
        self._tidy_timer: asyncio.Handle | None = None
        self._unused_timer: asyncio.TimerHandle | None = None
        self._handing_over = 0
        # Outputs whose descriptors are kept open; a quarter of the descriptors at most.
        self._held_outputs = 0
        self._most_held_outputs = proc.descriptor_limit() // 4

    @contextlib.asynccontextmanager
    async def invoke(self, call: Call, record: Record) -> AsyncIterator[Result]:
        """Run the script on the call's body and lend what it left, until the context ends.

        An event of which no object is to be processed does not run the script and does not wait for a place: the result
        is empty, ``record.outcome`` is ``SKIPPED``, and ``record.reason`` says why.

        Raises:
            WatchdogError: any leaf of the tree in ``errors.py``; ``record`` tells how far it came. The failure of
                a classic function is not raised: the result has it, beside what the function printed.
        """
        with self._accounted(call, record), self.admission.enter() as ticket, contextlib.ExitStack() as stack:
            await self._room()
            tasks = await self._tasks(call, record, stack)
            if not tasks:
                yield _NOTHING
                return
            await self._wait(call, ticket, record)
            result = await self._run_all(call, tasks, ticket, record, stack)
            if not record.keeps_place:
                ticket.hand_over()
            ticket.holds(
                record.input_bytes + sum(each.size_bytes for each in result.outputs) + result.stdout.size_bytes
            )
            self._handing_over += 1
            try:
                yield result
            finally:
                self._handing_over -= 1

    async def removed(self) -> None:
        """Return once all workspaces of ended invocations are removed."""
        while self._untidy:
            self._remove_later(*self._untidy.popleft())
        self._remove_unused(0.0)
        while self._removals:
            await asyncio.wait(self._removals)

    @property
    def stores(self) -> bool:
        """Do outputs go to a storage?"""
        return self._stores

    @property
    def takes_events(self) -> bool:
        """Could a body be an event of a storage that the service definition names? Else it is data."""
        return self._transfers.locator.has_providers and self._classic_command is None

    async def close(self) -> None:
        """Return once all is removed and no connection to a storage is left. No invocation may be under way."""
        await self.removed()
        await self._transfers.close()
        self._cgroup.close()

    def end_transfers(self, *, of_all: bool) -> None:
        """Refuse now who waits for a first input; ``of_all``: and who runs and fetches more, or stores.

        After ``of_all``, no script and no transfer begins, not even a later one of a call that runs.
        """
        self._begins_nothing |= of_all
        now_s = self._loop.time()
        for bound in self._transfers_before_place | (self._transfers_after_place if of_all else set()):
            if not bound.expired():
                bound.reschedule(now_s)

    @contextlib.asynccontextmanager
    async def _ended_by_drain(self, under_way: set[asyncio.Timeout]) -> AsyncIterator[None]:
        """A transfer that :meth:`end_transfers` ends. Raises ``Draining`` then."""
        if self._begins_nothing or (under_way is self._transfers_before_place and self.admission.is_closed):
            raise self.admission.refusal()
        bound = asyncio.timeout(None)
        try:
            async with bound:
                under_way.add(bound)
                yield
        except TimeoutError:
            if bound.expired():
                raise self.admission.refusal() from None
            raise
        finally:
            under_way.discard(bound)

    @property
    def script_problem(self) -> str | None:
        """Why no call could be served now, or None."""
        try:
            self._command(None)
        except ScriptUnavailable as error:
            return str(error)
        return None

    @property
    def script_has_crlf(self) -> bool:
        """Whether the script, at its last lookup, was a shell script with line ends of Windows."""
        if self._classic_command is not None:
            return False
        return self._script.has_crlf or self._text_has_crlf

    @property
    def script_has_mark(self) -> bool:
        """Did the script, when it was looked up last, begin with a byte order mark?"""
        if self._classic_command is not None:
            return False
        return self._script.has_mark or self._text_has_mark

    async def _room(self) -> None:
        """On a full disk, give the calls that are as good as over a moment to make room.

        A caller has its whole answer a little before the answer's files begin to be removed.
        """
        until_s = time.monotonic() + _MOMENT_FOR_ROOM_S
        while (self._removals or self._untidy or self._handing_over) and is_full(self.settings.tmp_dir):
            if time.monotonic() > until_s:
                return
            await asyncio.sleep(0.005)

    def _workspace(self, call: Call, record: Record, stack: contextlib.ExitStack) -> Workspace:
        try:
            workspace = self.workspaces.make()
        except OSError as error:
            raise _refused_by_system("a workspace", error) from error
        stack.callback(self._dispose, workspace, workspace.loan, call.call_id, record)
        return workspace

    def _held(self, stack: contextlib.ExitStack) -> HeldInput:
        held = HeldInput(self.settings.tmp_dir)
        stack.callback(held.close)
        return held

    async def _tasks(self, call: Call, record: Record, stack: contextlib.ExitStack) -> list[Task]:
        """Read the body and return the tasks; for an event, fetch the first object. The first task's input is held.

        There is no task if the body is an event without an object to process.
        """
        if self._classic_command is not None:
            record.input_encoding = "raw"
            return [Task()]
        held = self._held(stack)
        with call.trace.phase("take in input"):
            taken = await self._take_in(call.body, call.said, held)
        record.input_bytes, record.input_encoding = taken.size_bytes, taken.encoding
        event = await self._event(call, taken, held)
        if event is None:
            return [Task(held, taken)]

        held.clear()
        record.input_bytes = 0
        if event.data is not None:
            taken = await self._take_in(_once(event.data), _SAID_OF_DATA[event.data_is], held)
            record.input_bytes, record.input_encoding = taken.size_bytes, taken.encoding
            return [Task(held, taken, variables=event.variables)]
        tasks = self._tasks_of(event, call, record)
        if not tasks:
            return []
        record.is_of_storage = True
        try:
            await self._fetch(call, tasks[0], record, self._transfers_before_place, stack)
        except Draining:
            raise
        except WatchdogError as error:
            if len(tasks) == 1:
                raise
            tasks[0].failure = error
        return tasks

    async def _take_in(self, body: AsyncIterator[bytes], said: BodyHints, held: HeldInput) -> Input:
        try:
            return await take_in(body, said, held, self.settings.max_input_size_bytes)
        except ConnectionError:
            raise
        except OSError as error:
            raise _refused_by_system("the input file", error) from error

    async def _event(self, call: Call, taken: Input, held: HeldInput) -> Event | None:
        """The event that the input is, if this service could have to do with it."""
        if not (call.is_job or self.takes_events) or call.said.encoding == "raw":
            return None
        if taken.size_bytes > storage_event.MOST_BYTES or not taken.name:
            return None
        text = await _content(taken, held)
        event = storage_event.read_data(call.event["type"], text) if call.event else storage_event.read(text)
        # A message in an envelope that reports no object is an event only for a job. And a caller's body stays data
        # if no storage of this service could hold any of the objects.
        if event is not None and not call.is_job and not any(map(self._transfers.locator.knows, event.kinds)):
            return None
        return event

    def _tasks_of(self, event: Event, call: Call, record: Record) -> list[Task]:
        """A task for each object of an event that is to be processed. The others are logged; none: why is recorded.

        Raises:
            StorageError: no object is left, and a job's event has a record that cannot be processed.
        """
        tasks, skipped = [], Skipped(call.call_id, is_job=call.is_job)
        skipped.notices(event.notices)
        for stored in event.objects:
            if why_not := stored.why_not_new:
                skipped.not_new(stored, why_not)
            elif why_not := self._transfers.locator.why_unusable(stored, is_trusted=call.is_job):
                skipped.unusable(stored, why_not)
            elif source := self._transfers.locator.source_of(stored, event.provider, is_trusted=call.is_job):
                tasks.append(Task(source=source, stored=stored, variables=event.variables))
            else:
                skipped.not_covered(stored)
        skipped.log()
        if not tasks and call.is_job and skipped.has_unusable:
            raise StorageError(skipped.explanation)
        if not tasks:
            record.outcome, record.reason = SKIPPED, skipped.explanation
        return tasks

    async def _fetch(
        self,
        call: Call,
        task: Task,
        record: Record,
        under_way: set[asyncio.Timeout],
        stack: contextlib.ExitStack,
    ) -> None:
        if task.source is None or not self._stages_in:
            return
        task.held = self._held(stack)
        with call.trace.phase("fetch input"):
            try:
                async with self._ended_by_drain(under_way):
                    name, size_bytes = await self._transfers.fetch(
                        task.source,
                        task.held,
                        most_bytes=self.settings.max_input_size_bytes,
                        call_id=call.call_id,
                    )
            except OSError as error:
                raise_if_no_space(error, f"the input {task.source}")
                raise _refused_by_system(f"the input {task.source}", error) from error
        task.taken = Input(name, size_bytes)
        record.input_bytes += size_bytes

    async def _wait(self, call: Call, ticket: Ticket, record: Record) -> None:
        asked_s = time.monotonic()
        try:
            with call.trace.phase("wait for a place"):
                await ticket.place()
        finally:  # who waited in vain waited, too
            record.queue_wait_s = time.monotonic() - asked_s

    async def _run_all(
        self,
        call: Call,
        tasks: Sequence[Task],
        ticket: Ticket,
        record: Record,
        stack: contextlib.ExitStack,
    ) -> Result:
        """Run the script for each task, one after the other. One that fails does not keep the others from running."""
        if len(tasks) == 1:
            return await self._run(call, tasks[0], ticket, record, stack)
        results, failures = [], []
        for number, task in enumerate(tasks, 1):
            try:
                if task.failure is not None:
                    raise task.failure
                if number > 1:
                    await self._fetch(call, task, record, self._transfers_after_place, stack)
                is_last = number == len(tasks)
                results.append(await self._run(call, task, ticket if is_last else None, record, stack))
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
        return _joined(results)

    async def _run(
        self,
        call: Call,
        task: Task,
        ticket: Ticket | None,
        record: Record,
        stack: contextlib.ExitStack,
    ) -> Result:
        """Run the script once, and store what it left.

        The place of ``ticket`` is given on when the script has ended and what it left is out of reach of the next one.
        """
        if self._begins_nothing:
            raise self.admission.refusal()
        await self._until_others_are_gone()
        workspace = self._workspace(call, record, stack)
        stdout = stack.enter_context(
            contextlib.closing(Spool(self.settings.tmp_dir, self.settings.max_output_size_bytes))
        )
        if task.held is not None:
            await self._give_input(task.held, workspace)
        command = self._command(workspace)
        script_has_crlf, script_has_mark = self.script_has_crlf, self.script_has_mark
        is_classic = self._classic_command is not None
        printed = Printed()
        stdout_tail, stderr_tail = Tail(), Tail()
        later = self._loop.call_later
        rate = LogRate(self.settings.max_log_rate_bytes)
        stdout_log = ScriptLog(self._sink, stream="stdout", call_id=call.call_id, rate=rate, call_later=later)
        stderr_log = ScriptLog(self._sink, stream="stderr", call_id=call.call_id, rate=rate, call_later=later)

        def take_stdout(data: bytes) -> asyncio.Future[None] | None:
            if is_classic:  # the body is data there, and may have gigabytes
                pass
            elif printed.take(data):
                stdout_log.leave_out(data)
            else:
                stdout_log.feed(data)
            stdout_tail.take(data)
            return stdout.take(data)

        def take_stderr(data: bytes) -> None:
            stderr_log.feed(data)
            stderr_tail.take(data)

        record.is_tree_gone = False
        timeout_s = _shorter(self.settings.exec_timeout_s, call.timeout_s)
        oom_kills = self._cgroup.oom_kills()
        started_ns = time.time_ns()
        try:
            with call.trace.phase(f"run {self._what}") as phase:
                ended = await self.supervisor.run(
                    command,
                    self._environment(call, workspace, task),
                    mark=workspace.path + "/",  # not a prefix of another: 1 and 10
                    stdout=take_stdout,
                    stderr=None if self.settings.combine_output else take_stderr,
                    stdin=self._counted(call.body, record) if is_classic else None,
                    timeout_s=timeout_s,
                    linger_timeout_s=self.settings.linger_timeout_s,
                    kill_grace_s=self.settings.kill_grace_s,
                )
                phase.process_ended(ended.exit_code, ended.signal)
        finally:
            stdout_log.close()
            stderr_log.close()
        record.is_tree_gone = ended.is_tree_gone
        add_run(record, ended)
        self._report_left(call, ended)
        if ended.survivors:
            log.error("processes survived SIGKILL", call_id=call.call_id, count=ended.survivors)
        # The killed process may be the script, a part of it, or a part of a call that runs at the same time.
        has_oom_kill = (_was_killed(ended) or ended.exit_code == 0) and self._cgroup.oom_kills() != oom_kills
        out_of_memory = has_oom_kill and _was_killed(ended)
        self._read_choice(call, workspace, record, ended)
        has_no_space = workspace.is_full()
        failure: ScriptFailed | ScriptKilled | None = None
        try:
            self._raise_for(ended, timeout_s, out_of_memory, has_no_space, stderr_tail)
        except (ScriptFailed, ScriptKilled) as error:
            if not is_classic or isinstance(error, (ScriptOutOfMemory, ScriptOutOfSpace)):
                raise
            failure = error
            record.outcome, record.reason = outcome_of(error), str(error)
            if isinstance(error, ScriptKilled) or (record.chosen.status or 0) < 400:
                record.chosen = ResponseOverrides()
        outputs, skipped = ([], 0) if is_classic else await self._outputs(call, workspace, timeout_s, stderr_tail)
        self._check_size(outputs, stdout, record)
        warnings: list[CallWarning] = []
        if has_no_space and failure is None:
            warnings.append(call_warning.no_space(self.settings.tmp_dir))
        if skipped:
            warnings.append(call_warning.outputs_skipped(skipped))
        if has_oom_kill:
            warnings.append(call_warning.OUT_OF_MEMORY)
        if script_has_crlf and ended.exit_code == 0:
            warnings.append(call_warning.CRLF)
        if script_has_mark and ended.exit_code == 0:
            warnings.append(call_warning.BYTE_ORDER_MARK)
        is_empty = not is_classic and not outputs and not stdout.size_bytes
        # A script that chose a status or a header has answered.
        if is_empty and ended.exit_code == 0 and record.chosen == ResponseOverrides():
            warnings += await self._warnings_of_no_output(workspace, started_ns)
        for warning in warnings:
            log.warning("doubtful success", call_id=call.call_id, warning=warning.name, reason=warning.detail)
        if ended.were_working:  # logged already, with their names
            warnings.append(call_warning.STILL_WORKING)
        outputs = self._put_out_of_reach(outputs, workspace, call, record, stack)
        if ticket is not None and not record.keeps_place:
            self._give_place_on(ticket)
        if self._stores:
            with call.trace.phase("store outputs"):
                async with self._ended_by_drain(self._transfers_after_place):
                    await self._transfers.store(outputs, call_id=call.call_id)
        return Result(
            outputs=outputs,
            stdout=stdout,
            exit_code=ended.exit_code,
            duration_s=ended.duration_s,
            stdout_tail=stdout_tail.text(),
            stderr_tail=stderr_tail.text(),
            failure=failure,
            printed_type=printed.media_type,
            warnings=warnings,
        )

    async def _give_input(self, held: HeldInput, workspace: Workspace) -> None:
        """Make the input appear in ``TMP_INPUT_DIR``, and close what held it."""
        try:
            if not held.give_names(workspace.input_dir, only_quickly=True):
                await to_its_end(self._loop.run_in_executor(None, held.give_names, workspace.input_dir))
        except OSError as error:
            raise _refused_by_system("the input file", error) from error
        held.close()

    def _put_out_of_reach(
        self, outputs: list[Output], workspace: Workspace, call: Call, record: Record, stack: contextlib.ExitStack
    ) -> list[Output]:
        """Give up all names of what a script got and left; return the outputs as they are to be read.

        All scripts run as the same user. So outputs lose their names, if they are few. If they are many and there is
        only one place, the call keeps it until it is answered. A call with very many outputs always keeps its place,
        because their list takes memory.
        """
        record.outputs += len(outputs)
        record.keeps_place |= record.outputs > _MOST_WITHOUT_PLACE
        if len(outputs) > min(_MOST_HELD, self._most_held_outputs - self._held_outputs):
            record.keeps_place |= self.settings.max_inflight == 1
            return outputs
        if outputs:
            outputs = hold_outputs(outputs)
            self._held_outputs += len(outputs)
            stack.callback(self._release, outputs)
        self._dispose(workspace, workspace.loan, call.call_id, record)
        return outputs

    def _give_place_on(self, ticket: Ticket) -> None:
        if self._stores:
            # A call that stores still has files: a slow storage must not let their number grow.
            ticket.leave_place()
        else:
            ticket.hand_over()

    async def _until_others_are_gone(self) -> None:
        """With one place, wait until nothing of ended calls has a name."""
        if self.settings.max_inflight == 1:
            while self._untidy:
                self._tidy_up()
            while self._removals:
                await asyncio.wait(self._removals)

    def _release(self, held: list[Output]) -> None:
        self._held_outputs -= len(held)
        if sum(output.size_bytes for output in held) <= _QUICKLY_FREED_BYTES:
            release_outputs(held)
        else:
            self._remove_in_thread(functools.partial(release_outputs, held))

    def _report_left(self, call: Call, ended: Ended) -> None:
        """Log which processes had to be ended although the script had exited by itself."""
        if not ended.left:
            return
        event = f"processes that the {self._what} left were ended"
        if ended.were_working:
            event += " while they still worked"
        log.warning(
            event,
            call_id=call.call_id,
            count=sum(ended.left.values()),
            names=[printable(name) for name in list(ended.left)[:_MOST_NAMES]],
            **({"reason": call_warning.STILL_WORKING.detail} if ended.were_working else {}),
        )

    async def _warnings_of_no_output(self, workspace: Workspace, since_ns: int) -> list[CallWarning]:
        """Return the warnings of a call that left nothing, with the files that its script wrote to another place.

        The working directory may lie on a file system that hangs. After one look that has taken too long there is no
        other until it ends, so that few threads wait for such a file system.
        """
        look = call_warning.files_elsewhere
        elsewhere = None
        if self._long_look is None or self._long_look.done():
            try:
                job = self._loop.run_in_executor(OUTPUTS, look, workspace.input_dir, since_ns)
            except RuntimeError:  # no thread can be started now
                elsewhere = look(workspace.input_dir, since_ns)
            else:
                job.add_done_callback(_look_at)
                if (await asyncio.wait((job,), timeout=_LOOK_ELSEWHERE_S))[0]:
                    elsewhere = job.result()
                else:
                    self._long_look = job
                    log.warning("no files are looked for in other directories", reason="a directory does not answer")
        return [call_warning.NO_OUTPUT, *([elsewhere] if elsewhere is not None else [])]

    async def _counted(self, body: AsyncIterator[bytes], record: Record) -> AsyncIterator[bytes]:
        """The body for a classic function's stdin, as it comes."""
        limit_bytes = self.settings.max_input_size_bytes
        async for piece in body:
            record.input_bytes += len(piece)
            if limit_bytes and record.input_bytes > limit_bytes:
                raise InputTooLarge(f"the input is over {limit_bytes} bytes (max_input_size)")
            yield piece

    def _command(self, workspace: Workspace | None) -> list[str]:
        """The command that runs the script; ``workspace`` takes the file made of ``SCRIPT``."""
        path = self._environ.get("PATH", os.defpath)
        if self._classic_command is not None:
            return found_command(self._classic_command, path)
        if self._script_text is None:
            return self._script.command(path)
        if workspace is None:
            refuse_utf16(self._script_text, "SCRIPT")
            return ["/bin/sh"]
        script_path = workspace.path + "/script.sh"
        try:
            with open(script_path, "xb") as file:
                file.write(self._script_text)
        except OSError as error:
            raise_if_no_space(error, "the script given in SCRIPT")
            raise _refused_by_system("the script given in SCRIPT", error) from error
        return command_for(script_path, path)

    def _environment(self, call: Call, workspace: Workspace, task: Task) -> dict[str, str]:
        environment = {**self._environ, **call.variables, **task.variables}
        environment |= {"CALL_ID": call.call_id, "HTTP_RESPONSE_FILE": workspace.response_file}
        if self._classic_command is None:
            environment |= {"TMP_INPUT_DIR": workspace.input_dir, "TMP_OUTPUT_DIR": workspace.output_dir}
            environment.pop("INPUT_FILE_PATH", None)
        if task.taken is not None:
            environment["INPUT_FILE_PATH"] = os.path.join(workspace.input_dir, task.taken.name).removesuffix("/")
        if task.stored is not None:
            environment |= self._variables_of(task.stored, call)
        for name, value in call.event.items():
            variable = "CE_" + name.upper()
            # A caller may invent attributes: those change nothing that the image or the service has set.
            if name in REQUIRED_ATTRIBUTES or variable not in self._environ:
                environment[variable] = value
        return environment | call.trace.variables

    def _variables_of(self, stored: StoredObject, call: Call) -> dict[str, str]:
        """What a script is told of the object that its input is; names and values as faas-supervisor has them."""
        key = f"/{stored.container}/{stored.key}" if stored.kind == "onedata" else stored.key
        variables = {"STORAGE_OBJECT_KEY": key, "EVENT_TIME": stored.time, "EVENT": ""}
        if len(stored.text) <= _LONGEST_EVENT_BYTES:
            variables["EVENT"] = stored.text.decode()
        else:
            log.warning("the event is too long for a variable, so EVENT is empty", call_id=call.call_id)
        return variables

    def _read_choice(self, call: Call, workspace: Workspace, record: Record, ended: Ended) -> None:
        if ended.timed_out or ended.ended_early:
            return
        try:
            record.chosen = read_response_file(workspace.response_file)
        except BadScriptResponse as error:
            if ended.exit_code == 0:
                raise
            # How the script failed matters more than what it failed to say.
            log.warning("response file ignored", call_id=call.call_id, reason=str(error))

    def _raise_for(
        self, ended: Ended, timeout_s: float, out_of_memory: bool, has_no_space: bool, stderr_tail: Tail
    ) -> None:
        """Raise what a script's end means to its caller, if it did not end well."""
        if ended.exit_code == 0 and not ended.ended_early and not ended.timed_out and not out_of_memory:
            return
        stderr = stderr_tail.text()
        if ended.ended_early:
            raise Draining(
                f"the server is stopping and ended the {self._what}; send the call again to another one",
                DRAINING_RETRY_AFTER_S,
            )
        if ended.timed_out:
            # What it left is listed only if it exited by itself.
            who = f"what the {self._what} left at work when it exited" if ended.left else f"the {self._what}"
            raise ScriptTimedOut(f"{who} ran for longer than {timeout_s:g} s and was ended", stderr=stderr)
        if out_of_memory:
            limit = self._cgroup.memory_limit_bytes()
            known = f", limit {_readable_size(limit)}" if limit else ""
            raise ScriptOutOfMemory(
                f"the {self._what} was killed: out of memory{known}; give the container more, or process less at once",
                signal="SIGKILL",
                stderr=stderr,
            )
        if not self.settings.error_status:
            return
        if ended.signal is not None:
            raise ScriptKilled(
                f"the {self._what} was ended by {ended.signal}",
                signal=ended.signal,
                stderr=stderr,
            )
        if ended.exit_code and has_no_space:
            raise ScriptOutOfSpace(
                f"the {self._what} ended with exit code {ended.exit_code}, and no space is left in "
                f"{self.settings.tmp_dir}; give it more, or lower max_inflight and max_queue",
                exit_code=ended.exit_code,
                stderr=stderr,
            )
        if ended.exit_code:
            hint = self._hint(ended.exit_code)
            raise ScriptFailed(
                f"the {self._what} ended with exit code {ended.exit_code}{hint}",
                exit_code=ended.exit_code,
                stderr=stderr,
            )

    def _hint(self, exit_code: int) -> str:
        text = self._script_text
        if text is None and self._classic_command is None:
            with contextlib.suppress(OSError), open(open_regular(self.settings.script_path), "rb") as file:
                text = file.read(64 * 1024)
        if text is not None and b"\r\n" in text and is_shell_script(text):
            return f"; {CRLF_HINT}"
        if text is not None and has_mark(text):
            return f"; {MARK_HINT}"
        if exit_code == 127:
            return ", which a shell gives when a command is not found in the image"
        return ""

    async def _outputs(
        self, call: Call, workspace: Workspace, timeout_s: float, stderr_tail: Tail
    ) -> tuple[list[Output], int]:
        """Return the outputs, and the number of entries of ``TMP_OUTPUT_DIR`` that are not outputs.

        The listing of many outputs may take as long as the script may run. It ends early if the caller leaves or the
        server stops: then this coroutine is cancelled.
        """
        listing = Listing()
        steps = workspace.listing(listing)
        if next(steps, None):
            try:
                async with asyncio.timeout(timeout_s or None) as bound:
                    await in_steps(steps, OUTPUTS)
            except TimeoutError:
                if not bound.expired():
                    raise
                raise ScriptTimedOut(
                    f"the {len(listing.outputs)} outputs found in {timeout_s:g} s (exec_timeout, X-Timeout) are not "
                    "all; write fewer files, pack them into one (tar, zip), or give the call more time",
                    stderr=stderr_tail.text(),
                ) from None
        outputs, skipped = listing.outputs, listing.skipped
        for name, reason in skipped[:_MOST_WARNINGS]:
            log.warning("output skipped", call_id=call.call_id, output=name, reason=reason)
        if len(skipped) > _MOST_WARNINGS:
            log.warning("more outputs skipped", call_id=call.call_id, count=len(skipped) - _MOST_WARNINGS)
        for name, new_name in list(listing.renamed.items())[:_MOST_WARNINGS]:
            log.warning("output renamed", call_id=call.call_id, output=name, new_name=new_name)
        if len(listing.renamed) > _MOST_WARNINGS:
            log.warning("more outputs renamed", call_id=call.call_id, count=len(listing.renamed) - _MOST_WARNINGS)
        is_removed = bool(skipped) and not os.path.lexists(workspace.output_dir)
        return outputs, 0 if is_removed else len(skipped)

    def _check_size(self, outputs: list[Output], stdout: Spool, record: Record) -> None:
        if (count := record.outputs + len(outputs)) > MOST_OUTPUTS:
            raise OutputTooLarge(
                f"all runs of this call left {count} outputs, over {MOST_OUTPUTS}; pack them into fewer (tar, zip)"
            )
        limit_bytes = self.settings.max_output_size_bytes
        size_bytes = sum(output.size_bytes for output in outputs)
        if limit_bytes and (size_bytes > limit_bytes or (not outputs and stdout.overflowed)):
            what = f"the outputs have {size_bytes} bytes" if outputs else f"the {self._what}'s stdout is"
            raise OutputTooLarge(f"{what}, over {limit_bytes} bytes (max_output_size)")
        if not outputs and stdout.error is not None:
            raise_if_no_space(stdout.error, f"the {self._what}'s stdout")
            raise OutputError(f"the {self._what}'s stdout could not be kept: {stdout.error.strerror}")

    def _dispose(self, workspace: Workspace, loan: int, call_id: str, record: Record) -> None:
        """Empty or remove a directory soon. A second time does nothing, although another call may have it by then."""
        if workspace.loan != loan:
            return
        workspace.loan = 0
        if not record.is_tree_gone:
            self._remove_later(workspace, call_id)
            return
        self._untidy.append((workspace, call_id))
        if self._tidy_timer is None:
            # In the next turn of the loop: a small answer is sent first, and no other script can start before. If one
            # ran meanwhile, the directory would have to be looked at once more before it is lent.
            self._tidy_timer = self._loop.call_soon(self._tidy_up)

    def _tidy_up(self) -> None:
        """Empty the directories of calls that have ended, for the next ones."""
        self._tidy_timer = None
        loop = self._loop
        until_s = loop.time() + _TIDY_FOR_S
        while self._untidy:
            if loop.time() > until_s:  # of a crowd: the others are served meanwhile
                self._tidy_timer = loop.call_soon(self._tidy_up)
                break
            workspace, call_id = self._untidy.popleft()
            if not self.workspaces.keep(workspace, others_run=bool(self.supervisor.running)):
                self._remove_later(workspace, call_id)
        if self._unused_timer is None and self.workspaces.has_kept:
            self._unused_timer = loop.call_later(_KEPT_S, self._remove_unused)

    def _remove_unused(self, for_s: float = _KEPT_S) -> None:
        self._unused_timer = None
        for workspace in self.workspaces.unused(for_s):
            self._remove_later(workspace, None)
        if self.workspaces.has_kept:
            self._unused_timer = self._loop.call_later(_KEPT_S, self._remove_unused)

    def _remove_later(self, workspace: Workspace, call_id: str | None) -> None:
        self._remove_in_thread(functools.partial(self._remove, workspace, call_id))

    def _remove_in_thread(self, remove: Callable[[], None]) -> None:
        # Not awaited by the call: its caller has all it wanted, and may hang up or ask for the next thing now.
        try:
            removal = self._loop.run_in_executor(REMOVALS, remove)
        except RuntimeError:  # no thread can be started now
            remove()
        else:
            self._removals.add(removal)
            removal.add_done_callback(self._removals.discard)
            removal.add_done_callback(_look_at)

    def _remove(self, workspace: Workspace, call_id: str | None) -> None:
        try:
            workspace.remove()
        except OSError as error:
            log.error("workspace not removed", call_id=call_id, path=workspace.path, reason=str(error))

    @contextlib.contextmanager
    def _accounted(self, call: Call, record: Record) -> Iterator[None]:
        """See to it that the invocation ends in one log event and in the metrics, however it ends."""
        record.is_logged = True
        started_s = time.monotonic()
        try:
            yield
        except BaseException as error:
            if not (record.is_handed_over and isinstance(error, asyncio.CancelledError)):
                record.outcome, record.reason = outcome_of(error), str(error) or None
            if record.stopped_by is not None and isinstance(error, (asyncio.CancelledError, Draining)):
                record.outcome = "drained"
                record.reason = f"{record.stopped_by} came before the {self._what} and its transfers were over"
            raise
        finally:
            duration_s = record.duration_s
            fields = {
                "call_id": call.call_id,
                "outcome": record.outcome,
                "exit_code": record.exit_code,
                "signal": record.signal,
                "duration_s": None if duration_s is None else round(duration_s, 6),
                "total_s": round(time.monotonic() - started_s, 6),
                "queue_wait_s": None if record.queue_wait_s is None else round(record.queue_wait_s, 6),
                "input_bytes": record.input_bytes,
                "input_encoding": record.input_encoding,
                "output_bytes": record.output_bytes,
                "cpu_s": round(record.cpu_s, 6),
                "peak_rss_bytes": record.peak_rss_bytes,
                "reason": record.reason,
                **{f"ce_{name}": call.event.get(name) for name in _LOGGED_EVENT_ATTRIBUTES},
            }
            call.trace.note(fields)
            fields |= call.trace.fields
            self._level(record)("invocation ended", **{k: v for k, v in fields.items() if v is not None})
            self.metrics.invocation_ended(
                outcome=record.outcome,
                duration_s=duration_s,
                queue_wait_s=record.queue_wait_s,
                input_bytes=record.input_bytes,
                output_bytes=record.output_bytes,
                cpu_s=record.cpu_s,
                peak_rss_bytes=record.peak_rss_bytes,
            )

    def _level(self, record: Record) -> Callable[..., object]:
        if record.outcome in ("ok", SKIPPED):
            return self._log.info
        if record.outcome in ("caller_gone", "caller_silent", "bad_input", "not_available", "overloaded", "drained"):
            return self._log.warning
        return self._log.error


def _joined(results: Sequence[Result]) -> Result:
    """The results of several runs as one: the outputs of the first are below ``1/``."""
    return Result(
        outputs=[
            replace(output, name=f"{number}/{output.name}")
            for number, result in enumerate(results, 1)
            for output in result.outputs
        ],
        stdout=Joined([result.stdout for result in results]),
        exit_code=results[-1].exit_code,
        duration_s=sum(result.duration_s for result in results),
        stdout_tail="".join(result.stdout_tail for result in results),
        stderr_tail="".join(result.stderr_tail for result in results),
        printed_type=joined_type([(result.stdout.size_bytes, result.printed_type) for result in results]),
        warnings=list(dict.fromkeys(warning for result in results for warning in result.warnings)),
    )


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _content(taken: Input, held: HeldInput) -> bytes:
    return held.read() if taken.size_bytes <= _SMALL_EVENT_BYTES else await asyncio.to_thread(held.read)


def _look_at(job: asyncio.Future[None] | asyncio.Future[CallWarning | None]) -> None:
    """Take note of the error of work in a thread, so that asyncio does not report it: only abandoned work has one."""
    if not job.cancelled():
        job.exception()


def _was_killed(ended: Ended) -> bool:
    by_us = ended.timed_out or ended.ended_early
    return not by_us and (ended.signal == "SIGKILL" or ended.exit_code == _KILLED_CHILD)


def _refused_by_system(what: str, error: OSError) -> OutOfResources:
    hint = ""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        hint = "; raise the limit of open files (docker run --ulimit nofile) or lower max_inflight and max_queue"
    elif error.errno in (errno.EACCES, errno.EROFS, errno.ENOENT):
        hint = "; tmp_dir must be there and writable"
    return OutOfResources(f"{what} cannot be made: {error.strerror}{hint}")


def _shorter(limit_s: float, asked_s: float) -> float:
    """The shorter of two times of which 0 is none."""
    return min(limit_s, asked_s) if limit_s and asked_s else limit_s or asked_s


def _readable_size(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count} bytes"
