"""The result of a call without a run, or with several runs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..output.answer import Result
from ..output.printed import joined_type
from ..workspace.spool import Joined

# The result of a call without a run: an event without an object to process.
NOTHING = Result(outputs=(), stdout=Joined(()), exit_code=None, duration_s=0.0)


def joined(results: Sequence[Result]) -> Result:
    """Return the results of several runs as one. The outputs of the first run are in the folder ``1/``, and so on."""
    return Result(
        outputs=[
            msgspec.structs.replace(output, name=f"{number}/{output.name}")
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
