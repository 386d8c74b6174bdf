"""Serve HTTP: routes, start, drain, stop.

A drain is a sequence of steps, each with its own configured time. ``_drain`` has them in this order::

    not ready, lock file removed
    -> still reachable for healthcheck_interval, if a platform may still send calls
    -> nothing new is accepted, calls in the queue are answered 503
    -> running invocations finish, for write_timeout at most
    -> scripts that still run are ended, with kill_grace, and their calls are answered 503
    -> callers take the last answers

A drain as a whole has a bound (``_longest_drain_s``). The log says at the start by when the drain is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import math
import os
import signal
import socket
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.client_exceptions import ClientError
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict

from ..errors import (
    BadInput,
    CallerGone,
    CallerSilent,
    Draining,
    InputTooLarge,
    ListenError,
    NotAdmitted,
    OutOfResources,
    Overloaded,
    ScriptError,
    ScriptFailed,
    ScriptKilled,
    ScriptOutOfMemory,
    StoreFailed,
    TooManyWrongTokens,
    Unauthorized,
    WatchdogError,
    quoted,
)
from ..input.detect import ENCODINGS, BodyHints
from ..invocation.admission import DRAINING_RETRY_AFTER_S, Admission
from ..invocation.call import Call, Record
from ..invocation.cloud_event import event_of, headers_of_answer, is_structured
from ..invocation.invocation import Invocations
from ..invocation.outcome import OUTCOMES, SKIPPED
from ..invocation.pace import Pace, Paces
from ..logs.formats import time_in
from ..logs.setup import get_logger
from ..logs.sink import LogWriter
from ..output.accept import AnswerForm
from ..output.answer import Answer, Result, prepare, prepare_printed, prepare_skipped
from ..process.byte_order_mark import MARK_HINT
from ..process.command import CRLF_HINT
from ..process.own_limits import OwnLimits
from ..process.supervisor import Supervisor
from ..settings.declarations import LOCAL_PROBE
from ..settings.kinds import parse_duration_s
from ..settings.load import Configuration
from ..system import threads
from ..system.allocator import keep_freed_memory
from ..telemetry import otel, tracing
from ..telemetry.metrics import Callers, Metrics
from ..workspace.space import free_bytes
from ..workspace.workspaces import Workspaces
from .connection import (
    HANDSHAKE_S,
    LAST_WORDS_S,
    Connection,
    abort,
    has_half_open,
    refusal_of,
    say_continue,
    untaken_bytes,
)
from .http_server import HttpServer
from .idle_connections import IdleConnections
from .listener import BACKLOG, ignore_new_connections, is_readable, listening_socket
from .lock_file import LockFile
from .problem_document import PROBLEM_TYPE, problem_document
from .problems import STATUS_OF_ERROR
from .request import (
    METHODS,
    MOST_NAMED_FILES,
    READING_METHODS,
    base_path_of,
    below,
    body_hints,
    call_id_of,
    cgi_variables,
    is_probe,
    is_token,
    preference_of,
)
from .wrong_tokens import RETRY_AFTER_S, WrongTokens

log = get_logger("server")
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# What the event loop waits for the interpreter's lock, at most, each time that a thread has it: 5 ms by default.
_SWITCH_INTERVAL_S = 0.001
# Seconds of a drain beside its configured times: to close the listening socket (_LETTING_IN_S at most), and for callers
# to take the last answers, such as the 503 of a script that was ended.
_CLOSING_S = 1.0
_LAST_ANSWERS_S = 2.0
# In seconds: health checks of OpenFaaS and Kubernetes come less often, and give up after some that fail.
_LOCK_FILE_INTERVAL_S = 1.0
_LIMITS_INTERVAL_S = 1.0  # for so long scripts may run with limits that another script has lowered
_REMOVAL_S = 30.0  # for the files of all calls at a stop; a file system that hangs must not keep the process
_UNKILLABLE_S = 10.0  # more than process/supervisor.py waits for a process that SIGKILL does not end
_LETTING_IN_S = 1.0
_HANDSHAKE_LOOK_S = 0.01
_TURNS_TO_CONNECTION = 3  # of the event loop, from accept(2) on
_REST_OF_BODY_S = 30.0
# Of a long answer, read and not yet sent: at most two times four pieces of 512 KiB; of many at once fewer each.
_MOST_PIECES_AHEAD = 4
_PIECES_AHEAD_OF_ALL = 32
# A caller may be found slow only after so much waiting: a round trip to the other side of the world takes less. A lost
# answer costs more than a lost body, so readers have more time.
_SENDER_JUDGED_AFTER_S = 0.5
_READER_JUDGED_AFTER_S = 5.0
_STATUS_WITHOUT_BODY = (204, 205, 304)


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
        # What is there now stays: to look through it again and again held the loop up (docs/performance.md).
        gc.freeze()
        return await server.run_until_signal(signals)
    finally:
        await server.stop()


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
        self.settings = configuration.settings
        self._loop = asyncio.get_running_loop()
        self.admission = Admission(
            max_inflight=self.settings.max_inflight,
            max_queue=self.settings.max_queue,
            queue_timeout_s=self.settings.queue_timeout_s,
            free_bytes=lambda: free_bytes(self.settings.tmp_dir),
            do_senders_have_places=self.settings.fprocess is not None,
        )
        self.supervisor = Supervisor()
        self._limits = OwnLimits()
        self._lowered_limits: list[str] = []
        self.metrics = Metrics(
            lambda: (self.admission.running, self.admission.waiting, self.admission.max_inflight),
            OUTCOMES,
            callers=self._callers,
            unattributed=lambda: self.supervisor.unattributed,
        )
        self._tracing = otel.start(environ, configuration.service_name)
        self.workspaces = Workspaces(self.settings.tmp_dir)
        self.invocations = Invocations(
            configuration,
            environ,
            sink=sink,
            workspaces=self.workspaces,
            supervisor=self.supervisor,
            admission=self.admission,
            metrics=self.metrics,
        )
        self._long_answers = 0
        # Callers that take the answers to probes and the texts of errors. These hold nothing but a connection.
        self._other_readers = Paces()
        self._idle = IdleConnections(give_up=self._give_up_other_reader)
        self._http = self._http_server(self._handle)
        self._listener: asyncio.Server | None = None
        self._metrics_http = self._http_server(self._handle_metrics)
        self._metrics_listener: asyncio.Server | None = None
        self._metrics_port: int | None = None
        self._lock = LockFile(environ) if not self.settings.suppress_lock else None
        self._is_classic = self.settings.fprocess is not None
        self._base_path = base_path_of(environ)
        self._wrong_tokens = WrongTokens()
        self._is_draining = False
        self._is_on_kubernetes = "KUBERNETES_SERVICE_HOST" in environ
        self._last_probe_s: float | None = None
        # The waits for the end of a body that a classic function did not read, which a drain makes short.
        self._rests: set[asyncio.Timeout] = set()
        self._rest_of_body_s = _REST_OF_BODY_S

    def _http_server(self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> HttpServer:
        return HttpServer(
            handler,
            read_timeout_s=self.settings.read_timeout_s,
            write_timeout_s=self.settings.write_timeout_s,
            idle=self._idle,
        )

    def _give_up_other_reader(self) -> None:
        if (slowest := self._other_readers.slowest()) is not None:
            slowest.give_up()

    # ---- start, drain, stop

    async def start(self) -> None:
        """Listen, write the lock file, say so.

        Raises:
            ListenError: the address cannot be listened on.
        """
        removed, kept = await threads.alone(self.workspaces.sweep)
        for path in removed:
            log.info("workspaces of a dead server removed", path=path)
        for path in kept:
            log.warning("workspaces of a dead server cannot be removed", path=path)
        self._loop.set_exception_handler(self._notice_error)
        sock = listening_socket(self.settings.bind, self.settings.port, "port")
        self._listener = await self._listen(self._http, sock)
        self._metrics_port = await self._start_metrics()
        self._keep_limits()
        if self._lock is not None:
            self._lock.write()
            self._keep_lock_file(self._lock)
        log.info(
            "listening",
            port=sock.getsockname()[1],
            address=sock.getsockname()[0],
            metrics_port=self._metrics_port,
            **self._function(),
            max_inflight=self.settings.max_inflight,
            max_queue=self.settings.max_queue,
        )
        if problem := self.invocations.script_problem:
            log.warning("not ready", reason=problem)
        elif self.invocations.script_has_crlf:
            log.warning("the script will not work as meant", reason=CRLF_HINT)
        elif self.invocations.script_has_mark:
            log.warning("the script may not work as meant", reason=MARK_HINT)

    def _notice_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an error of the event loop. If no connection could be accepted, close idle ones: asyncio tries again."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE) and "socket" in context:
            self._idle.out_of_descriptors()
        loop.default_exception_handler(context)

    def _keep_lock_file(self, lock: LockFile) -> None:
        """Look for the lock file at once and then again and again, until the server drains.

        A health check that runs ``cat`` on the file does not ask the server for it.
        """
        if not self._is_draining:
            # First, so that an error in this look does not prevent the next one.
            self._loop.call_later(_LOCK_FILE_INTERVAL_S, self._keep_lock_file, lock)
            lock.restore()

    def _keep_limits(self) -> None:
        """Look again and again whether a script has lowered the limits of this process."""
        if changed := self._limits.restored():
            lowered = self._limits.lowered()
            if lowered != self._lowered_limits:
                log.error("limits of the server were lowered", names=changed, not_restored=lowered)
            elif not lowered:
                log.warning("limits of the server were lowered and are restored", names=changed)
            self._lowered_limits = lowered
        self._loop.call_later(_LIMITS_INTERVAL_S, self._keep_limits)

    def _function(self) -> dict[str, str]:
        """What is run for each call, for the log."""
        if self.settings.fprocess is not None:
            return {"fprocess": self.settings.fprocess}
        return {"script": self.settings.script_path if self._configuration.script_text is None else "SCRIPT"}

    async def run_until_signal(self, signals: asyncio.Queue[int]) -> int:
        """Serve until SIGTERM, SIGHUP or SIGINT comes, then drain; return the exit code."""
        first = await signals.get()
        name = signal.Signals(first).name
        drain = asyncio.ensure_future(self._drain(name))
        if first == signal.SIGINT and _is_at_a_terminal():
            log.info("stopping at once", signal=name, running=self.supervisor.running)
            signals.put_nowait(first)
        second = asyncio.ensure_future(signals.get())
        await asyncio.wait({drain, second}, return_when=asyncio.FIRST_COMPLETED)
        second.cancel()
        if not drain.done():
            drain.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await drain
            self._refuse_all(at_once=True)
            self.supervisor.end_all(at_once=True)
            # What was running is dead; a moment for its answers, a bound for callers that do not take them.
            await self._within(1.0, self.admission.empty(), self._answers_sent())
        return 0

    async def _drain(self, why: str) -> None:
        self._is_draining = True
        if self._lock is not None:
            self._lock.remove()
        began_s = self._loop.time()
        stays_s = self.settings.healthcheck_interval_s if self._may_get_calls() else 0.0
        longest_s = self._longest_drain_s(stays_s)
        log.info(
            "draining",
            signal=why,
            running=self.supervisor.running,
            waiting=self.admission.waiting,
            **({"longest_s": longest_s, "over_by": time_in(longest_s)} if longest_s < math.inf else {}),
        )
        await asyncio.sleep(stays_s)
        if self._listener is not None:
            await self._stop_listening(self._listener, self._http)
        self._refuse_all()
        await self._http.close_idle()
        if not await self._within(self.settings.write_timeout_s, self.admission.empty()):
            log.warning("running invocations are ended", count=self.supervisor.running)
            self.supervisor.end_all(at_once=False)
            self.invocations.end_transfers(of_all=True)
            await self._within(self.settings.kill_grace_s + _UNKILLABLE_S, self.admission.empty())
        # Callers have the rest of the drain to take their answers. They have a moment, too, after a script that even
        # SIGKILL did not end in time.
        until_s = max(began_s + longest_s, self._loop.time() + _LAST_ANSWERS_S)
        await self._within(until_s - self._loop.time(), self._answers_sent())
        await self._http.say_goodbye(until_s - self._loop.time())

    def _longest_drain_s(self, stays_s: float) -> float:
        """Return the bound of a drain that stays reachable for ``stays_s``; infinite without ``write_timeout``."""
        if not self.settings.write_timeout_s:
            return math.inf
        waits_s = stays_s + self.settings.write_timeout_s + self.settings.kill_grace_s
        return waits_s + _CLOSING_S + _LAST_ANSWERS_S

    async def _stop_listening(self, listener: asyncio.Server, http: HttpServer) -> None:
        """Let in all who are connected or about to be, and then nobody.

        A listening socket that is closed resets the connections that wait in it, and those whose handshake is not over.
        So it is made deaf to new ones first, which then find it closed, and closed once those before them are let in.
        """
        for sock in listener.sockets:
            ignore_new_connections(sock)
        await asyncio.sleep(HANDSHAKE_S)
        until_s = self._loop.time() + _LETTING_IN_S
        quiet_turns = 0
        # One is accepted in each turn of the loop, and is a connection a turn later: asyncio drops what is not one yet.
        sockets = listener.sockets
        ports = {sock.getsockname()[1] for sock in sockets}
        while quiet_turns < _TURNS_TO_CONNECTION and self._loop.time() < until_s:
            if not any(map(is_readable, sockets)) and any(map(has_half_open, ports)):
                quiet_turns = 0
                await asyncio.sleep(_HANDSHAKE_LOOK_S)
                continue
            # A handshake may have ended meanwhile: look again.
            quiet_turns = 0 if any(map(is_readable, sockets)) else quiet_turns + 1
            await asyncio.sleep(0)
        late = await self._accept_late(listener)
        listener.close()
        for sock in late:
            await self._loop.connect_accepted_socket(http, sock)

    async def _accept_late(self, listener: asyncio.Server) -> list[socket.socket]:
        """Return the connections of the last moment, after which the listening sockets must be closed at once.

        Where it cannot be made deaf, as for an ordinary user on some systems, callers connect until it is closed.
        """
        for listening in listener.sockets:
            self._loop.remove_reader(listening.fileno())
        for _ in range(_TURNS_TO_CONNECTION):
            await asyncio.sleep(0)
        late = []
        for listening in listener.sockets:
            # asyncio shows its sockets without their ``accept``. There is no connection more, or no descriptor for it.
            with contextlib.suppress(OSError), listening.dup() as sock:
                while True:
                    late.append(sock.accept()[0])
        return late

    def _refuse_all(self, *, at_once: bool = False) -> None:
        """Start nothing any more: who waits for a place or still sends a body is answered 503 now.

        Who still sends what a classic function did not read is answered in good time before the drain's bound,
        ``at_once`` without delay.
        """
        self.admission.close()
        self.invocations.end_transfers(of_all=at_once)
        for pace in self.admission.senders if self._refuses_bodies else ():
            pace.end()
        half_s = self.settings.write_timeout_s / 2
        self._rest_of_body_s = 0.0 if at_once else min(LAST_WORDS_S, half_s or LAST_WORDS_S)
        until_s = self._loop.time() + self._rest_of_body_s
        for bound in self._rests:
            if not bound.expired():
                bound.reschedule(min(until_s, bound.when() or until_s))

    @property
    def _refuses_bodies(self) -> bool:
        """Whether who still sends is refused. A classic function that reads its body runs already: it may finish."""
        return self.admission.is_closed and not self._is_classic

    async def _within(self, limit_s: float, *steps: Awaitable[None]) -> bool:
        """Do steps, for a time at most (0 is no limit); tell whether they were done."""
        try:
            async with asyncio.timeout(limit_s or None):
                await asyncio.gather(*steps)
        except TimeoutError:
            return False
        return True

    async def _answers_sent(self) -> None:
        while self.metrics.requests_in_flight:
            await self._http.quiet()

    def _may_get_calls(self) -> bool:
        """Return whether a platform may go on sending calls for a moment after SIGTERM.

        Kubernetes does, also if it probes by a command or by TCP, which the server does not see.
        """
        is_set = self._configuration.is_set("healthcheck_interval")
        return is_set or self._is_on_kubernetes or self._is_probed()

    def _callers(self) -> Callers:
        return Callers(
            bodies_awaited=len(self.admission.senders),
            answers=self.admission.answers,
            answer_bytes=self.admission.answer_bytes,
            given_up=self.admission.given_up,
            idle_connections=len(self._idle),
            closed_connections=self._idle.closed,
        )

    def _is_probed(self) -> bool:
        if self._last_probe_s is None:
            return False
        return self._loop.time() - self._last_probe_s <= 2 * self.settings.healthcheck_interval_s

    async def stop(self) -> None:
        """Close everything; what still runs is killed."""
        self._is_draining = True
        if self._lock is not None:
            self._lock.remove()
        if self._listener is not None:
            self._listener.close()
        self._refuse_all()
        self.supervisor.end_all(at_once=True)
        await self._http.shutdown(1.0)
        if self._metrics_listener is not None:
            await self._stop_listening(self._metrics_listener, self._metrics_http)
        await self._metrics_http.close_idle()
        await self._metrics_http.shutdown(1.0)
        await self._within(_UNKILLABLE_S, self.admission.empty())
        if not await self._within(_REMOVAL_S, self._all_removed()):
            log.error(
                "workspaces not removed",
                reason=f"not done within {_REMOVAL_S:g} s; the next server that has this tmp_dir removes them",
            )
        self.supervisor.close()
        await self._tracing.stop()
        if count := threads.abandon():
            log.error("threads left behind", count=count, reason="their work on files does not end")
        log.info("stopped")

    async def _all_removed(self) -> None:
        await self.invocations.close()
        try:
            await threads.alone(self.workspaces.close)
        except OSError as error:
            log.error("workspaces not removed", reason=str(error))

    async def _start_metrics(self) -> int | None:
        port = self.settings.metrics_port
        if not port:
            return None
        is_default = not self._configuration.is_set("metrics_port")
        try:
            sock = listening_socket(self.settings.bind, port, "metrics_port")
        except ListenError as error:
            if not is_default:
                raise
            log.warning("metrics are off", reason=str(error))
            return None
        self._metrics_listener = await self._listen(self._metrics_http, sock)
        return int(sock.getsockname()[1])

    async def _listen(self, http: HttpServer, sock: socket.socket) -> asyncio.Server:
        # asyncio tries to accept as many at once as its backlog is, and logs as many errors without descriptors.
        listener = await self._loop.create_server(http, sock=sock, backlog=1)
        sock.listen(BACKLOG)
        return listener

    # ---- routes

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if (refusal := refusal_of(request)) is not None:
            return await self._sent(request, refusal)
        path = below(self._base_path, request.path)
        if path == "/_/ready":
            return await self._sent(request, self._probe(request, is_ready=True))
        if path == "/_/openapi.json":
            return await self._sent(request, await self._openapi(request))
        if path == "/_/health" or is_probe(request):
            return await self._sent(request, self._probe(request, is_ready=False))
        if request.method not in METHODS:
            return await self._sent(request, _not_allowed(request, METHODS))
        started_s = self._loop.time()
        self.metrics.requests_in_flight += 1
        trace = self._tracing.call(request.method, request.path, request.headers)
        record = Record()
        code = 499  # nginx's number for a caller that went away; no answer has it
        try:
            response = await self._answer_call(request, record, trace)
            code = response.status
            return await self._sent(request, response)
        except asyncio.CancelledError:
            if record.is_handed_over:
                code = record.status or code
            raise
        except ConnectionError:
            raise
        except Exception:
            code = 500
            raise
        finally:
            self.metrics.requests_in_flight -= 1
            self._http.tell_quiet()
            self.metrics.request_answered(code=code, method=request.method, duration_s=self._loop.time() - started_s)
            trace.end(code)

    def _probe(self, request: web.BaseRequest, *, is_ready: bool) -> web.Response:
        if request.method not in READING_METHODS:
            return _not_allowed(request, READING_METHODS)
        if request.headers.get("User-Agent") != LOCAL_PROBE:
            self._last_probe_s = self._loop.time()
        status, text = self._health()
        if is_ready and status == 200:
            if problem := self.invocations.script_problem:
                status, text = 503, problem
            elif not self.admission.has_free_place:
                status, text = 429, "no place is free"
            elif self.admission.is_full:
                status, text = 429, "no room for another call"
        headers = {}
        if status == 503:
            headers["Retry-After"] = str(DRAINING_RETRY_AFTER_S)
        return web.Response(status=status, text=text, headers=headers)

    async def _openapi(self, request: web.BaseRequest) -> web.Response:
        if request.method not in READING_METHODS:
            return _not_allowed(request, READING_METHODS)
        if (refusal := await self._refusal_of_reader(request)) is not None:
            return refusal
        from . import openapi

        has_token = self.settings.auth_token is not None
        document = openapi.document(
            openapi.Interface(
                service_name=self._configuration.service_name,
                is_classic=self._is_classic,
                has_token=has_token,
                is_token_for_all=self.settings.auth_all,
                has_storage=self.invocations.stores or self.invocations.takes_events,
                methods=METHODS,
                errors=[
                    (status, title)
                    for kind, status, title in STATUS_OF_ERROR
                    if has_token or not issubclass(kind, Unauthorized)
                ],
                encodings=ENCODINGS,
                forms=[form.value for form in AnswerForm],
                content_type=self.settings.content_type,
                metrics_port=self._metrics_port,
                limits={name: getattr(self.settings, name) for name in openapi.LIMITS},
            )
        )
        return web.Response(body=msgspec.json.encode(document), content_type="application/json")

    async def _refusal_of_reader(self, request: web.BaseRequest) -> web.Response | None:
        """Return the answer to a reader of the description or the metrics without the token; None if it may read."""
        try:
            if self.settings.auth_all:
                await self._check_token(request)
        except Unauthorized as error:
            return self._problem(request, os.urandom(16).hex(), Record(), error)
        return None

    def _health(self) -> tuple[int, str]:
        if self._is_draining:
            return 503, "draining"
        if self._lowered_limits:
            return 503, self._about_limits
        if self._lock is not None and not self._lock.restore():
            return 503, f"the lock file {self._lock.path} is gone and cannot be written again"
        return 200, "OK"

    @property
    def _about_limits(self) -> str:
        names = ", ".join(self._lowered_limits)
        return f"a script has lowered limits of the server ({names}), which later scripts would have; restart it"

    async def _handle_metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/metrics":
            return web.Response(status=404, text="metrics are at /metrics\n")
        if request.method not in READING_METHODS:
            return _not_allowed(request, READING_METHODS)
        if (refusal := await self._refusal_of_reader(request)) is not None:
            return refusal
        body, content_type = await self._loop.run_in_executor(threads.METRICS, self.metrics.exposition)
        return web.Response(body=body, headers={"Content-Type": content_type})

    # ---- a call

    async def _answer_call(self, request: web.BaseRequest, record: Record, trace: tracing.Trace) -> web.StreamResponse:
        call_id = os.urandom(16).hex()
        try:
            call_id = call_id_of(request, call_id)
            trace.note({"call_id": call_id})
            await self._check_token(request)
            self._refuse_early(request)
            preference = None if self._is_classic else preference_of(request)
            call = self._call(request, call_id, trace)
            async with self.invocations.invoke(call, record) as result:
                with trace.phase("hand over answer"):
                    if preference is None:
                        await self._discard_rest(request)
                        answer = self._printed(request, result)
                    elif record.outcome == SKIPPED:
                        is_cloud_event = call.event or is_structured(call.said.content_type)
                        answer = prepare_skipped(record.reason or "", None if is_cloud_event else preference)
                    else:
                        answer = await prepare(result, preference)
                    return await self._send(request, call, record, answer, 200 if result.failure is None else 500)
        except Exception as error:
            trace.failed(error)
            if record.is_begun:
                # The status is gone already: only a cut connection still tells the caller that bytes are missing.
                if not isinstance(error, (WatchdogError, ConnectionError)):
                    log.error("internal error", reason=repr(error), exc_info=error)
                abort(request)
                raise ConnectionResetError(str(error)) from error
            if not isinstance(error, WatchdogError):
                raise
            return self._problem(request, call_id, record, error)

    async def _check_token(self, request: web.BaseRequest) -> None:
        """Check the token, if calls must carry one.

        Raises:
            Unauthorized: it is missing or wrong. Callers learn that a token is wrong at a limited rate.
        """
        token = self.settings.auth_token
        if token is None:
            return
        given = request.headers.get("Authorization")
        if given is not None:
            if is_token(given, token):
                return
            wait_s = 0.0 if self._is_draining else self._wrong_tokens.wait_s(self._loop.time())
            if wait_s is None:
                raise TooManyWrongTokens("the token is wrong, as those of many other calls; send the right token")
            if wait_s:
                await asyncio.sleep(wait_s)
        raise Unauthorized("this server wants its token: Authorization: Bearer TOKEN")

    def _refuse_early(self, request: web.BaseRequest) -> None:
        """What can be told from the headers alone, before anything is spent on the call."""
        if self.admission.is_closed:
            raise self.admission.refusal()
        if self._lowered_limits:
            raise OutOfResources(self._about_limits)
        limit_bytes = self.settings.max_input_size_bytes
        if self._is_classic and limit_bytes and (request.content_length or 0) > limit_bytes:
            raise InputTooLarge(f"the input has {request.content_length} bytes, over {limit_bytes} (max_input_size)")
        for expect in request.headers.getall("Expect", []):
            if expect.lower() != "100-continue":
                raise BadInput(f"Expect: {quoted(expect)} is not known; known is 100-continue")

    def _call(self, request: web.BaseRequest, call_id: str, trace: tracing.Trace) -> Call:
        headers = request.headers
        timeout = headers.get("X-Timeout")
        try:
            timeout_s = 0.0 if timeout is None else parse_duration_s(timeout)
        except ValueError as error:
            raise BadInput(f"X-Timeout: {error}") from None
        if timeout is not None and not timeout_s:
            raise BadInput("X-Timeout: 0 leaves the script no time; leave the header out for no limit of your own")
        return Call(
            call_id=call_id,
            body=self._body(request),
            # A classic function is told of its input by the Http_* variables alone.
            said=BodyHints() if self._is_classic else body_hints(request),
            variables=cgi_variables(request, self._base_path) if self.settings.cgi_headers else {},
            timeout_s=timeout_s,
            trace=trace,
            event=event_of(headers),
        )

    def _printed(self, request: web.BaseRequest, result: Result) -> Answer:
        """A classic function's answer.

        Raises:
            ScriptFailed, ScriptKilled: it failed, and the caller wants to be told so in JSON.
        """
        if result.failure is None:
            type_of_caller = request.headers.get("Content-Type") or "application/octet-stream"
            return prepare_printed(result, self.settings.content_type or type_of_caller)
        accept = ",".join(request.headers.getall("Accept", [])).lower()
        if PROBLEM_TYPE in accept or "application/json" in accept:
            raise result.failure
        return prepare_printed(result, "text/plain; charset=utf-8")

    async def _body(self, request: web.BaseRequest) -> AsyncIterator[bytes]:
        pace: Pace | None = None
        # Only now, when the call is in: who waits for the word need not send what would be refused.
        await say_continue(request)
        try:
            while True:
                if self._refuses_bodies:
                    raise self.admission.refusal()
                # A small body is there already: no need of a timer for each of its pieces and its end.
                piece = request.content.read_nowait()
                if not piece and not request.content.at_eof():
                    pace = pace or self._pace_of_body(request)
                    async with pace.waiting(self.admission.senders):
                        piece = await request.content.readany()
                if not piece:
                    # Race: a reader whom the end of a chunk woke sees the body's end, not what was malformed after it.
                    if (malformed := request.content.exception()) is not None:
                        raise malformed
                    return
                yield piece
        except TimeoutError:
            if self._refuses_bodies:
                raise self.admission.refusal() from None
            assert pace is not None
            raise self._too_slow(pace) from None
        except (ClientError, HttpProcessingError) as error:
            # The text of aiohttp's own error begins with "400, message:" and a line end.
            reason = error.message if isinstance(error, HttpProcessingError) else str(error)
            raise BadInput(f"the body is malformed: {' '.join(reason.split())}") from None
        except ConnectionError as error:
            raise CallerGone("the connection ended before the body did") from error

    def _pace_of_body(self, request: web.BaseRequest) -> Pace:
        content = request.content
        return Pace(
            lambda: content.total_bytes,
            silence_s=self.settings.read_timeout_s,
            least_rate=self.settings.min_data_rate_bytes,
            judged_after_s=_SENDER_JUDGED_AFTER_S,
        )

    def _too_slow(self, pace: Pace) -> WatchdogError:
        """Return why the server does not wait any more for the rest of a body."""
        if pace.is_given_up:
            return Overloaded(
                f"the body came at {pace.rate:.0f} bytes a second while another call needed the room; "
                "try again later, or send it faster",
                self.admission.retry_after_s(),
            )
        if pace.is_too_slow:
            return CallerSilent(
                f"only {pace.moved_bytes} bytes of the body came in {pace.waited_s:.0f} s, less than "
                f"{self.settings.min_data_rate_bytes} a second (min_data_rate); send it faster"
            )
        return CallerSilent(f"nothing of the body came for {self.settings.read_timeout_s:g} s (read_timeout)")

    async def _discard_rest(self, request: web.BaseRequest) -> None:
        """Take what a classic function did not read: proxies written in Go break a call that is answered before."""
        with contextlib.suppress(TimeoutError, ClientError, HttpProcessingError, ConnectionError):
            async with asyncio.timeout(self._rest_of_body_s) as bound:
                self._rests.add(bound)
                try:
                    while await request.content.readany():
                        pass
                finally:
                    self._rests.discard(bound)

    async def _send(
        self, request: web.BaseRequest, call: Call, record: Record, answer: Answer, usual_status: int
    ) -> web.StreamResponse:
        status = record.status = record.chosen.status or usual_status
        headers = self._headers(call.call_id, record)
        headers.update(answer.headers)
        if call.event and status < 400 and record.outcome != SKIPPED:
            headers.update(headers_of_answer(call.event, self._configuration.service_name))
        headers["Content-Type"] = answer.content_type
        # A header that the script chose takes the place of ours; its own may come more than once (Link, Set-Cookie).
        for name in {name.lower() for name, _ in record.chosen.headers}:
            headers.popall(name, None)
        headers.extend(record.chosen.headers)
        if self._is_draining:
            headers["Connection"] = "close"
        readers = self.admission.readers_with_place if record.keeps_place else self.admission.readers
        if answer.body is not None or status in _STATUS_WITHOUT_BODY:
            body = b"" if status in _STATUS_WITHOUT_BODY else answer.body
            small = web.Response(status=status, headers=headers, body=body)
            record.output_bytes = answer.length if body else 0

            async def send() -> None:
                await small.prepare(request)
                record.is_handed_over = True
                await small.write_eof()

            await self._patiently(request, send(), readers)
            return small
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = answer.length
        await self._patiently(request, response.prepare(request), readers)
        record.is_begun = True
        self._long_answers += 1
        try:
            async with contextlib.aclosing(answer.chunks(self._pieces_ahead)) as chunks:
                async for piece in chunks:
                    record.output_bytes += len(piece)
                    record.is_handed_over = record.output_bytes == answer.length
                    await self._patiently(request, response.write(piece), readers)
        finally:
            self._long_answers -= 1
        await self._patiently(request, response.write_eof(), readers)
        return response

    def _pieces_ahead(self) -> int:
        """How much of a long answer is read at once: the fewer there are, the more."""
        return max(1, min(_MOST_PIECES_AHEAD, _PIECES_AHEAD_OF_ALL // max(1, self._long_answers)))

    async def _sent(self, request: web.BaseRequest, response: web.StreamResponse) -> web.StreamResponse:
        """The response, sent if it was not yet: aiohttp itself would wait without end for a caller to take it."""
        if not response.prepared:
            await self._patiently(request, response.prepare(request), self._other_readers)
            await self._patiently(request, response.write_eof(), self._other_readers)
        return response

    async def _patiently(self, request: web.BaseRequest, sending: Awaitable[object], readers: Paces) -> None:
        """Send, unless the caller takes nothing for ``write_timeout``, or too little. It is one of ``readers``.

        One write may be megabytes on their way through a slow line: what counts is whether they get fewer.
        """
        # Most of what is sent is taken at once: no need of a timer for that.
        steps = sending.__await__()
        try:
            waits_for = next(steps)
        except StopIteration:
            return
        pace: Pace = request.get("pace") or self._pace_of_answer(request)
        request["pace"] = pace
        limit_s = self.settings.write_timeout_s
        untaken: int | None = None
        timer: asyncio.TimerHandle | None = None

        def look() -> None:
            nonlocal untaken, timer
            if not pace.left_s:
                pace.is_too_slow = True
                pace.end()
                return
            before, untaken = untaken, untaken_bytes(request)
            if (before is None or untaken < before) and not bound.expired():
                # What is taken is seen at the next look only, so it is waited for one look longer.
                bound.reschedule(self._loop.time() + limit_s * 1.25)
            timer = self._loop.call_later(min(limit_s / 4, pace.left_s), look)

        try:
            async with pace.waiting(readers, is_looked_at=True) as bound:
                if limit_s:
                    timer = self._loop.call_later(min(limit_s / 4, pace.left_s), look)
                try:
                    await _Begun(steps, waits_for)
                finally:
                    if timer is not None:
                        timer.cancel()
        except TimeoutError:
            abort(request)
            raise ConnectionResetError(self._untaken(pace)) from None

    def _pace_of_answer(self, request: web.BaseRequest) -> Pace:
        writer = request.writer
        return Pace(
            lambda: writer.output_size - untaken_bytes(request),
            silence_s=self.settings.write_timeout_s,
            least_rate=self.settings.min_data_rate_bytes,
            judged_after_s=_READER_JUDGED_AFTER_S,
        )

    def _untaken(self, pace: Pace) -> str:
        """Return why the server does not wait any more until the caller takes the rest of its answer."""
        if pace.is_given_up:
            return f"the caller took {pace.rate:.0f} bytes a second while another call needed the room"
        if pace.is_too_slow:
            return (
                f"the caller took only {pace.moved_bytes} bytes in {pace.waited_s:.0f} s, less than "
                f"{self.settings.min_data_rate_bytes} a second (min_data_rate)"
            )
        return f"the caller took nothing for {self.settings.write_timeout_s:g} s (write_timeout)"

    def _problem(self, request: web.BaseRequest, call_id: str, record: Record, error: WatchdogError) -> web.Response:
        """The answer to a call that went wrong (RFC 9457)."""
        status, title = next((code, text) for kind, code, text in STATUS_OF_ERROR if isinstance(error, kind))
        headers = self._headers(call_id, record)
        if isinstance(error, ScriptFailed) and (record.chosen.status or 0) >= 400:
            # The script says itself what its failure means to the caller.
            status = record.chosen.status or status
            headers.extend(record.chosen.headers)
        members: dict[str, object] = {"call_id": call_id}
        if record.exit_code is not None:
            members["exit_code"] = record.exit_code
        if isinstance(error, ScriptKilled):
            members["signal"] = error.signal
            members["out_of_memory"] = isinstance(error, ScriptOutOfMemory)
        if isinstance(error, ScriptError) and error.stderr:
            members["stderr"] = error.stderr
        if isinstance(error, StoreFailed):
            members["stored"] = error.stored[:MOST_NAMED_FILES]
            members["not_stored"] = dict(list(error.not_stored.items())[:MOST_NAMED_FILES])
        if isinstance(error, NotAdmitted):
            headers["Retry-After"] = str(error.retry_after_s)
            # OpenFaaS's queue-worker then sends the call again, whatever its list of statuses is: 503 is not in it.
            headers["X-OpenFaaS-Internal"] = "oscar-watchdog"
        if isinstance(error, TooManyWrongTokens):
            headers["Retry-After"] = str(RETRY_AFTER_S)
        elif isinstance(error, Unauthorized):
            headers["WWW-Authenticate"] = "Bearer"
        # Who waits for the word to send its body, and does not get it, is not to take the connection for a free one.
        may_wait_for_the_word = "Expect" in request.headers and not request.content.is_eof()
        if isinstance(error, (Draining, CallerSilent, CallerGone)) or self._is_draining or may_wait_for_the_word:
            headers["Connection"] = "close"
        if isinstance(request.protocol, Connection):
            if isinstance(error, CallerSilent):
                request.protocol.linger(0.0)
            elif self._is_draining:
                request.protocol.linger(LAST_WORDS_S)
        # A caller that guesses tokens must not fill the log. The metrics count all calls.
        if not record.is_logged and not isinstance(error, TooManyWrongTokens):
            log.warning("call refused", call_id=call_id, status=status, reason=str(error))
        headers["Content-Type"] = PROBLEM_TYPE
        body = problem_document(status, title, str(error), **members)
        response = web.Response(status=status, headers=headers, body=body)
        if isinstance(error, TooManyWrongTokens):
            response.force_close()  # the next guess needs another connection
        return response

    def _headers(self, call_id: str, record: Record) -> CIMultiDict[str]:
        headers = CIMultiDict({"X-Call-Id": call_id})
        if record.exit_code is not None:
            headers["X-Exit-Code"] = str(record.exit_code)
        if record.duration_s is not None:
            headers["X-Duration-Seconds"] = f"{record.duration_s:.6f}"
        if record.input_encoding is not None:
            headers["X-Input-Encoding"] = record.input_encoding
        return headers


def _not_allowed(request: web.BaseRequest, methods: Sequence[str]) -> web.Response:
    allowed = ", ".join(methods)
    detail = f"the method {request.method} is not answered at {request.path}; use one of {allowed}"
    body = problem_document(405, "Method not allowed", detail)
    return web.Response(status=405, body=body, headers={"Allow": allowed, "Content-Type": PROBLEM_TYPE})


class _Begun:
    """An awaitable that has run to where it waits for the first time.

    Args:
        steps: what its ``__await__`` gave.
        waits_for: what the first step yielded.
    """

    def __init__(self, steps: Generator[Any, Any, object], waits_for: object) -> None:
        self._steps = steps
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        waits_for = self._waits_for
        try:
            while True:
                try:
                    value = yield waits_for
                except BaseException as error:  # CancelledError, and GeneratorExit
                    waits_for = self._steps.throw(error)
                else:
                    waits_for = self._steps.send(value)
        except StopIteration:
            return


def _is_at_a_terminal() -> bool:
    return os.isatty(0) or os.isatty(2)
