"""`watchdog run`: run the script once on a local file, and copy the outputs to the place that the user names."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from typing import BinaryIO

from ..errors import WatchdogError
from ..input.detect import BodyHints
from ..invocation.call import Call, Record
from ..logs.sink import LogWriter
from ..logs.text import printable
from ..output.answer import Result
from ..settings.load import Configuration
from ..system import standard_output
from ..system.standard_input import read_some
from ..workspace.outputs import Output, open_output
from .run_once import run_once

_COPY_BYTES = 256 * 1024


async def run_file(
    configuration: Configuration,
    environ: Mapping[str, str],
    sink: LogWriter,
    source: BinaryIO,
    *,
    name: str | None,
    target: str | None,
) -> int:
    """Run the script on the content of ``source``, and return the exit code.

    Args:
        name: the name of the input file, if it has one.
        target: the file for one output, or the directory for several outputs; None means stdout.

    Raises:
        WatchdogError: see :meth:`Invocations.invoke`. It is also raised if an output cannot be written.
    """

    async def body() -> AsyncIterator[bytes]:
        while piece := await read_some(source.fileno()):
            yield piece

    async def hand_over(result: Result, is_stored: bool) -> None:
        await asyncio.to_thread(_hand_over, result, target, is_stored)

    call = Call(environ.get("CALL_ID", "local"), body(), BodyHints(encoding="raw", file_name=name))
    return await run_once(configuration, environ, sink, call, Record(), hand_over)


def _hand_over(result: Result, target: str | None, is_stored: bool) -> None:
    """Copy the outputs to the target. If there are no outputs, copy the script's stdout to the target."""
    if not result.outputs:
        with contextlib.ExitStack() as stack:
            write = standard_output.write if target is None else stack.enter_context(_created(target)).write
            for piece in result.stdout.pieces(_COPY_BYTES):
                write(piece)
    elif target is None and len(result.outputs) == 1 and not sys.stdout.isatty():
        _copy(result.outputs[0], standard_output.write)
    elif target is None:
        for output in result.outputs:
            standard_output.write_line(f"{output.size_bytes:>12}  {printable(output.name)}")
        if not is_stored:
            print("these outputs are removed now; use -o PATH to keep them", file=sys.stderr)
    elif len(result.outputs) == 1 and not os.path.isdir(target) and not target.endswith("/"):
        with _created(target) as file:
            _copy(result.outputs[0], file.write)
    else:
        for output in result.outputs:
            with _created(os.path.join(target, output.name)) as file:
                _copy(output, file.write)


def _created(path: str) -> BinaryIO:
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        return open(path, "wb")
    except OSError as error:
        raise WatchdogError(f"the output {path} cannot be written: {error.strerror}") from error


def _copy(output: Output, write: Callable[[bytes], int]) -> None:
    with open(open_output(output), "rb") as source:
        while piece := source.read(_COPY_BYTES):
            write(piece)
