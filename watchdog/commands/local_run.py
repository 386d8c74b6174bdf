"""`watchdog run`: run the script once on a local file, and copy the outputs to the place that the user names."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO

import msgspec

from ..errors import WatchdogError
from ..input.detect import BodyHints
from ..invocation.call import Call, Record
from ..logs import readable
from ..logs.sink import LogWriter
from ..logs.text import printable
from ..output.accept import choose_form
from ..output.answer import Result, prepare
from ..settings.load import Configuration
from ..system import standard_output
from ..system.standard_input import read_some
from ..workspace.outputs import Output, open_output, size_of
from .run_once import has_progress_line, run_once
from .shown_progress import ShownProgress

_COPY_BYTES = 256 * 1024
_MOST_NAMED = 10
_SCRIPT_HERE = "script.sh"
_FLUSH_S = 2.0
_STOP_S = 5.0  # the longest wait for a write to a pipe that nobody reads, or to a file system that hangs


def with_script_here(configuration: Configuration) -> Configuration:
    """Return a configuration that uses ``./script.sh`` if no script is configured, and report that to the user."""
    settings = configuration.settings
    is_configured = (
        configuration.is_set("script_path")
        or configuration.script_text is not None
        or settings.fprocess is not None
        or os.path.exists(settings.script_path)
    )
    if is_configured:
        return configuration
    _report(f"no script is configured, so ./{_SCRIPT_HERE} is used")
    settings = msgspec.structs.replace(settings, script_path=os.path.abspath(_SCRIPT_HERE))
    return msgspec.structs.replace(configuration, settings=settings)


async def run_file(
    configuration: Configuration,
    environ: Mapping[str, str],
    sink: LogWriter,
    source: BinaryIO,
    record: Record,
    *,
    name: str | None,
    target: str | None,
    shows_progress: bool,
) -> int:
    """Run the script on the content of ``source``, and return the exit code.

    Args:
        name: the name of the input file, if it has one.
        target: the file for one output, the directory for several outputs, or a name with ``.zip`` for a ZIP of all
            outputs; None means stdout.
        shows_progress: show the progress that the script reports. False if the user has redirected descriptor 4.

    Raises:
        WatchdogError: see :meth:`Invocations.invoke`. It is also raised if an output cannot be written.
    """

    async def body() -> AsyncIterator[bytes]:
        while piece := await read_some(source.fileno()):
            yield piece

    report: str | None = None
    has_ended = False

    call_id = environ.get("CALL_ID", "local")
    progress = ShownProgress(sink, call_id, has_line=has_progress_line(configuration))

    async def hand_over(result: Result, is_stored: bool) -> None:
        nonlocal report, has_ended
        has_ended = True
        if target is None:
            report = await asyncio.to_thread(_print, result, is_stored)
        elif _is_zip_wanted(result, target):
            report = await _write_zip(result, target)
        else:
            report = await _write(result, target)

    hints = BodyHints(encoding="raw", file_name=name)
    call = Call(call_id, body(), hints, observer=progress if shows_progress else None)
    exit_code = await run_once(configuration, environ, sink, call, record, hand_over)
    if record.outcome == "drained":
        signal_name = "Ctrl-C" if record.stopped_by == "SIGINT" else record.stopped_by
        report = f"{signal_name} stopped the run; no process of the script is left"
        if has_ended:
            report = f"the script has ended, but {signal_name} came before all of its output was written"
    if report is not None:
        sink.flush(_FLUSH_S)  # show the whole log before the report
        _report(report)
    return exit_code


def _is_zip_wanted(result: Result, target: str) -> bool:
    """Return whether the outputs are put into a ZIP. If the only output is itself a ZIP, it is copied."""
    if not target.lower().endswith(".zip") or os.path.isdir(target):
        return False
    if not result.outputs:
        return not result.printed_type.startswith("application/zip")
    return len(result.outputs) > 1 or not result.outputs[0].name.lower().endswith(".zip")


async def _write_zip(result: Result, target: str) -> str:
    """Write the outputs into a ZIP, and return a report."""
    if not result.outputs:
        raise WatchdogError(
            f"the script left no file for {target}, only {result.stdout.size_bytes} bytes on stdout; use -o with a "
            "name without .zip to keep these"
        )
    answer = await prepare(result, choose_form(None, "zip"))
    with _created(target) as file:
        async for piece in answer.chunks():
            await asyncio.to_thread(file.write, piece)
    return f"wrote {target} ({_count(result.outputs)}, {readable.size(answer.length)})"


async def _write(result: Result, target: str) -> str:
    """Write the outputs to the target, or what the script printed if there are none. Return a report.

    If this is cancelled, no incomplete file is left.
    """
    is_stopped = threading.Event()
    writing = asyncio.create_task(asyncio.to_thread(_write_until, is_stopped, result, target))
    try:
        return await asyncio.shield(writing)
    except asyncio.CancelledError:
        is_stopped.set()
        done, _ = await asyncio.wait([writing], timeout=_STOP_S)
        for each in done:
            each.exception()  # otherwise asyncio would log the error
        raise


def _write_until(is_stopped: threading.Event, result: Result, target: str) -> str:
    outputs = result.outputs
    if not outputs:
        with _created(target) as file:
            _copy(result.stdout.pieces(_COPY_BYTES), file.write, is_stopped)
        return f"wrote {target} ({readable.size(result.stdout.size_bytes)}, which the script printed)"
    if len(outputs) == 1 and not os.path.isdir(target) and not target.endswith("/"):
        with _created(target) as file:
            _copy(_pieces(outputs[0]), file.write, is_stopped)
        return f"wrote {target} ({readable.size(outputs[0].size_bytes)})"
    for output in outputs:
        with _created(os.path.join(target, output.name)) as file:
            _copy(_pieces(output), file.write, is_stopped)
    names = ", ".join(output.name for output in outputs[:_MOST_NAMED]) + (", …" if len(outputs) > _MOST_NAMED else "")
    return f"wrote {_count(outputs)} ({readable.size(size_of(outputs))}) into {os.path.join(target, '')}: {names}"


def _print(result: Result, is_stored: bool) -> str | None:
    """Write the only output, or what the script printed, to stdout. Otherwise print a list of the outputs.

    Return a report if the outputs are lost.
    """
    if not result.outputs:
        _copy(result.stdout.pieces(_COPY_BYTES), standard_output.write)
    elif len(result.outputs) == 1 and not sys.stdout.isatty():
        _copy(_pieces(result.outputs[0]), standard_output.write)
    else:
        for output in result.outputs:
            standard_output.write_line(f"{output.size_bytes:>12}  {printable(output.name)}")
        if not is_stored:
            return "these outputs are removed now; use -o PATH to keep them"
    return None


def _count(outputs: Sequence[Output]) -> str:
    return "1 file" if len(outputs) == 1 else f"{len(outputs)} files"


def _report(text: str) -> None:
    print(printable(text), file=sys.stderr)


@contextlib.contextmanager
def _created(path: str) -> Iterator[BinaryIO]:
    """Open a file for writing. If it cannot be written to its end, remove it, so that no incomplete file is left.

    Raises:
        WatchdogError: the file cannot be made or written.
    """
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        file = open(path, "wb")  # noqa: SIM115
    except OSError as error:
        raise WatchdogError(f"the output {path} cannot be written: {error.strerror}") from error
    try:
        with file:
            yield file
    except BaseException as error:
        if os.path.isfile(path):  # not a device or a pipe
            with contextlib.suppress(OSError):
                os.unlink(path)
        if isinstance(error, OSError):
            raise WatchdogError(f"the output {path} cannot be written to its end: {error.strerror}") from error
        raise


def _pieces(output: Output) -> Iterator[bytes]:
    with open(open_output(output), "rb") as source:
        while piece := source.read(_COPY_BYTES):
            yield piece


def _copy(pieces: Iterable[bytes], write: Callable[[bytes], int], is_stopped: threading.Event | None = None) -> None:
    for piece in pieces:
        if is_stopped is not None and is_stopped.is_set():
            raise WatchdogError("the copy was stopped")
        write(piece)
