"""Run one invocation without HTTP, for `watchdog run` and `watchdog job`."""

from __future__ import annotations

import asyncio
import math
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping

from ..errors import Draining
from ..invocation.admission import Admission
from ..invocation.call import Call, Record
from ..invocation.invocation import Invocations
from ..logs.progress import ProgressBar
from ..logs.setup import get_logger
from ..logs.sink import LogWriter
from ..output.answer import Result
from ..process.supervisor import Supervisor
from ..settings.load import Configuration
from ..system import threads
from ..telemetry.metrics import Metrics
from ..workspace.workspaces import Workspaces

log = get_logger("job")


def has_progress_line(configuration: Configuration) -> bool:
    """Return whether a line below the log shows progress: stderr is a terminal, and the log is for people."""
    return sys.stderr.isatty() and configuration.settings.log_format != "json"


async def run_once(
    configuration: Configuration,
    environ: Mapping[str, str],
    sink: LogWriter,
    call: Call,
    record: Record,
    hand_over: Callable[[Result, bool], Awaitable[None]],
) -> int:
    """Run the script once, and return its exit code. If a signal stops this process, return 128 plus the signal number.

    SIGTERM and SIGHUP end the script in the same way as a graceful stop of the server: the script gets SIGTERM and,
    after ``kill_grace``, SIGKILL. SIGINT or a second signal kills the script at once.

    Args:
        hand_over: takes the result; the second argument says whether its outputs are stored.

    Raises:
        WatchdogError: see :meth:`Invocations.invoke`.
    """
    supervisor = Supervisor()
    workspaces = Workspaces(configuration.settings.tmp_dir, keeps=False)
    invocations = Invocations(
        configuration,
        environ,
        sink=sink,
        workspaces=workspaces,
        supervisor=supervisor,
        # There is no queue. The call waits until its worker is loaded, or cannot be loaded.
        admission=Admission(max_inflight=1, max_queue=0, queue_timeout_s=math.inf),
        metrics=Metrics(lambda: (0, 0, 1)),
        watcher=ProgressBar(sink) if has_progress_line(configuration) else None,
    )
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    loop.set_default_executor(threads.Threads("files"))
    caught: list[int] = []
    is_over = False

    def stop(number: int) -> None:
        caught.append(number)
        record.stopped_by = signal.Signals(caught[0]).name
        # If a platform stops the job, the script has kill_grace to end by itself. A user at a terminal does not want to
        # wait.
        supervisor.end_all(at_once=number == signal.SIGINT or len(caught) > 1)
        invocations.refuse_waiting(of_all=True)
        # If the script runs, the job ends when the script has ended. The log event then has its exit code or signal.
        # If no script runs, the call is cancelled, unless it is over and only its worker has not ended yet.
        if not invocations.running and not is_over:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number)

    async def hand_over_and_judge(result: Result) -> None:
        await hand_over(result, invocations.stores)
        record.output_bytes = sum(each.size_bytes for each in result.outputs)
        if result.failure is not None:
            raise result.failure

    try:
        await invocations.invoke(call, record, hand_over_and_judge)
        return record.exit_code or 0
    except (asyncio.CancelledError, Draining):
        return 128 + (caught[0] if caught else signal.SIGINT)
    finally:
        is_over = True
        await invocations.close()
        supervisor.close()
        try:
            await asyncio.to_thread(workspaces.close)
        except OSError as error:
            log.error("workspaces not removed", reason=str(error))
