"""Find the outputs of a run, log skipped and renamed files, and reject outputs that are too large."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from ..errors import OutputError, OutputTooLarge, ScriptTimedOut
from ..logs.setup import get_logger
from ..system.threads import OUTPUTS, in_steps
from ..workspace.listing import MOST_OUTPUTS, Listing, list_outputs
from ..workspace.outputs import Output, size_of
from ..workspace.space import raise_if_no_space
from ..workspace.spool import Spool
from ..workspace.workspace import Workspace
from .run import Run

log = get_logger("invocation")
_MOST_WARNINGS = 100


async def found_outputs(workspace: Workspace, run: Run, call_id: str) -> tuple[list[Output], int]:
    """Return the outputs, and the number of entries of ``TMP_OUTPUT_DIR`` that are not outputs.

    The listing of the outputs has the same time limit as the script. If the caller disconnects or the server stops,
    this coroutine is cancelled, which ends the listing early.

    Raises:
        OutputUnreadable: a directory or file cannot be listed.
        ScriptTimedOut: the listing took longer than this limit.
    """
    listing = Listing()
    steps = list_outputs(workspace.output_dir, listing)
    if next(steps, None):
        try:
            async with asyncio.timeout(run.timeout_s or None) as bound:
                await in_steps(steps, OUTPUTS)
        except TimeoutError:
            if not bound.expired():
                raise
            raise ScriptTimedOut(
                f"only {len(listing.outputs)} outputs could be listed in {run.timeout_s:g} s (exec_timeout, X-Timeout);"
                " write fewer files, pack them into one (tar, zip), or give the call more time",
                stderr=run.stderr_tail,
            ) from None
    if not listing.skipped and not listing.renamed:
        return listing.outputs, 0
    _log(listing, call_id)
    is_removed = bool(listing.skipped) and not os.path.lexists(workspace.output_dir)
    return listing.outputs, 0 if is_removed else len(listing.skipped)


def check_size(outputs: Sequence[Output], earlier: int, stdout: Spool, limit_bytes: int, noun: str) -> None:
    """Raise an error if the answer of a run would be too large, or if its stdout could not be saved.

    Args:
        earlier: the number of outputs of earlier runs of the same call.
        limit_bytes: the largest size of the outputs, or of stdout if there are no outputs; 0 means no limit.
        noun: the word for the function in messages.

    Raises:
        OutputTooLarge: the outputs or stdout are larger than the limit, or there are too many outputs.
        NoSpace: the disk was full before the end of stdout.
        OutputError: stdout could not be saved for another reason.
    """
    if (count := earlier + len(outputs)) > MOST_OUTPUTS:
        raise OutputTooLarge(
            f"all runs of this call left {count} outputs, over {MOST_OUTPUTS}; pack them into fewer (tar, zip)"
        )
    if limit_bytes and outputs and (size_bytes := size_of(outputs)) > limit_bytes:
        raise OutputTooLarge(f"the outputs have {size_bytes} bytes, over {limit_bytes} bytes (max_output_size)")
    if limit_bytes and not outputs and stdout.overflowed:
        raise OutputTooLarge(f"the {noun}'s stdout is over {limit_bytes} bytes (max_output_size)")
    if not outputs and stdout.error is not None:
        raise_if_no_space(stdout.error, f"the {noun}'s stdout")
        raise OutputError(f"the {noun}'s stdout could not be saved: {stdout.error.strerror}")


def _log(listing: Listing, call_id: str) -> None:
    for name, reason in listing.skipped[:_MOST_WARNINGS]:
        log.warning("output skipped", call_id=call_id, output=name, reason=reason)
    if len(listing.skipped) > _MOST_WARNINGS:
        log.warning("more outputs skipped", call_id=call_id, count=len(listing.skipped) - _MOST_WARNINGS)
    for name, new_name in list(listing.renamed.items())[:_MOST_WARNINGS]:
        log.warning("output renamed", call_id=call_id, output=name, new_name=new_name)
    if len(listing.renamed) > _MOST_WARNINGS:
        log.warning("more outputs renamed", call_id=call_id, count=len(listing.renamed) - _MOST_WARNINGS)
