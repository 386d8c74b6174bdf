"""Run one invocation without HTTP: a job (an event from the platform), or a local run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from .errors import Draining
from .input.detect import BodyHints
from .invocation.admission import Admission
from .invocation.call import Call, Record
from .invocation.invocation import Invocations
from .logs.progress import ProgressBar
from .logs.setup import get_logger
from .logs.sink import LogWriter
from .output.accept import choose_form
from .output.answer import Result, prepare
from .process.supervisor import Supervisor
from .settings.load import Configuration
from .storage import event as storage_event
from .storage.job_event import job_text
from .system import standard_output, threads
from .telemetry.metrics import Metrics
from .workspace.workspaces import Workspaces

log = get_logger("job")

_READ_BYTES = 256 * 1024
_PATIENCE_S = 5.0


async def run_once(
    configuration: Configuration,
    environ: Mapping[str, str],
    sink: LogWriter,
    call: Call,
    record: Record,
    hand_over: Callable[[Result, bool], Awaitable[None]],
) -> int:
    """Run the script once and return the exit code: the script's own, or 128 and the number of a signal that came.

    SIGTERM and SIGHUP end the script as a drain does: SIGTERM, ``kill_grace``, SIGKILL. SIGINT and a second signal kill
    it at once.

    Args:
        hand_over: takes the result; the second argument tells whether its outputs are stored.

    Raises:
        WatchdogError: as :meth:`Invocations.invoke`.
    """
    supervisor = Supervisor()
    workspaces = Workspaces(configuration.settings.tmp_dir)
    is_watched = sys.stderr.isatty() and configuration.settings.log_format != "json"
    invocations = Invocations(
        configuration,
        environ,
        sink=sink,
        workspaces=workspaces,
        supervisor=supervisor,
        admission=Admission(max_inflight=1, max_queue=0, queue_timeout_s=0.0),
        metrics=Metrics(lambda: (0, 0, 1)),
        watcher=ProgressBar(sink) if is_watched else None,
    )
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    loop.set_default_executor(threads.Threads("files"))
    caught: list[int] = []

    def stop(number: int) -> None:
        caught.append(number)
        record.stopped_by = signal.Signals(caught[0]).name
        # A platform gives the script kill_grace to end by itself. A user at a terminal does not want to wait.
        supervisor.end_all(at_once=number == signal.SIGINT or len(caught) > 1)
        invocations.end_transfers(of_all=True)
        # If a script runs, its end is the end of the job, and the log event has its exit code or signal.
        if not supervisor.running:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number)
    try:
        async with invocations.invoke(call, record) as result:
            await hand_over(result, invocations.stores)
            record.output_bytes = sum(each.size_bytes for each in result.outputs)
            if result.failure is not None:
                raise result.failure
        return record.exit_code or 0
    except (asyncio.CancelledError, Draining):
        return 128 + (caught[0] if caught else signal.SIGINT)
    finally:
        await invocations.close()
        supervisor.close()
        try:
            await asyncio.to_thread(workspaces.close)
        except OSError as error:
            log.error("workspaces not removed", reason=str(error))


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


async def read_some(fd: int) -> bytes:
    """The next bytes, as soon as there are any; b"" at the end.

    Read in a thread of its own: for the loop's threads the process would wait at its end, and stdin may never say
    anything more.

    Raises:
        OSError: it cannot be read.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()

    def tell(piece: bytes, error: OSError | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(piece)
        else:
            done.set_exception(error)

    def read() -> None:
        piece, failed = b"", None
        try:
            piece = os.read(fd, _READ_BYTES)
        except OSError as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, piece, failed)

    threading.Thread(target=read, name="read-input", daemon=True).start()
    return await done
