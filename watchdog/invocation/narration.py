"""Log the progress of a call for people at a terminal: its wait in the queue, its start, and the names of its files.

A log for programs has one event for each call, at its end. So a server with such a log has no narration.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..logs.setup import get_logger
from ..workspace.file_name import NEW_NAME_BEGINS
from ..workspace.outputs import Output
from .call import Call, Record, Task

log = get_logger("invocation")


class Narration:
    """Logs events that only the console shows, and notes what the console shows at the end of a call."""

    def waits(self, call: Call, position: int) -> None:
        log.info("call waits", call_id=call.call_id, position=position)

    def starts(self, call: Call, task: Task, record: Record, *, is_loading: bool) -> None:
        """Log that a call has its place. ``is_loading``: the call still waits for a worker of a warm function."""
        taken = task.taken
        has_name = taken is not None and not taken.name.startswith(NEW_NAME_BEGINS)
        shown = {
            "input_name": taken.name if taken is not None and has_name else None,
            "input_bytes": None if taken is None else taken.size_bytes,
        }
        queue_wait_s = record.queue_wait_s
        log.info("call started", call_id=call.call_id, queue_wait_s=queue_wait_s, is_loading=is_loading, **shown)
        if record.shown is None:
            record.shown = {"input_name": shown["input_name"], "outputs": [], "printed_bytes": 0}
        else:  # a further run, for the next object of an event
            record.shown["input_name"] = None

    def leaves(self, record: Record, outputs: Sequence[Output], printed_bytes: int) -> None:
        """Note the outputs of one run."""
        if record.shown is not None:
            record.shown["outputs"] += [(output.name, output.size_bytes) for output in outputs]
            record.shown["printed_bytes"] += printed_bytes
