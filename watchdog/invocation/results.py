"""The result of a call without a run, or with several runs."""

from __future__ import annotations

import msgspec

from ..output.answer import Result
from ..output.call_warning import CallWarning
from ..output.printed import joined_type
from ..workspace.outputs import Output
from ..workspace.spool import TAIL_BYTES, Spool

# The result of a call without a run: an event without an object to process.
NOTHING = Result(outputs=(), stdout=Spool(""), exit_code=None, duration_s=0.0)
# In characters. A call may have thousands of runs, and their ends of stdout and stderr are in memory.
_LONGEST_TAIL = 16 * TAIL_BYTES


class JoinedResult:
    """The results of several runs, joined to one. The outputs of the first run are in the folder ``1/``, and so on.

    Args:
        stdout: has what all runs printed.
    """

    def __init__(self, stdout: Spool) -> None:
        self._stdout = stdout
        self._count = 0
        self._outputs: list[Output] = []
        self._exit_code: int | None = None
        self._duration_s = 0.0
        self._stdout_tail = self._stderr_tail = ""
        self._printed: list[tuple[int, str]] = []
        self._warnings: dict[CallWarning, None] = {}

    def add(self, result: Result, printed_bytes: int) -> None:
        """Add the result of the next run, which printed ``printed_bytes`` bytes."""
        self._count += 1
        self._outputs += [
            msgspec.structs.replace(output, name=f"{self._count}/{output.name}") for output in result.outputs
        ]
        self._exit_code = result.exit_code
        self._duration_s += result.duration_s
        self._stdout_tail = (self._stdout_tail + result.stdout_tail)[-_LONGEST_TAIL:]
        self._stderr_tail = (self._stderr_tail + result.stderr_tail)[-_LONGEST_TAIL:]
        self._printed.append((printed_bytes, result.printed_type))
        self._warnings |= dict.fromkeys(result.warnings)

    def result(self) -> Result:
        return Result(
            outputs=self._outputs,
            stdout=self._stdout,
            exit_code=self._exit_code,
            duration_s=self._duration_s,
            stdout_tail=self._stdout_tail,
            stderr_tail=self._stderr_tail,
            printed_type=joined_type(self._printed),
            warnings=list(self._warnings),
        )
