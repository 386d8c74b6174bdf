"""The HTTP server: its parts, its start and its stop.

========================  ===========================================================
``listener``              opens the listening socket, and closes it without a reset
``connection``            reads the requests of one connection, disconnects slow callers, closes without a reset
``routes``                passes each request to the part that answers it
``calls``                 answers one call: request -> invocation -> answer
``request``, ``body``     read the headers and the body of a request
``response``              sends answers, also to slow callers
``cors``                  lets web pages of other origins read answers
``problems``              maps an error to its status and document
``health``                answers probes
``page``                  makes the try-it page
``drain``                 stops the server gracefully, step by step
========================  ===========================================================
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ListenError
from ..invocation.admission import Admission
from ..invocation.invocation import Invocations
from ..invocation.outcome import OUTCOMES
from ..logs.setup import get_logger
from ..logs.sink import LogWriter
from ..process.byte_order_mark import MARK_HINT
from ..process.command import CRLF_HINT
from ..process.supervisor import Supervisor
from ..settings.declarations import Settings
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
from .connection import Handler
from .drain import UNKILLABLE_S, Drain, within
from .health import Health
from .http_server import HttpServer
from .idle_connections import IdleConnections
from .listener import Listener, is_out_of_descriptors
from .request import METHODS, base_path_of
from .response import Sender
from .routes import Routes

if TYPE_CHECKING:
    from .cors import Cors

log = get_logger("server")
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# The longest wait of the event loop for the interpreter's lock while a thread runs Python code. Python's own default is
# 5 ms.
_SWITCH_INTERVAL_S = 0.001
_LOOK_FOR_SIGNAL_S = 0.1
# A stop waits for at most this time until the files of all calls are removed, because a file system may hang.
_REMOVAL_S = 30.0
# A stop waits for at most this time for the answers that are still being made, for example to /metrics.
_SHUTDOWN_S = 1.0


async def serve(configuration: Configuration, environ: Mapping[str, str], sink: LogWriter) -> int:
    """Serve until a signal stops the server, and return the exit code.

    Raises:
        ListenError: the server cannot listen on an address, or cannot write its lock file.
    """
    keep_freed_memory()
    _ignore_warnings()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    # From now on a signal starts a drain, even if the server is still starting.
    loop = asyncio.get_running_loop()
    loop.set_default_executor(threads.Threads("files"))
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in _SIGNALS:
        loop.add_signal_handler(number, signals.put_nowait, number)
    server = Server(configuration, environ, sink)
    try:
        await server.start(signals)
        # The objects that exist now are never freed. Without this, each garbage collection examines them and stops the
        # event loop for that time (docs/explanation/performance.md).
        gc.freeze()
        await server.drain.run_at_signal(signals)
    finally:
        await server.stop()
    return 0


def _ignore_warnings() -> None:
    """Ignore Python's warnings, which are for programmers.

    Libraries put texts from callers and storages into warnings. The interpreter would keep every distinct text for
    ever, and write it to the log.
    """
    warnings.simplefilter("ignore")


def _cors(settings: Settings) -> Cors | None:
    if not settings.cors_origins:
        return None
    from .cors import Cors

    return Cors(settings.cors_origins, METHODS)


class Server:
    """A server for one function."""

    def __init__(self, configuration: Configuration, environ: Mapping[str, str], sink: LogWriter) -> None:
        self._configuration = configuration
        self._settings = settings = configuration.settings
        self._tracing = otel.start(environ, configuration.service_name)
        # Knative's probe of a container only opens a connection, and the container gets calls when this succeeds.
        self._is_probed_by_connecting = "K_SERVICE" in environ

        # The parts that run the function.
        self._supervisor = Supervisor()
        self._workspaces = Workspaces(settings.tmp_dir, keeps=not settings.warm)
        self._admission = Admission(
            max_inflight=settings.places,
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

        # The parts that answer requests.
        base_path = base_path_of(environ)
        self._health = Health(configuration, environ)
        authorization = Authorization(settings, self._health)
        bodies = Bodies(settings, self._admission)
        sender = Sender(settings)
        cors = _cors(settings)
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
            cors=cors,
        )

        # The parts that accept and close connections.
        self._idle = IdleConnections(give_up=sender.give_up_other_reader)
        self._http = self._http_server(self._routes.answer, cors)
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

    async def start(self, signals: asyncio.Queue[int]) -> None:
        """Listen, write the lock file, and log that the server is listening.

        Args:
            signals: has an item as soon as a signal has asked the server to stop.

        Raises:
            ListenError: the server cannot listen on an address, or cannot write its lock file.
        """
        await self._sweep()
        asyncio.get_running_loop().set_exception_handler(self._notice_error)
        self._invocations.function.start()
        if self._is_probed_by_connecting:
            await self._load(signals)
        await self._listener.start(self._settings.bind, self._settings.port, "port")
        await self._start_metrics()
        self._health.start()
        self._log_start()

    async def _load(self, signals: asyncio.Queue[int]) -> None:
        """Wait until a worker of a warm function is ready or a load has failed, or until a signal stops the server."""
        loaded = asyncio.ensure_future(self._invocations.function.until_started())
        while not loaded.done() and signals.empty():
            await asyncio.wait([loaded], timeout=_LOOK_FOR_SIGNAL_S)
        loaded.cancel()

    async def stop(self) -> None:
        """Close everything, and kill scripts that still run."""
        self._health.drain()
        self._listener.close()
        self.drain.refuse_all()
        self._supervisor.end_all(at_once=True)
        await self._http.shutdown(_SHUTDOWN_S)
        await self._metrics_listener.drain()
        await self._metrics_http.close_idle()
        await self._metrics_http.shutdown(_SHUTDOWN_S)
        await within(UNKILLABLE_S, self._admission.empty())
        if not await within(_REMOVAL_S, self._all_removed()):
            log.error(
                "workspaces not removed",
                reason=f"not done within {_REMOVAL_S:g} s; the next server with the same tmp_dir removes them",
            )
        self._supervisor.close()
        await self._tracing.stop()
        if count := threads.abandon():
            log.error("threads left behind", count=count, reason="their operations on files do not end")
        log.info("stopped")

    def _http_server(self, handler: Handler, cors: Cors | None = None) -> HttpServer:
        return HttpServer(
            handler,
            read_timeout_s=self._settings.read_timeout_s,
            write_timeout_s=self._settings.write_timeout_s,
            idle=self._idle,
            cors=cors,
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
        """Log an error of the event loop. If no descriptor was free for a new connection, close idle connections.

        asyncio then tries again to accept the new connection.
        """
        if is_out_of_descriptors(context):
            self._idle.out_of_descriptors()
        loop.default_exception_handler(context)

    async def _start_metrics(self) -> None:
        """Listen on the port for metrics. If the default port is in use, turn the metrics off and log a warning."""
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
            named = {"fprocess": settings.fprocess}
        else:
            named = {"script": settings.script_path if self._configuration.script_text is None else "SCRIPT"}
        log.info(
            "listening",
            port=port,
            address=address,
            metrics_port=self._routes.metrics_port,
            **named,
            max_inflight=settings.places,
            max_queue=settings.max_queue,
        )
        function = self._invocations.function
        if function.is_loading:
            log.info("workers are loading", count=self._admission.max_inflight)
        elif problem := function.problem:
            log.warning("not ready", reason=problem)
        elif function.has_crlf:
            log.warning("the script will not work as intended", reason=CRLF_HINT)
        elif function.has_mark:
            log.warning("the script may not work as intended", reason=MARK_HINT)

    async def _all_removed(self) -> None:
        await self._invocations.close()
        try:
            await threads.alone(self._workspaces.close)
        except OSError as error:
            log.error("workspaces not removed", reason=str(error))
