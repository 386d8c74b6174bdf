"""`watchdog job`: run the script for one event from the platform."""

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
# After this time without a byte on stdin, the log says what the job waits for.
_LOG_WAIT_AFTER_S = 5.0


async def run_job(configuration: Configuration, environ: Mapping[str, str], sink: LogWriter, record: Record) -> int:
    """Run the script for the event from stdin or ``EVENT``, print the answer, and return the exit code.

    A caller over HTTP would get the same answer, with one exception. If the event reports an object of a storage
    and the outputs are stored, the answer is what the script printed.

    Raises:
        BadInput: there is no event, or it is malformed.
        WatchdogError: see :meth:`Invocations.invoke`.
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
    was_stopped = record.stopped_by is not None and exit_code > 128
    return exit_code if configuration.settings.error_status or was_stopped else 0


async def _event_body(environ: Mapping[str, str]) -> AsyncIterator[bytes]:
    """Yield the event as one piece. Input that is too long for an event is yielded in pieces as it arrives."""
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
    """Yield the bytes of stdin as they arrive. Yield nothing if stdin is a terminal, because nobody types an event."""
    if sys.stdin is None or sys.stdin.isatty():
        return
    fd = sys.stdin.fileno()
    loop = asyncio.get_running_loop()
    waiting = loop.call_later(_LOG_WAIT_AFTER_S, lambda: log.info("waiting for the event: reading stdin to its end"))
    try:
        while piece := await read_some(fd):
            waiting.cancel()
            yield piece
    finally:
        waiting.cancel()
