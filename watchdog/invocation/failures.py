"""Find the error that a caller gets for a run that failed, with a hint for the author of the script."""

from __future__ import annotations

from ..errors import (
    Draining,
    ScriptFailed,
    ScriptKilled,
    ScriptOutOfMemory,
    ScriptOutOfSpace,
    ScriptTimedOut,
    WatchdogError,
    WorkerBroken,
)
from ..settings.declarations import Settings
from ..system.cgroup import Cgroup
from ..workspace.response_file import NO_OVERRIDES
from .admission import DRAINING_RETRY_AFTER_S
from .call import Record
from .functions import Function
from .outcome import outcome_of
from .run import Run


class Failures:
    """Converts the end of a run into an error."""

    def __init__(self, settings: Settings, function: Function, cgroup: Cgroup) -> None:
        self._settings = settings
        self._function = function
        self._cgroup = cgroup

    def of(self, run: Run, record: Record) -> ScriptFailed | ScriptKilled | None:
        """Raise the error of a run. Return None if the run succeeded.

        If stdout is the answer in spite of the failure, return the error instead, and note it in ``record``.

        Raises:
            BadScriptResponse, OutOfResources: the script's response file is malformed, or could not be read.
            WorkerBroken: the worker of a warm function did not keep to the protocol.
            Draining: the server is stopping and ended the run.
            ScriptTimedOut: the run took longer than its limit.
            ScriptFailed: the exit code is not 0.
            ScriptKilled: a signal ended the run.
        """
        error = self._error_of(run)
        if error is None:
            return None
        if not isinstance(error, (ScriptFailed, ScriptKilled)) or not self._function.answers_with(error):
            raise error
        record.outcome, record.reason = outcome_of(error), str(error)
        if isinstance(error, ScriptKilled) or (record.chosen.status or 0) < 400:
            record.chosen = NO_OVERRIDES
        return error

    def _error_of(self, run: Run) -> WatchdogError | None:
        ended, noun, stderr = run.ended, self._function.noun, run.stderr_tail
        if run.bad_choice is not None:
            return run.bad_choice
        if ended.broken is not None:
            return WorkerBroken(ended.broken, stderr=stderr)
        if ended.exit_code == 0 and not ended.ended_early and not ended.timed_out and not run.is_out_of_memory:
            return None
        if ended.ended_early:
            return Draining(
                f"the server is stopping and ended the {noun}; send the call again to another server",
                DRAINING_RETRY_AFTER_S,
            )
        if ended.timed_out:
            # There are entries in `left` only if the script exited by itself.
            process = f"a process that the {noun} left" if ended.left else f"the {noun}"
            return ScriptTimedOut(
                f"{process} ran for longer than {run.timeout_s:g} s, so the server ended it", stderr=stderr
            )
        if run.is_out_of_memory:
            return ScriptOutOfMemory(
                f"the {noun} was killed: {out_of_memory(self._cgroup)}; give the container more memory, or process "
                "less data at a time",
                signal="SIGKILL",
                stderr=stderr,
            )
        if not self._settings.error_status:
            return None
        meanwhile = oom_kill_meanwhile(self._cgroup) if run.has_oom_kill else ""
        if ended.signal is not None:
            text = f"the {noun} was ended by {ended.signal}{meanwhile}"
            return ScriptKilled(text, signal=ended.signal, stderr=stderr)
        if ended.exit_code and run.has_no_space:
            return ScriptOutOfSpace(
                f"the {noun} ended with exit code {ended.exit_code}, and no space is left in "
                f"{self._settings.tmp_dir}; give it more space, or lower max_inflight and max_queue",
                exit_code=ended.exit_code,
                stderr=stderr,
            )
        if ended.exit_code:
            hint = self._function.hint(ended.exit_code)
            text = f"the {noun} ended with exit code {ended.exit_code}{hint}{meanwhile}"
            return ScriptFailed(text, exit_code=ended.exit_code, stderr=stderr)
        return None


def out_of_memory(cgroup: Cgroup) -> str:
    """Return the words for the reason, with the memory limit if there is one."""
    limit = cgroup.memory_limit_bytes()
    return "out of memory" + (f", limit {_readable_size(limit)}" if limit else "")


def oom_kill_meanwhile(cgroup: Cgroup) -> str:
    """Return the end of a message about a process that failed while the kernel killed another one."""
    return (
        f"; while it ran, the kernel killed a process of this container: {out_of_memory(cgroup)}; give the container "
        "more memory, or process less data at a time"
    )


def _readable_size(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count} bytes"
