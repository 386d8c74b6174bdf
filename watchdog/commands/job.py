"""`watchdog job`: run the script on an event from the platform."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping

from ..input.detect import BodyHints
from ..invocation.call import Call, Record
from ..logs.setup import get_logger
from ..logs.sink import LogWriter
from ..output.accept import choose_form
from ..output.answer import Result, prepare
from ..settings.load import Configuration
from ..storage import event as storage_event
from ..storage.job_event import job_text
from ..system import standard_output
from ..system.standard_input import read_some
from .run_once import run_once

log = get_logger("job")

_READ_BYTES = 256 * 1024
_PATIENCE_S = 5.0


async def run_job(configuration: Configuration, environ: Mapping[str, str], sink: LogWriter, record: Record) -> int:
    """Run the script on the event from stdin or ``EVENT``, and print the answer; return the exit code.

    What is printed is what a caller would get; but for an object of a storage, whose outputs are stored, it is what
    the script printed.

    Raises:
        BadInput: there is no event, or it is broken.
        WatchdogError: as :meth:`Invocations.invoke`.
    """

    async def hand_over(result: Result, is_stored: bool) -> None:
        if record.is_of_storage and is_stored:
            for piece in result.stdout.pieces(_READ_BYTES):
                await asyncio.to_thread(standard_output.write, piece)
        else:
            answer = await prepare(result, choose_form(None, None))
            async for piece in answer.chunks():
                await asyncio.to_thread(standard_output.write, piece)

    call_id = environ.get("CALL_ID") or environ.get("JOB_UUID") or "job"
    call = Call(call_id, _event_body(environ), BodyHints(), is_job=True)
    exit_code = await run_once(configuration, environ, sink, call, record, hand_over)
    return exit_code if configuration.settings.error_status or exit_code > 128 else 0


async def _event_body(environ: Mapping[str, str]) -> AsyncIterator[bytes]:
    """The event; what is too long for one is passed on as it comes."""
    pieces: list[bytes] = []
    size_bytes = 0
    rest = pieces_of_stdin()
    async for piece in rest:
        pieces.append(piece)
        size_bytes += len(piece)
        if size_bytes > storage_event.MOST_BYTES:
            break
    if size_bytes <= storage_event.MOST_BYTES:
        yield job_text(b"".join(pieces), environ.get("EVENT"))
        return
    for piece in pieces:
        yield piece
    async for piece in rest:
        yield piece


async def pieces_of_stdin() -> AsyncIterator[bytes]:
    """What comes, as it comes; nothing if stdin is a terminal: nobody types an event."""
    if sys.stdin is None or sys.stdin.isatty():
        return
    fd = sys.stdin.fileno()
    loop = asyncio.get_running_loop()
    waiting = loop.call_later(_PATIENCE_S, lambda: log.info("waiting for the event on stdin, until it ends"))
    try:
        while piece := await read_some(fd):
            waiting.cancel()
            yield piece
    finally:
        waiting.cancel()
