"""Get the input of each run of a call: the body itself, the data of an event, or an object of a storage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from ..errors import Draining, StorageError, WatchdogError
from ..input.detect import BodyHints
from ..input.receive import Input, take_in
from ..settings.load import Configuration
from ..storage.transfer import Transfers
from ..system.threads import to_its_end
from ..workspace.held_input import HeldInput
from ..workspace.space import raise_if_no_space
from ..workspace.workspace import Workspace
from .call import Call, Record, Task
from .cleanups import Cleanups
from .drainable_waits import DrainableWaits
from .functions import Function
from .outcome import SKIPPED
from .refusal import refused_by_system

if TYPE_CHECKING:
    from ..storage.event import Event

# How the data of an event is read, by its kind. "text" is read like an octet stream: as base64 if it is valid base64,
# otherwise as raw bytes.
_HINTS_OF_DATA = {
    "bytes": BodyHints(encoding="raw"),
    "text": BodyHints(content_type="application/octet-stream"),
    "body": BodyHints(),
}
# An event of at most this size is read in the event loop, a larger one in a thread.
_SMALL_EVENT_BYTES = 64 * 1024


class Inputs:
    """Receives the bodies of calls, and fetches the objects that their events name.

    Args:
        before_place: the waits for the first object of an event. During such a wait the call has no place yet.
    """

    def __init__(
        self, configuration: Configuration, function: Function, transfers: Transfers, before_place: DrainableWaits
    ) -> None:
        self._settings = configuration.settings
        self._function = function
        self._transfers = transfers
        self._before_place = before_place
        self._stages_in = configuration.service is None or not configuration.service.file_stage_in
        self._loop = asyncio.get_running_loop()
        # Whether a body may be an event of a storage of the service definition. If not, each body is data.
        self.may_be_events = transfers.locator.has_providers and function.works_with_files

    async def tasks(self, call: Call, record: Record, cleanups: Cleanups) -> list[Task]:
        """Read the body and return the tasks of the call. If the body is an event, fetch its first object.

        The input of the first task is complete then. There is no task if the body is an event without an object to
        process.

        Args:
            cleanups: closes the inputs at the end of the call.
        """
        if not self._function.works_with_files:  # a classic function reads the body itself
            record.input_encoding = "raw"
            return [Task()]
        held = self._held(cleanups)
        with call.trace.phase("take in input"):
            taken = await self._take_in(call.body, call.hints, held)
        record.input_bytes, record.input_encoding = taken.size_bytes, taken.encoding
        event = await self._event(call, taken, held)
        if event is None:
            return [Task(held, taken)]

        held.clear()
        record.input_bytes = 0
        if event.data is not None:
            taken = await self._take_in(_once(event.data), _HINTS_OF_DATA[event.data_is], held)
            record.input_bytes, record.input_encoding = taken.size_bytes, taken.encoding
            return [Task(held, taken, variables=event.variables)]
        tasks = self._tasks_of(event, call, record)
        if not tasks:
            return []
        record.is_of_storage = True
        try:
            await self.fetch(call, tasks[0], record, self._before_place, cleanups)
        except Draining:
            raise
        except WatchdogError as error:
            if len(tasks) == 1:
                raise
            tasks[0].failure = error
        return tasks

    async def fetch(self, call: Call, task: Task, record: Record, waits: DrainableWaits, cleanups: Cleanups) -> None:
        """Fetch the object of a task, if the task has one and the script does not fetch it itself.

        Raises:
            Draining: the server is stopping and ended ``waits``.
            StorageError: the object cannot be fetched.
        """
        if task.source is None or not self._stages_in:
            return
        task.held = self._held(cleanups)
        with call.trace.phase("fetch input"):
            try:
                async with waits.wait():
                    name, size_bytes = await self._transfers.fetch(
                        task.source,
                        task.held,
                        most_bytes=self._settings.max_input_size_bytes,
                        call_id=call.call_id,
                    )
            except OSError as error:
                raise_if_no_space(error, f"the input {task.source}")
                raise refused_by_system(f"the input {task.source}", error) from error
        task.taken = Input(name, size_bytes)
        record.input_bytes += size_bytes

    async def give_names(self, task: Task, workspace: Workspace) -> None:
        """Give the files of the input their names in ``TMP_INPUT_DIR``, if the function works with files."""
        held = task.held
        if held is None:
            return
        assert task.taken is not None
        workspace.input_name = task.taken.name
        try:
            if not held.give_names(workspace.input_dir, only_quickly=True):
                await to_its_end(self._loop.run_in_executor(None, held.give_names, workspace.input_dir))
        except OSError as error:
            raise refused_by_system("the input file", error) from error
        held.close()

    def _held(self, cleanups: Cleanups) -> HeldInput:
        held = HeldInput(self._settings.tmp_dir)
        cleanups.add(held.close)
        return held

    async def _take_in(self, body: AsyncIterator[bytes], hints: BodyHints, held: HeldInput) -> Input:
        try:
            return await take_in(body, hints, held, self._settings.max_input_size_bytes)
        except ConnectionError:
            raise
        except OSError as error:
            raise refused_by_system("the input file", error) from error

    async def _event(self, call: Call, taken: Input, held: HeldInput) -> Event | None:
        """Return the input as an event, or None if it is not an event that this service could process."""
        if not (call.is_job or self.may_be_events) or call.hints.encoding == "raw":
            return None
        from ..storage import event as storage_event

        if taken.size_bytes > storage_event.MOST_BYTES or not taken.name:
            return None
        text = await _content(taken, held)
        event = storage_event.read_data(call.event["type"], text) if call.event else storage_event.read(text)
        # Two kinds of events from a caller are treated as data: a message in an envelope that reports no object, and an
        # event whose objects cannot be in any storage of this service. In a job, both kinds are treated as events.
        if event is not None and not call.is_job and not any(map(self._transfers.locator.knows, event.kinds)):
            return None
        return event

    def _tasks_of(self, event: Event, call: Call, record: Record) -> list[Task]:
        """Return a task for each object of an event that the script must process, and log the other objects.

        If there is no task, write the reason into ``record``.

        Raises:
            StorageError: there is no task for the event of a job, and at least one of its objects cannot be processed.
        """
        from ..storage.skipped import Skipped

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


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _content(taken: Input, held: HeldInput) -> bytes:
    return held.read() if taken.size_bytes <= _SMALL_EVENT_BYTES else await asyncio.to_thread(held.read)
