"""`watchdog invoke`: send files to a service, and keep the answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from types import FrameType

from ..client.descriptors import calls_that_fit
from ..client.exchange import Exchange
from ..client.live import LiveCall
from ..client.names import distinct
from ..client.plain import receive
from ..client.progress import Display, PlainFormat
from ..client.service import Service, service
from ..client.source import open_source
from ..client.target import Target, targets
from ..client.verdict import Verdict
from ..errors import CallTookTooLong, WatchdogError
from ..logs.readable import seconds, size
from ..logs.sink import LogWriter
from ..logs.text import printable
from .invoke_arguments import InvokeArguments

_MOST_NAMED = 3
_PROBLEM_TYPE = "application/problem+json"
# A classic function ignores ?output=FORM. With this header, its errors are problem documents, too.
_ACCEPT = f"{_PROBLEM_TYPE}, */*;q=0.5"
_ACCEPT_LIVE = f"text/event-stream, {_PROBLEM_TYPE};q=0.5"


def invoke(arguments: InvokeArguments, environ: Mapping[str, str]) -> int:
    """Send all files, and return the exit code. Ctrl-C, SIGTERM and SIGHUP cancel the calls.

    Raises:
        ConfigError: the arguments cannot be used.
        OutOfResources: the limit of open files is too low.
        WatchdogError: the only call failed.
    """
    called = service(arguments.url, token_file=arguments.token_file, ca_file=arguments.ca_file, environ=environ)
    labels = distinct("stdin" if file == "-" else os.path.basename(file) for file in arguments.files)
    places = targets(arguments.output, labels, replaces=arguments.replaces)
    places[0].prepare()  # all targets have the same directory
    jobs = calls_that_fit(min(arguments.jobs, len(labels)))
    has_colors = sys.stderr.isatty() and not environ.get("NO_COLOR")
    sink = LogWriter(2, PlainFormat())
    session = _Session(arguments, environ, called, sink, jobs=jobs, has_colors=has_colors)
    try:
        return asyncio.run(_until_signal(session, labels, places))
    finally:
        sink.close(2.0)


async def _until_signal(session: _Session, labels: list[str], places: list[Target]) -> int:
    """Make all calls. The first signal cancels them, and a second one ends the process at once."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    stopped_by: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        # These handlers also run while this thread waits for a slow reader of stdout. Those of asyncio would not.
        if stopped_by:
            os._exit(128 + number)
        stopped_by.append(number)
        with contextlib.suppress(RuntimeError):  # the calls have ended, and the loop is closed
            loop.call_soon_threadsafe(task.cancel)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup(1)
            signal.signal(number, stop)
    try:
        with _woken_by_signals(loop):
            return await session.run(labels, places)
    except asyncio.CancelledError:
        if not stopped_by:
            raise
        stopped = signal.Signals(stopped_by[0])
        session.report_cancelled("Ctrl-C" if stopped == signal.SIGINT else stopped.name)
        return 128 + stopped


