"""Find the outputs of each run, keep the scripts of other calls away from them, and store them in a storage."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from ..errors import OutputError, OutputTooLarge, ScriptTimedOut
from ..logs.setup import get_logger
from ..settings.declarations import Settings
from ..storage.transfer import Transfers
from ..system.files import raise_if_no_descriptor
from ..system.threads import LISTINGS, in_steps
from ..workspace.disposal import Disposal
from ..workspace.held_outputs import HeldOutputs
from ..workspace.listing import MOST_OUTPUTS, Listing, list_outputs
from ..workspace.outputs import Output, size_of
from ..workspace.space import raise_if_no_space
from ..workspace.spool import Spool
from ..workspace.workspace import Workspace
from .call import Call, Record
from .cleanups import Cleanups
from .drainable_waits import DrainableWaits
from .functions import Function
from .run import Run

log = get_logger("invocation")
_MOST_WARNINGS = 100
# Number of outputs. A list of 1,000 outputs takes 0.4 MiB of memory. Only calls with a place may have longer lists, so
# there are few longer lists at a time.
_MOST_WITHOUT_PLACE = 1_000


class Outputs:
    """The files that a run leaves for the caller. The methods follow in the order in which a run needs them.

    Args:
        after_place: the waits of calls that have or had a place.

    Attributes:
        are_stored: the outputs are stored in a storage.
    """

    def __init__(
        self,
        settings: Settings,
        function: Function,
        transfers: Transfers,
        disposal: Disposal,
        after_place: DrainableWaits,
    ) -> None:
        self._settings = settings
        self._function = function
        self._transfers = transfers
        self._disposal = disposal
        self._after_place = after_place
        self._held_outputs = HeldOutputs(disposal.in_thread)
        self.are_stored = transfers.stores and function.works_with_files

    async def find(self, workspace: Workspace, run: Run, call_id: str) -> tuple[list[Output], int]:
        """Return the outputs, and the number of entries of ``TMP_OUTPUT_DIR`` that are not outputs.

        A function that does not work with files has none.

        The listing of the outputs has the same time limit as the script. If the caller disconnects or the server stops,
        this coroutine is cancelled, which ends the listing early.

        Raises:
            OutputUnreadable, OutOfResources: a directory or file cannot be listed.
            ScriptTimedOut: the listing took longer than this limit.
        """
        if not self._function.works_with_files:
            return [], 0
        listing = Listing()
        steps = list_outputs(workspace.output_dir, listing)
        if next(steps, None):
            try:
                async with asyncio.timeout(run.timeout_s or None) as bound:
                    await in_steps(steps, LISTINGS)
            except TimeoutError:
                if not bound.expired():
                    raise
                raise ScriptTimedOut(
                    f"only {len(listing.outputs)} outputs could be listed in {run.timeout_s:g} s (exec_timeout,"
                    " X-Timeout); write fewer files, pack them into one (tar, zip), or give the call more time",
                    stderr=run.stderr_tail,
                ) from None
        if not listing.skipped and not listing.renamed:
            return listing.outputs, 0
        _log(listing, call_id)
        is_removed = bool(listing.skipped) and not os.path.lexists(workspace.output_dir)
        return listing.outputs, 0 if is_removed else len(listing.skipped)

    def check_size(self, outputs: Sequence[Output], record: Record) -> None:
        """Raise an error if the outputs of all runs so far are too large.

        Raises:
            OutputTooLarge: they are larger than ``max_output_size``, or there are too many of them.
        """
        limit_bytes = self._settings.max_output_size_bytes
        if (count := record.outputs + len(outputs)) > MOST_OUTPUTS:
            raise OutputTooLarge(
                f"all runs of this call left {count} outputs, over {MOST_OUTPUTS}; pack them into fewer files "
                "(tar, zip)"
            )
        if limit_bytes and outputs:
            if (size_bytes := record.outputs_bytes + size_of(outputs)) > limit_bytes:
                raise OutputTooLarge(f"the outputs have {size_bytes} bytes, over {limit_bytes} bytes (max_output_size)")
            record.outputs_bytes = size_bytes

    def check_stdout(self, stdout: Spool, record: Record) -> None:
        """Raise an error if stdout is the answer, because no run of the call has left outputs, and is not complete.

        Raises:
            OutputTooLarge: the stdout of all runs is larger than ``max_output_size``.
            NoSpace: the disk was full before the end of stdout.
            OutOfResources: there was no descriptor for stdout.
            OutputError: stdout could not be saved for another reason.
        """
        if record.outputs:
            return
        limit_bytes, noun = self._settings.max_output_size_bytes, self._function.noun
        if stdout.overflowed:
            raise OutputTooLarge(f"the {noun}'s stdout is over {limit_bytes} bytes (max_output_size)")
        if stdout.error is not None:
            raise_if_no_space(stdout.error, f"the {noun}'s stdout")
            failure = f"the {noun}'s stdout could not be saved"
            raise_if_no_descriptor(stdout.error, failure)
            raise OutputError(f"{failure}: {stdout.error.strerror}")

    def put_out_of_reach(
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

    async def store(self, outputs: list[Output], call: Call) -> None:
        """Store the outputs of a run.

        Raises:
            Draining: the server is stopping and ended the wait.
            StorageError: some outputs could not be stored.
        """
        with call.trace.phase("store outputs"):
            async with self._after_place.wait():
                await self._transfers.store(outputs, call_id=call.call_id)


def _log(listing: Listing, call_id: str) -> None:
    for name, reason in listing.skipped[:_MOST_WARNINGS]:
        log.warning("output skipped", call_id=call_id, output=name, reason=reason)
    if len(listing.skipped) > _MOST_WARNINGS:
        log.warning("more outputs skipped", call_id=call_id, count=len(listing.skipped) - _MOST_WARNINGS)
    for name, new_name in list(listing.renamed.items())[:_MOST_WARNINGS]:
        log.warning("output renamed", call_id=call_id, output=name, new_name=new_name)
    if len(listing.renamed) > _MOST_WARNINGS:
        log.warning("more outputs renamed", call_id=call_id, count=len(listing.renamed) - _MOST_WARNINGS)
