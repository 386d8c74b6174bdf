"""The HTTP server: what it is made of, and how it starts and stops.

========================  ===========================================================
``listener``              the socket, and how it is closed without a reset
``connection``            aiohttp made strict: heads, idle connections, slow callers
``routes``                which part of the server answers a request
``calls``                 one call: request -> invocation -> answer
``request``, ``body``     what a request asks for, and its bytes
``response``              answers on their way to callers
``problems``              error -> status and document
``health``                what probes see
``drain``                 the steps of a graceful stop
========================  ===========================================================
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import warnings
from collections.abc import Mapping
from typing import Any

from ..errors import ListenError
from ..invocation.admission import Admission
from ..invocation.invocation import Invocations
from ..invocation.outcome import OUTCOMES
from ..logs.setup import get_logger
from ..logs.sink import LogWriter
from ..process.byte_order_mark import MARK_HINT
from ..process.command import CRLF_HINT
from ..process.supervisor import Supervisor
from ..settings.load import Configuration
from ..system import threads
from ..system.allocator import keep_freed_memory
from ..telemetry import otel
from ..telemetry.metrics import Callers, Metrics
from ..workspace.space import free_bytes
from ..workspace.workspaces import Workspaces
from .authorization import Authorization
from .body import Bodies
from .calls import Calls
from .drain import UNKILLABLE_S, Drain, within
from .health import Health
from .http_server import HttpServer
from .idle_connections import IdleConnections
from .listener import Listener, is_out_of_descriptors
from .request import base_path_of
from .response import Sender
from .routes import Routes

log = get_logger("server")
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# What the event loop waits for the interpreter's lock, at most, each time that a thread has it: 5 ms by default.
_SWITCH_INTERVAL_S = 0.001
_REMOVAL_S = 30.0  # for the files of all calls at a stop; a file system that hangs must not keep the process


async def serve(configuration: Configuration, environ: Mapping[str, str], sink: LogWriter) -> int:
    """Serve until a signal ends it; return the exit code.

    Raises:
        ListenError: an address cannot be listened on.
    """
    keep_freed_memory()
    _ignore_warnings()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    # From here on a signal drains, even one that comes while the server still starts.
    loop = asyncio.get_running_loop()
    loop.set_default_executor(threads.Threads("files"))
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in _SIGNALS:
        loop.add_signal_handler(number, signals.put_nowait, number)
    server = Server(configuration, environ, sink)
    try:
        await server.start()
        # These objects stay, so the garbage collector need not visit them again: docs/explanation/performance.md.
        gc.freeze()
        await server.drain.run_at_signal(signals)
    finally:
        await server.stop()
    return 0


def _ignore_warnings() -> None:
    """Ignore Python's warnings, which are for programmers.

    Libraries put texts of callers and storages into them. The interpreter would keep each distinct text for ever and
    print it into the log.
    """
    warnings.simplefilter("ignore")


class Server:
    """One server of one script."""

    def __init__(self, configuration: Configuration, environ: Mapping[str, str], sink: LogWriter) -> None:
        self._configuration = configuration
        self._settings = settings = configuration.settings
        self._tracing = otel.start(environ, configuration.service_name)

        # What runs the function.
        self._supervisor = Supervisor()
        self._workspaces = Workspaces(settings.tmp_dir)
        self._admission = Admission(
            max_inflight=settings.max_inflight,
            max_queue=settings.max_queue,
            queue_timeout_s=settings.queue_timeout_s,
            free_bytes=lambda: free_bytes(settings.tmp_dir),
            do_senders_have_places=settings.fprocess is not None,
        )
        metrics = Metrics(
            lambda: (self._admission.running, self._admission.waiting, self._admission.max_inflight),
            OUTCOMES,
            callers=self._callers,
            unattributed=lambda: self._supervisor.unattributed,
        )
        self._invocations = Invocations(
            configuration,
            environ,
            sink=sink,
            workspaces=self._workspaces,
            supervisor=self._supervisor,
            admission=self._admission,
            metrics=metrics,
        )

        # What answers requests.
        base_path = base_path_of(environ)
        self._health = Health(configuration, environ)
        authorization = Authorization(settings, self._health)
        bodies = Bodies(settings, self._admission)
        sender = Sender(settings)
        calls = Calls(
            configuration,
            base_path=base_path,
            invocations=self._invocations,
            admission=self._admission,
            metrics=metrics,
            tracing=self._tracing,
            health=self._health,
            authorization=authorization,
            bodies=bodies,
            sender=sender,
        )
        self._routes = Routes(
            configuration,
            base_path=base_path,
            calls=calls,
            invocations=self._invocations,
            admission=self._admission,
            metrics=metrics,
            health=self._health,
            authorization=authorization,
            sender=sender,
        )

        # What accepts connections, and what ends them.
        self._idle = IdleConnections(give_up=sender.give_up_other_reader)
        self._http = self._http_server(self._routes.answer)
        self._listener = Listener(self._http)
        self._metrics_http = self._http_server(self._routes.answer_metrics)
        self._metrics_listener = Listener(self._metrics_http)
        self.drain = Drain(
            settings,
            health=self._health,
            listener=self._listener,
            http=self._http,
            calls=calls,
            bodies=bodies,
            invocations=self._invocations,
            admission=self._admission,
            supervisor=self._supervisor,
        )

    async def start(self) -> None:
        """Listen, write the lock file, and log that the server is there.

        Raises:
            ListenError: the address cannot be listened on.
        """
        await self._sweep()
        asyncio.get_running_loop().set_exception_handler(self._notice_error)
        await self._listener.start(self._settings.bind, self._settings.port, "port")
        await self._start_metrics()
        self._health.start()
        self._log_start()

    async def stop(self) -> None:
        """Close everything; what still runs is killed."""
        self._health.drain()
        self._listener.close()
        self.drain.refuse_all()
        self._supervisor.end_all(at_once=True)
        await self._http.shutdown(1.0)
        await self._metrics_listener.drain()
        await self._metrics_http.close_idle()
        await self._metrics_http.shutdown(1.0)
        await within(UNKILLABLE_S, self._admission.empty())
        if not await within(_REMOVAL_S, self._all_removed()):
            log.error(
                "workspaces not removed",
                reason=f"not done within {_REMOVAL_S:g} s; the next server that has this tmp_dir removes them",
            )
        self._supervisor.close()
        await self._tracing.stop()
        if count := threads.abandon():
            log.error("threads left behind", count=count, reason="their work on files does not end")
        log.info("stopped")

    def _http_server(self, handler: Any) -> HttpServer:
        return HttpServer(
            handler,
            read_timeout_s=self._settings.read_timeout_s,
            write_timeout_s=self._settings.write_timeout_s,
            idle=self._idle,
        )

    def _callers(self) -> Callers:
        return Callers(
            bodies_awaited=len(self._admission.senders),
            answers=self._admission.answers,
            answer_bytes=self._admission.answer_bytes,
            given_up=self._admission.given_up,
            idle_connections=len(self._idle),
            closed_connections=self._idle.closed,
        )

    async def _sweep(self) -> None:
        removed, kept = await threads.alone(self._workspaces.sweep)
        for path in removed:
            log.info("workspaces of a dead server removed", path=path)
        for path in kept:
            log.warning("workspaces of a dead server cannot be removed", path=path)

    def _notice_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an error of the event loop. If no connection could be accepted, close idle ones: asyncio tries again."""
        if is_out_of_descriptors(context):
            self._idle.out_of_descriptors()
        loop.default_exception_handler(context)

    async def _start_metrics(self) -> None:
        """Listen on the port for metrics. If that port is only the default and is taken, there are none."""
        port = self._settings.metrics_port
        if not port:
            return
        try:
            await self._metrics_listener.start(self._settings.bind, port, "metrics_port")
        except ListenError as error:
            if self._configuration.is_set("metrics_port"):
                raise
            log.warning("metrics are off", reason=str(error))
            return
        _, self._routes.metrics_port = self._metrics_listener.address

    def _log_start(self) -> None:
        settings = self._settings
        address, port = self._listener.address
        if settings.fprocess is not None:
            function = {"fprocess": settings.fprocess}
        else:
            function = {"script": settings.script_path if self._configuration.script_text is None else "SCRIPT"}
        log.info(
            "listening",
            port=port,
            address=address,
            metrics_port=self._routes.metrics_port,
            **function,
            max_inflight=settings.max_inflight,
            max_queue=settings.max_queue,
        )
        if problem := self._invocations.script_problem:
            log.warning("not ready", reason=problem)
        elif self._invocations.script_has_crlf:
            log.warning("the script will not work as meant", reason=CRLF_HINT)
        elif self._invocations.script_has_mark:
            log.warning("the script may not work as meant", reason=MARK_HINT)

    async def _all_removed(self) -> None:
        await self._invocations.close()
        try:
            await threads.alone(self._workspaces.close)
        except OSError as error:
            log.error("workspaces not removed", reason=str(error))