@contextlib.contextmanager
def _woken_by_signals(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Let each signal wake the loop.

    Python runs a handler between two steps of the main thread. If the signal comes just before this thread waits for
    events, or if the kernel gives the signal to another thread, the handler would run only after the wait.
    """
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    loop.add_reader(read_end, os.read, read_end, 64)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        loop.remove_reader(read_end)
        os.close(read_end)
        os.close(write_end)


class _Session:
    """All calls of one command."""

    def __init__(
        self,
        arguments: InvokeArguments,
        environ: Mapping[str, str],
        called: Service,
        sink: LogWriter,
        *,
        jobs: int,
        has_colors: bool,
    ) -> None:
        self._jobs = jobs
        self._arguments = arguments
        self._environ = environ
        self._service = called
        self._sink = sink
        self._has_colors = has_colors

    def report_cancelled(self, by: str) -> None:
        """Write that a signal has cancelled all calls that were running."""
        self._write(f"{by} cancelled the call, so the service ends the script")

    async def run(self, labels: list[str], targets: list[Target]) -> int:
        arguments = self._arguments
        is_base64 = arguments.input_form == "base64"
        async with Exchange(self._service, is_base64=is_base64, retry_for_s=arguments.retry_for_s) as exchange:
            if len(labels) == 1:
                verdict = await self._call(exchange, arguments.files[0], labels[0], targets[0], is_only=True)
                return verdict.exit_code
            began_s = time.monotonic()
            if self._jobs < min(arguments.jobs, len(labels)):
                at_a_time = "1 call" if self._jobs == 1 else f"{self._jobs} calls"
                self._write(f"{at_a_time} at a time, because of the limit of open files (ulimit -n)")
            # One task for each call at a time, and not for each file: there may be 100,000 files.
            waiting = iter(list(zip(arguments.files, labels, targets, strict=True)))
            results: list[bool] = []

            async def work() -> None:
                for file, label, target in waiting:
                    results.append(await self._is_done(exchange, file, label, target))

            async with asyncio.TaskGroup() as group:
                for _ in range(self._jobs):
                    group.create_task(work())
            failed = results.count(False)
            took = seconds(time.monotonic() - began_s)
            self._write(f"{len(results) - failed} ok, {failed} failed, in {took}")
            return 1 if failed else 0

    async def _is_done(self, exchange: Exchange, file: str, label: str, target: Target) -> bool:
        """Make one of several calls, write its verdict, and return whether it succeeded."""
        began_s = time.monotonic()
        try:
            verdict = await self._call(exchange, file, label, target, is_only=False)
        except WatchdogError as error:
            took = seconds(time.monotonic() - began_s)
            self._write(f"failed  {took}  {printable(label)}: {_in_one_line(error)}")
            return False
        return verdict.exit_code == 0

    async def _call(self, exchange: Exchange, file: str, label: str, target: Target, *, is_only: bool) -> Verdict:
        """Make one call, and write the lines about it if it succeeded."""
        began_s = time.monotonic()
        display = Display(
            self._sink,
            has_status=is_only and sys.stderr.isatty(),
            has_colors=self._has_colors,
            label="" if is_only else label,
        )
        arguments = self._arguments
        scratch = self._environ.get("TMPDIR") or "/tmp"
        try:
            async with _bounded(arguments.timeout_s):
                with await open_source(file, self._environ) as source:
                    size_bytes = source.size_bytes
                    if arguments.is_live:
                        verdict = await exchange.call(
                            source,
                            "events",
                            _ACCEPT_LIVE,
                            display,
                            lambda response: LiveCall(label, target, display, scratch).receive(response),
                        )
                    else:
                        verdict = await exchange.call(
                            source,
                            arguments.form,
                            _ACCEPT,
                            display,
                            lambda response: receive(response, arguments.form, label, target, display),
                        )
        finally:
            display.end()
        self._report(verdict, label, size_bytes, time.monotonic() - began_s, is_only=is_only)
        return verdict

    def _report(self, verdict: Verdict, label: str, size_bytes: int, took_s: float, *, is_only: bool) -> None:
        for warning in verdict.warnings:
            self._write(f"warning  {printable(label)}: {printable(warning)}")
        word = "ok" if not verdict.exit_code else f"exit code {verdict.exit_code}"
        if is_only and not verdict.kept and not verdict.exit_code:
            return
        named = ", ".join(f"{printable(each.path)} {size(each.size_bytes)}" for each in verdict.kept[:_MOST_NAMED])
        if (more := len(verdict.kept) - _MOST_NAMED) > 0:
            total = size(sum(each.size_bytes for each in verdict.kept))
            named += f" and {more} more files, {total} in all"
        arrow = f" -> {named}" if named else " -> no output" if not is_only else ""
        self._write(f"{word}  {seconds(took_s)}  {printable(label)} {size(size_bytes)}{arrow}")

    def _write(self, line: str) -> None:
        self._sink.put_own(f"{line}\n".encode("utf-8", "backslashreplace"))


@contextlib.asynccontextmanager
async def _bounded(timeout_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s or None) as bound:
            yield
    except TimeoutError:
        if not bound.expired():
            raise
        raise CallTookTooLong(f"the call took longer than {timeout_s:g} s (--timeout), and was cancelled") from None


def _in_one_line(error: WatchdogError) -> str:
    """Return the first line of an error, and the last line of the script's stderr if there is one."""
    first, *rest = str(error).strip().split("\n")
    return f"{first}: {rest[-1].strip()}" if rest else first
