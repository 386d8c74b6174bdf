"""Find the outputs of a run, log what is not in the answer, and refuse outputs that are too large."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from ..errors import OutputError, OutputTooLarge, ScriptTimedOut
from ..logs.setup import get_logger
from ..system.threads import OUTPUTS, in_steps
from ..workspace.outputs import Listing, Output
from ..workspace.space import raise_if_no_space
from ..workspace.spool import Spool
from ..workspace.workspace import MOST_OUTPUTS, Workspace
from .run import Run

log = get_logger("invocation")
_MOST_WARNINGS = 100


async def found_outputs(workspace: Workspace, run: Run, call_id: str) -> tuple[list[Output], int]:
    """Return the outputs, and the number of entries of ``TMP_OUTPUT_DIR`` that are not outputs.

    The listing of many outputs may take as long as the script may run. It ends early if the caller leaves or the
    server stops: then this coroutine is cancelled.

    Raises:
        OutputUnreadable: something cannot be listed.
        ScriptTimedOut: the listing took longer than the script was allowed to run.
    """
    listing = Listing()
    steps = workspace.listing(listing)
    if next(steps, None):
        try:
            async with asyncio.timeout(run.timeout_s or None) as bound:
                await in_steps(steps, OUTPUTS)
        except TimeoutError:
            if not bound.expired():
                raise
            raise ScriptTimedOut(
                f"the {len(listing.outputs)} outputs found in {run.timeout_s:g} s (exec_timeout, X-Timeout) are not "
                "all; write fewer files, pack them into one (tar, zip), or give the call more time",
                stderr=run.stderr_tail,
            ) from None
    if not listing.skipped and not listing.renamed:
        return listing.outputs, 0
    _log(listing, call_id)
    is_removed = bool(listing.skipped) and not os.path.lexists(workspace.output_dir)
    return listing.outputs, 0 if is_removed else len(listing.skipped)


def check_size(outputs: Sequence[Output], earlier: int, stdout: Spool, limit_bytes: int, noun: str) -> None:
    """Raise an error if the answer of a run would be too large, or if its stdout could not be kept.

    Args:
        earlier: number of the outputs that earlier runs of the call left.
        limit_bytes: 0 is no limit.
        noun: what ran, in messages.

    Raises:
        OutputTooLarge: the outputs, or stdout if there are no outputs, are over the limit; or there are too many.
        NoSpace: the disk was full before the end of stdout.
        OutputError: stdout could not be kept for another reason.
    """
    if (count := earlier + len(outputs)) > MOST_OUTPUTS:
        raise OutputTooLarge(
            f"all runs of this call left {count} outputs, over {MOST_OUTPUTS}; pack them into fewer (tar, zip)"
        )
    size_bytes = sum(output.size_bytes for output in outputs)
    if limit_bytes and (size_bytes > limit_bytes or (not outputs and stdout.overflowed)):
        what = f"the outputs have {size_bytes} bytes" if outputs else f"the {noun}'s stdout is"
        raise OutputTooLarge(f"{what}, over {limit_bytes} bytes (max_output_size)")
    if not outputs and stdout.error is not None:
        raise_if_no_space(stdout.error, f"the {noun}'s stdout")
        raise OutputError(f"the {noun}'s stdout could not be kept: {stdout.error.strerror}")


def _log(listing: Listing, call_id: str) -> None:
    for name, reason in listing.skipped[:_MOST_WARNINGS]:
        log.warning("output skipped", call_id=call_id, output=name, reason=reason)
    if len(listing.skipped) > _MOST_WARNINGS:
        log.warning("more outputs skipped", call_id=call_id, count=len(listing.skipped) - _MOST_WARNINGS)
    for name, new_name in list(listing.renamed.items())[:_MOST_WARNINGS]:
        log.warning("output renamed", call_id=call_id, output=name, new_name=new_name)
    if len(listing.renamed) > _MOST_WARNINGS:
        log.warning("more outputs renamed", call_id=call_id, count=len(listing.renamed) - _MOST_WARNINGS)
