"""Find the warnings of a call: its function succeeded, but its result may be wrong (``output/call_warning.py``)."""

from __future__ import annotations

import asyncio

from ..logs.setup import get_logger
from ..output import call_warning
from ..output.call_warning import CallWarning
from ..system.threads import SEARCHES, take_error
from ..workspace.response_file import NO_OVERRIDES
from ..workspace.workspace import Workspace
from .run import Run

log = get_logger("invocation")
# The longest time for which a call waits for the search for files in other directories.
_LOOK_ELSEWHERE_S = 5.0


class Doubts:
    """Finds reasons to doubt the result of a run, and logs them.

    Args:
        tmp_dir: the directory of the workspaces.
    """

    def __init__(self, tmp_dir: str) -> None:
        self._tmp_dir = tmp_dir
        self._loop = asyncio.get_running_loop()
        # The last search in other directories that did not end while its call waited. It may still run.
        self._slow_search: asyncio.Future[CallWarning | None] | None = None

    async def warnings_of(
        self, run: Run, workspace: Workspace, call_id: str, *, has_failed: bool, skipped: int, is_empty: bool
    ) -> list[CallWarning]:
        """Return the warnings of one run.

        Args:
            has_failed: the run failed, but what the function printed is sent as the answer.
            skipped: the number of entries of ``TMP_OUTPUT_DIR`` that are not outputs.
            is_empty: the script wrote no output and printed nothing.
        """
        warnings: list[CallWarning] = []
        has_exited_well = run.ended.exit_code == 0
        if run.has_no_space and not has_failed:
            warnings.append(call_warning.no_space(self._tmp_dir))
        if skipped:
            warnings.append(call_warning.outputs_skipped(skipped))
        if run.has_oom_kill and has_exited_well:
            warnings.append(call_warning.OUT_OF_MEMORY)
        if run.has_crlf and has_exited_well:
            warnings.append(call_warning.CRLF)
        if run.has_mark and has_exited_well:
            warnings.append(call_warning.BYTE_ORDER_MARK)
        # A script that chose a status or a header has given an answer, so an empty result is not suspicious.
        if is_empty and has_exited_well and run.chosen == NO_OVERRIDES:
            warnings += await self._warnings_of_no_output(workspace, run.started_ns)
        for warning in warnings:
            log.warning("doubtful success", call_id=call_id, warning=warning.name, reason=warning.detail)
        if run.ended.were_working:  # the runner has already logged this, with the names of the processes
            warnings.append(call_warning.STILL_WORKING)
        return warnings

    async def _warnings_of_no_output(self, workspace: Workspace, since_ns: int) -> list[CallWarning]:
        """Return the warnings of a call without a result. They name files that the script wrote to other directories.

        The script's working directory may be on a file system that hangs. If a search has not ended while its call
        waited for it, no call begins another search before it ends.
        """
        search = call_warning.files_elsewhere
        elsewhere = None
        if self._slow_search is None or self._slow_search.done():
            try:
                job = self._loop.run_in_executor(SEARCHES, search, workspace.input_dir, since_ns)
            except RuntimeError:  # no thread can be started now
                elsewhere = search(workspace.input_dir, since_ns)
            else:
                job.add_done_callback(take_error)  # a search that takes too long is not awaited
                try:
                    await asyncio.wait((job,), timeout=_LOOK_ELSEWHERE_S)
                finally:  # the caller may disconnect before the end of this time
                    if not job.done():
                        self._slow_search = job
                if job.done():
                    elsewhere = job.result()
                else:
                    log.warning("no search for files in other directories", reason="a directory does not answer")
        return [call_warning.NO_OUTPUT, *([elsewhere] if elsewhere is not None else [])]
