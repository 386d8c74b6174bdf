"""The HTTP server: routes, the one table from error to status, start, drain, stop.

A drain is a sequence, each step with its own configured time (``_drain`` reads like this)::

    not ready, lock file removed
    -> still reachable for healthcheck_interval, if somebody probes
    -> nothing new is accepted, calls in the queue are answered 503
    -> running invocations finish, for write_timeout at most
    -> what is left is ended, kill_grace included, and answered 503
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import hmac
import math
import os
import re
import select
import signal
import socket
import struct
import sys
import termios
import uuid
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any
from urllib.parse import unquote

import msgspec
from aiohttp import StreamReader, web
from aiohttp.client_exceptions import ClientError
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.multipart import content_disposition_filename, parse_content_disposition
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDict

from . import logs
from .admission import DRAINING_RETRY_AFTER_S, Admission
from .config import LOCAL_PROBE, Configuration, parse_duration_s
from .delivery import Answer, choose_form, prepare
from .errors import (
    AnswerNotAvailable,
    BadInput,
    CallerGone,
    CallerSilent,
    Draining,
    InputTooLarge,
    ListenError,
    NoSpace,
    NotAdmitted,
    OutOfResources,
    ScriptError,
    ScriptFailed,
    ScriptKilled,
    ScriptOutOfSpace,
    ScriptTimedOut,
    Unauthorized,
    WatchdogError,
)
from .intake import ENCODINGS, Said
from .invocation import Call, Invocations, Record
from .metrics import Metrics
from .process import Supervisor
from .workspace import Workspaces

log = logs.get("server")

# The one table from error to status; the first type that fits.
_STATUS: tuple[tuple[type[WatchdogError], int, str], ...] = (
    (BadInput, 400, "Bad input"),
    (CallerGone, 400, "Request cut off"),
    (CallerSilent, 408, "Request timed out"),
    (InputTooLarge, 413, "Input too large"),
    (Unauthorized, 401, "Unauthorized"),
    (AnswerNotAvailable, 406, "Form of answer not available"),
    (Draining, 503, "Server is stopping"),
    (NotAdmitted, 429, "Too many calls"),
    (ScriptTimedOut, 504, "Script timed out"),
    (ScriptKilled, 500, "Script killed"),
    (ScriptOutOfSpace, 507, "No space left"),
    (ScriptFailed, 500, "Script failed"),
    (ScriptError, 500, "Script cannot be used"),
    (NoSpace, 507, "No space left"),
    (OutOfResources, 500, "Out of resources"),
    (WatchdogError, 500, "Outputs cannot be sent"),
)
_PROBLEM_TYPE = "application/problem+json"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_UNKILLABLE_S = 10.0  # more than process.py gives a process that SIGKILL does not end
# A new connection may have its first request on its way; a handshake may be half done.
_FRESH_S = 0.2
_HANDSHAKE_S = 0.05
# After the last answer, for a caller's own end, or for the rest of a body that is refused.
_GOODBYE_S = 0.15
_LAST_WORDS_S = 1.0
# A caller that is answered early (401, 413, 429) may send the rest for so long: a reset could take the answer from it.
_LINGER_S = 30.0
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_NOT_FOR_SCRIPTS = frozenset({"authorization", "proxy-authorization", "cookie", "proxy"})
_CALL_ID = re.compile(r"[!-~]{1,256}")
_HEADER_NAME = re.compile(r"[A-Za-z0-9_-]+")
_STATUS_WITHOUT_BODY = (204, 205, 304)
_BACKLOG = 1024


async def serve(configuration: Configuration, environ: Mapping[str, str], sink: logs.Sink) -> int:
    """Serve until a signal ends it; return the exit code.

    Raises:
        ListenError: an address cannot be listened on.
    """
    # From here on a signal drains, even one that comes while the server still starts.
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in _SIGNALS:
        loop.add_signal_handler(number, signals.put_nowait, number)
    server = Server(configuration, environ, sink)
    try:
        await server.start()
        return await server.run_until_signal(signals)
    finally:
        await server.stop()


class Server:
    """One server of one script."""

    def __init__(self, configuration: Configuration, environ: Mapping[str, str], sink: logs.Sink) -> None:
        self._configuration = configuration
        self.settings = configuration.settings
        self._loop = asyncio.get_running_loop()
        self.admission = Admission(
            max_inflight=self.settings.max_inflight,
            max_queue=self.settings.max_queue,
            queue_timeout_s=self.settings.queue_timeout_s,
        )
        self.metrics = Metrics(lambda: (self.admission.running, self.admission.waiting, self.admission.max_inflight))
        self.workspaces = Workspaces(self.settings.tmp_dir)
        self.supervisor = Supervisor()
        self.invocations = Invocations(
            configuration,
            environ,
            sink=sink,
            workspaces=self.workspaces,
            supervisor=self.supervisor,
            admission=self.admission,
            metrics=self.metrics,
        )
        self._http = _HttpServer(
            self._handle,
            handler_cancellation=True,
            read_timeout_s=self.settings.read_timeout_s,
            write_timeout_s=self.settings.write_timeout_s,
            access_log=None,
            lingering_time=_LINGER_S,
            # intake.py decodes: it bounds a bomb and notices a gzip stream that is cut off.
            auto_decompress=False,
        )
        self._listener: asyncio.Server | None = None
        self._metrics_runner: web.ServerRunner | None = None
        self._lock = _LockFile(environ) if not self.settings.suppress_lock else None
        self._is_draining = False
        self._last_probe_s: float | None = None
        self._bodies: set[StreamReader] = set()

    # ---- start, drain, stop

    async def start(self) -> None:
        """Listen, write the lock file, say so.

        Raises:
            ListenError: the address cannot be listened on.
        """
        removed, kept = await asyncio.to_thread(self.workspaces.sweep)
        for path in removed:
            log.info("workspaces of a dead server removed", path=path)
        for path in kept:
            log.warning("workspaces of a dead server cannot be removed", path=path)
        sock = _listening_socket(self.settings.bind, self.settings.port, "port")
        self._listener = await self._loop.create_server(self._http, sock=sock, backlog=_BACKLOG)
        metrics_port = await self._start_metrics()
        if self._lock is not None:
            self._lock.write()
        log.info(
            "listening",
            port=sock.getsockname()[1],
            address=sock.getsockname()[0],
            metrics_port=metrics_port,
            script=self.settings.script_path if self._configuration.script_text is None else "SCRIPT",
            max_inflight=self.settings.max_inflight,
            max_queue=self.settings.max_queue,
        )
        if problem := self.invocations.script_problem:
            log.warning("not ready", reason=problem)

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
            self._refuse_all()
            self.supervisor.end_all(at_once=True)
            # What was running is dead; a moment for its answers, a bound for callers that do not take them.
            await self._within(1.0, self.admission.empty(), self._answers_sent())
        return 0

    async def _drain(self, why: str) -> None:
        self._is_draining = True
        if self._lock is not None:
            self._lock.remove()
        log.info("draining", signal=why, running=self.supervisor.running, waiting=self.admission.waiting)
        if self._is_probed():
            await asyncio.sleep(self.settings.healthcheck_interval_s)
        await self._stop_listening()
        self._refuse_all()
        await self._http.close_idle()
        if not await self._within(self.settings.write_timeout_s, self.admission.empty()):
            log.warning("running invocations are ended", count=self.supervisor.running)
            self.supervisor.end_all(at_once=False)
            await self._within(self.settings.kill_grace_s + _UNKILLABLE_S, self.admission.empty())
        await self._within(self.settings.write_timeout_s, self._answers_sent())
        await self._http.say_goodbye(self.settings.write_timeout_s)

    async def _stop_listening(self) -> None:
        """Let in all who are connected or about to be, and then nobody.

        A listening socket that is closed resets the connections that wait in it. So it is made deaf to new ones first,
        which then find it closed, and closed once those before them are let in.
        """
        if self._listener is None:
            return
        for sock in self._listener.sockets:
            _ignore_new_connections(sock)
        await asyncio.sleep(_HANDSHAKE_S)
        self._listener.close()

    def _refuse_all(self) -> None:
        """Start nothing any more: who waits for a place or still sends a body is answered 503 now."""
        self.admission.close()
        for content in list(self._bodies):
            content.set_exception(self.admission.refusal())

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
        if self._metrics_runner is not None:
            await self._metrics_runner.cleanup()
        await self._within(_UNKILLABLE_S, self.admission.empty())
        await self._within(_UNKILLABLE_S, self.invocations.removed())
        self.supervisor.close()
        try:
            await asyncio.to_thread(self.workspaces.close)
        except OSError as error:
            log.error("workspaces not removed", reason=str(error))
        log.info("stopped")

    async def _start_metrics(self) -> int | None:
        port = self.settings.metrics_port
        if not port:
            return None
        is_default = self._configuration.sources.get("metrics_port") == "default"
        try:
            sock = _listening_socket(self.settings.bind, port, "metrics_port")
        except ListenError as error:
            if not is_default:
                raise
            log.warning("metrics are off", reason=str(error))
            return None
        runner = web.ServerRunner(web.Server(self._handle_metrics, access_log=None))
        await runner.setup()
        await web.SockSite(runner, sock).start()
        self._metrics_runner = runner
        return int(sock.getsockname()[1])

    # ---- routes

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/_/health":
            return await self._sent(request, self._probe(request, is_ready=False))
        if request.path == "/_/ready":
            return await self._sent(request, self._probe(request, is_ready=True))
        if request.method not in _METHODS:
            text = f"the method {request.method} is not answered; {', '.join(_METHODS)} are\n"
            refusal = web.Response(status=405, text=text, headers={"Allow": ", ".join(_METHODS)})
            return await self._sent(request, refusal)
        started_s = self._loop.time()
        self.metrics.requests_in_flight += 1
        record = Record()
        code = 499  # nginx's number for a caller that went away; no answer has it
        try:
            response = await self._answer_call(request, record)
            code = response.status
            return await self._sent(request, response)
        except asyncio.CancelledError:
            if record.is_handed_over:
                code = record.chosen.status or 200
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

    def _probe(self, request: web.BaseRequest, *, is_ready: bool) -> web.Response:
        if request.method != "GET":
            return web.Response(status=405, text="only GET is answered here\n", headers={"Allow": "GET"})
        if request.headers.get("User-Agent") != LOCAL_PROBE:
            self._last_probe_s = self._loop.time()
        status, text = self._health()
        if is_ready and status == 200:
            if problem := self.invocations.script_problem:
                status, text = 503, problem
            elif not self.admission.has_free_place:
                status, text = 429, "no place is free"
        headers = {}
        if status == 503:
            headers["Retry-After"] = str(DRAINING_RETRY_AFTER_S)
        return web.Response(status=status, text=text, headers=headers)

    def _health(self) -> tuple[int, str]:
        if self._is_draining:
            return 503, "draining"
        if self._lock is not None and not self._lock.is_there():
            return 503, f"the lock file {self._lock.path} is gone"
        return 200, "OK"

    async def _handle_metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/metrics":
            return web.Response(status=404, text="metrics are at /metrics\n")
        if request.method != "GET":
            return web.Response(status=405, text="only GET is answered here\n", headers={"Allow": "GET"})
        body, content_type = await asyncio.to_thread(self.metrics.exposition)
        return web.Response(body=body, headers={"Content-Type": content_type})

    # ---- a call

    async def _answer_call(self, request: web.BaseRequest, record: Record) -> web.StreamResponse:
        call_id = uuid.uuid4().hex
        try:
            call_id = _call_id(request, call_id)
            self._refuse_early(request)
            preference = choose_form(
                ", ".join(request.headers.getall("Accept", [])) or None, request.query.get("output")
            )
            call = self._call(request, call_id)
            async with self.invocations.invoke(call, record) as result:
                answer = await prepare(result, preference)
                return await self._send(request, call_id, record, answer)
        except WatchdogError as error:
            if record.is_begun:
                # The status is gone already: only a cut connection still tells the caller that bytes are missing.
                _abort(request)
                raise ConnectionResetError(str(error)) from error
            return self._problem(request, call_id, record, error)

    def _refuse_early(self, request: web.BaseRequest) -> None:
        """What can be told from the headers alone, before anything is spent on the call."""
        token = self.settings.auth_token
        if token is not None:
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            is_right = hmac.compare_digest(os.fsencode(given.strip()), os.fsencode(token))
            if scheme.lower() != "bearer" or not is_right:
                raise Unauthorized("this server wants its token: Authorization: Bearer TOKEN")
        if self.admission.is_closed:
            raise self.admission.refusal()
        expect = request.headers.get("Expect", "100-continue")
        if expect.lower() != "100-continue":
            raise BadInput(f"Expect: {expect} is not known; known is 100-continue")

    def _call(self, request: web.BaseRequest, call_id: str) -> Call:
        headers, query = request.headers, request.query
        encoding = query.get("input", headers.get("X-Input-Encoding"))
        if encoding is not None and encoding.lower() not in ENCODINGS:
            raise BadInput(f"the input encoding {encoding!r} is not known; known are {', '.join(ENCODINGS)}")
        said = Said(
            content_type=headers.get("Content-Type", ""),
            content_encoding=headers.get("Content-Encoding", ""),
            encoding=encoding and encoding.lower(),
            file_name=_file_name(request),
        )
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
            said=said,
            variables=_cgi_variables(request) if self.settings.cgi_headers else {},
            timeout_s=timeout_s,
            traceparent=headers.get("traceparent", ""),
            tracestate=headers.get("tracestate", ""),
        )

    async def _body(self, request: web.BaseRequest) -> AsyncIterator[bytes]:
        limit_s = self.settings.read_timeout_s or None
        # Only now, when the call is in: who waits for the word need not send what would be refused.
        await _say_continue(request)
        self._bodies.add(request.content)
        try:
            while True:
                async with asyncio.timeout(limit_s):
                    piece = await request.content.readany()
                if not piece:
                    return
                yield piece
        except TimeoutError:
            raise CallerSilent(f"nothing of the body came for {limit_s:g} s (read_timeout)") from None
        except (ClientError, HttpProcessingError) as error:
            raise BadInput(f"the body is malformed: {error}") from None
        except ConnectionError as error:
            raise CallerGone("the connection ended before the body did") from error
        finally:
            self._bodies.discard(request.content)

    async def _send(self, request: web.BaseRequest, call_id: str, record: Record, answer: Answer) -> web.StreamResponse:
        headers = self._headers(call_id, record)
        headers.update(answer.headers)
        headers["Content-Type"] = answer.content_type
        # A header that the script chose takes the place of ours; its own may come more than once (Link, Set-Cookie).
        for name in {name.lower() for name, _ in record.chosen.headers}:
            headers.popall(name, None)
        headers.extend(record.chosen.headers)
        status = record.chosen.status or 200
        if self._is_draining:
            headers["Connection"] = "close"
        if answer.body is not None or status in _STATUS_WITHOUT_BODY:
            body = b"" if status in _STATUS_WITHOUT_BODY else answer.body
            small = web.Response(status=status, headers=headers, body=body)
            record.output_bytes = answer.length if body else 0
            await self._patiently(request, small.prepare(request))
            record.is_handed_over = True
            await self._patiently(request, small.write_eof())
            return small
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = answer.length
        await self._patiently(request, response.prepare(request))
        record.is_begun = True
        async with contextlib.aclosing(answer.chunks()) as chunks:
            async for piece in chunks:
                record.output_bytes += len(piece)
                record.is_handed_over = record.output_bytes == answer.length
                await self._patiently(request, response.write(piece))
        await self._patiently(request, response.write_eof())
        return response

    async def _sent(self, request: web.BaseRequest, response: web.StreamResponse) -> web.StreamResponse:
        """The response, sent if it was not yet: aiohttp itself would wait without end for a caller to take it."""
        if not response.prepared:
            await self._patiently(request, response.prepare(request))
            await self._patiently(request, response.write_eof())
        return response

    async def _patiently(self, request: web.BaseRequest, sending: Awaitable[object]) -> None:
        """Send, unless the caller takes nothing for ``write_timeout``.

        One write may be megabytes on their way through a slow line: what counts is whether they get fewer.
        """
        limit_s = self.settings.write_timeout_s
        if not limit_s:
            await sending
            return
        untaken: int | None = None
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal untaken, timer
            before, untaken = untaken, _untaken_bytes(request)
            if before is None or untaken < before:
                bound.reschedule(self._loop.time() + limit_s)
            timer = self._loop.call_later(limit_s / 4, look)

        try:
            async with asyncio.timeout(limit_s) as bound:
                timer = self._loop.call_later(limit_s / 4, look)
                try:
                    await sending
                finally:
                    timer.cancel()
        except TimeoutError:
            _abort(request)
            raise ConnectionResetError(f"the caller took nothing for {limit_s:g} s (write_timeout)") from None

    def _problem(self, request: web.BaseRequest, call_id: str, record: Record, error: WatchdogError) -> web.Response:
        """The answer to a call that went wrong (RFC 9457)."""
        status, title = next((code, text) for kind, code, text in _STATUS if isinstance(error, kind))
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
            members["out_of_memory"] = error.out_of_memory
        if isinstance(error, ScriptError) and error.stderr:
            members["stderr"] = error.stderr
        if isinstance(error, NotAdmitted):
            headers["Retry-After"] = str(error.retry_after_s)
        if isinstance(error, Unauthorized):
            headers["WWW-Authenticate"] = "Bearer"
        if isinstance(error, (Draining, CallerSilent, CallerGone)) or self._is_draining:
            headers["Connection"] = "close"
        if isinstance(request.protocol, _Connection):
            if isinstance(error, CallerSilent):
                request.protocol.linger(0.0)
            elif self._is_draining:
                request.protocol.linger(_LAST_WORDS_S)
        if not record.is_logged:
            log.warning("call refused", call_id=call_id, status=status, reason=str(error))
        headers["Content-Type"] = _PROBLEM_TYPE
        return web.Response(
            status=status, headers=headers, body=_problem_document(status, title, str(error), **members)
        )

    def _headers(self, call_id: str, record: Record) -> CIMultiDict[str]:
        headers = CIMultiDict({"X-Call-Id": call_id})
        if record.exit_code is not None:
            headers["X-Exit-Code"] = str(record.exit_code)
        if record.duration_s is not None:
            headers["X-Duration-Seconds"] = f"{record.duration_s:.6f}"
        return headers


def _problem_document(status: int, title: str, detail: str, **members: object) -> bytes:
    """The body of every answer that tells of a problem (RFC 9457)."""
    # Part of a detail may be bytes of a header that are not UTF-8.
    detail = detail.encode("utf-8", "backslashreplace").decode()
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail, **members}
    return msgspec.json.encode(document) + b"\n"


def _call_id(request: web.BaseRequest, fallback: str) -> str:
    given = request.headers.get("X-Call-Id")
    if given is None:
        return fallback
    if not _CALL_ID.fullmatch(given):
        raise BadInput("X-Call-Id must be 1 to 256 visible ASCII characters without spaces")
    return given


def _file_name(request: web.BaseRequest) -> str | None:
    if (name := request.headers.get("X-Filename")) is not None:
        return _percent_decoded(name, "X-Filename")
    if (disposition := request.headers.get("Content-Disposition")) is not None:
        kind, parameters = parse_content_disposition(disposition)
        if kind is None:
            raise BadInput(f"Content-Disposition: {disposition!r} is malformed")
        if (name := content_disposition_filename(parameters)) is not None:
            return name
    return request.query.get("filename")


def _percent_decoded(text: str, what: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise BadInput(f"{what}: {text!r} is not percent-encoded UTF-8") from None


def _cgi_variables(request: web.BaseRequest) -> dict[str, str]:
    """Method, path, query and headers under the names of OpenFaaS's classic watchdog."""
    length = "-1" if request.content_length is None else str(request.content_length)
    if request.content_length is None and not request.body_exists:
        length = "0"
    variables = {
        "Http_Method": request.method,
        "Http_Path": request.raw_path.partition("?")[0],
        "Http_Query": request.raw_path.partition("?")[2],
        "Http_Host": request.headers.get("Host", ""),
        "Http_ContentLength": length,
        "Http_Content_Length": length,
    }
    for name, value in request.headers.items():
        if name.lower() in _NOT_FOR_SCRIPTS or not _HEADER_NAME.fullmatch(name):
            continue
        variables.setdefault("Http_" + name.replace("-", "_"), value)
    return variables


async def _say_continue(request: web.BaseRequest) -> None:
    if request.headers.get("Expect") and request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # The interim answer does not count as a part of the answer to come.
        request.writer.output_size = 0


def _untaken_bytes(request: web.BaseRequest) -> int:
    """How much of what was sent is with us or in the kernel, not yet acknowledged by the caller (tcp(7), SIOCOUTQ)."""
    transport = request.transport
    if transport is None:
        return 0
    count = transport.get_write_buffer_size()
    with contextlib.suppress(OSError, ValueError):
        descriptor = transport.get_extra_info("socket").fileno()
        count += int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return count


def _abort(request: web.BaseRequest) -> None:
    """Reset the connection: a mere close would still deliver what the kernel holds, as if all were well."""
    if request.transport is not None:
        sock = request.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()


def _ignore_new_connections(sock: socket.socket) -> None:
    """Have the kernel drop each packet that asks a listening socket for a connection, and no other (socket(7))."""
    flags, syn, syn_or_ack = 13, 0x02, 0x12  # where a TCP header has its flags, and two of them (RFC 9293, 3.1)
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (0x30, 0, 0, flags),  # load that byte (linux/bpf_common.h)
            (0x54, 0, 0, syn_or_ack),  # keep these bits of it
            (0x15, 0, 1, syn),  # only SYN: the next instruction, else the one after
            (0x06, 0, 0, 0),  # drop
            (0x06, 0, 0, 0xFFFFFFFF),  # take
        )
    )
    buffer = ctypes.create_string_buffer(program)
    with contextlib.suppress(OSError):  # a kernel without it: a connection made in this very moment may be reset
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 5, ctypes.addressof(buffer)))


def _is_at_a_terminal() -> bool:
    return os.isatty(0) or os.isatty(2)


def _listening_socket(bind: str | None, port: int, setting: str) -> socket.socket:
    """A socket that listens; on all interfaces, IPv4 and IPv6, if ``bind`` is None.

    Raises:
        ListenError: it cannot be had.
    """
    try:
        if bind is None and socket.has_dualstack_ipv6():
            try:
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
        if bind is None:
            return socket.create_server(("", port), backlog=_BACKLOG)
        family, _, _, _, address = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        where = f"{bind or '*'}:{port}"
        what = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise ListenError(
            f"cannot listen on {where} ({setting}): {what}; choose another with {setting} or bind"
        ) from error


class _LockFile:
    """The file that OpenFaaS's health check looks for: ``$TMPDIR/.lock``."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.path = os.path.join(environ.get("TMPDIR") or "/tmp", ".lock")
        self._is_written = False

    def write(self) -> None:
        """Raises ListenError if it cannot be written."""
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o660)
        except OSError as error:
            raise ListenError(
                f"cannot write the lock file {self.path}: {error.strerror}; make its directory writable "
                "or set suppress_lock=true"
            ) from error
        os.close(fd)
        self._is_written = True

    def is_there(self) -> bool:
        return self._is_written and os.path.exists(self.path)

    def remove(self) -> None:
        if self._is_written:
            self._is_written = False
            with contextlib.suppress(OSError):
                os.unlink(self.path)


class _HttpServer(web.Server):
    """aiohttp's low-level server, with a bound on slow headers and our form of errors."""

    def __init__(self, handler: Any, *, read_timeout_s: float, write_timeout_s: float, **options: Any) -> None:
        super().__init__(handler, **options)
        self.read_timeout_s = read_timeout_s
        self.write_timeout_s = write_timeout_s
        self._quiet = asyncio.Event()

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)

    async def close_idle(self) -> None:
        """Close the connections that wait for a next request; those new ones whose first is on its way get a moment."""
        until_s = self._loop.time() + _FRESH_S
        while self._loop.time() < until_s:
            for connection in self._ours():
                connection.close_if_idle()
            if not any(connection.is_fresh for connection in self._ours()):
                return
            await asyncio.sleep(0.01)

    async def say_goodbye(self, limit_s: float) -> None:
        """Close all connections, each in a way that does not reset it, as far as the callers do their part in time.

        Args:
            limit_s: for callers that have not taken all of their answer yet; 0 is no limit.
        """
        started_s = self._loop.time()
        while ours := self._ours():
            for connection in ours:
                connection.half_close()
            patience_s = _GOODBYE_S
            if any(connection.is_lingering for connection in ours):
                patience_s = _LAST_WORDS_S
            if any(connection.has_unsent_bytes for connection in ours):
                patience_s = limit_s or math.inf
            if self._loop.time() > started_s + patience_s:
                return
            await asyncio.sleep(0.005)

    def _ours(self) -> list[_Connection]:
        return [connection for connection in self.connections if isinstance(connection, _Connection)]

    async def quiet(self) -> None:
        """Return when the next answer is sent."""
        self._quiet.clear()
        await self._quiet.wait()

    def tell_quiet(self) -> None:
        self._quiet.set()


class _Connection(RequestHandler):
    # aiohttp bounds neither the time for a first request nor that between the first and last byte of headers.

    def __init__(self, server: _HttpServer, **options: Any) -> None:
        super().__init__(server, **options)
        self._headers_timeout_s = server.read_timeout_s
        self._write_timeout_s = server.write_timeout_s
        self._headers_timer: asyncio.TimerHandle | None = None
        self._has_part_of_headers = False
        self._is_half_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(transport, asyncio.Transport)
        # What is written waits until the system has it, so that write_timeout bounds the last bytes, too.
        transport.set_write_buffer_limits(0)
        if self._write_timeout_s:
            # And the system waits no longer for a caller that takes nothing, whoever of us is done with it (tcp(7)).
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._write_timeout_s * 1000))
        self._start_headers_timer()

    def data_received(self, data: bytes) -> None:
        if self._is_half_closed:
            # A request that crossed with the close: it cannot be answered, so it must not be begun.
            return
        # After an early answer (413, 429) the rest of its body still comes: that is no next request.
        is_rest_of_body = self.is_lingering
        super().data_received(data)
        if self._messages or self._current_request is not None:
            self._stop_headers_timer()
        elif data and not is_rest_of_body:
            self._has_part_of_headers = True
            self._start_headers_timer()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_headers_timer()
        super().connection_lost(exc)

    def linger(self, limit_s: float) -> None:
        """After the answer, wait no longer than this for the rest of the body."""
        self._lingering_time = limit_s

    @property
    def is_lingering(self) -> bool:
        """Whether its answer is sent and the rest of its body is still awaited."""
        return self._current_request is None and self._waiter is None and self._request_count > 0

    @property
    def has_unsent_bytes(self) -> bool:
        """Whether a part of an answer is still with this process: it would be lost with it."""
        return self.transport is not None and self.transport.get_write_buffer_size() > 0

    @property
    def is_fresh(self) -> bool:
        """Whether it is open and has sent no request yet."""
        return self._request_count == 0 and self.transport is not None and not self.transport.is_closing()

    def close_if_idle(self) -> None:
        is_busy = self._current_request is not None or bool(self._messages)
        # A waiter that is done: its request is there, and handled in the next turn of the loop.
        is_waiting = self._waiter is not None and not self._waiter.done()
        if not is_busy and is_waiting and self._request_count and not self._has_unread_bytes():
            self.half_close()

    def half_close(self) -> None:
        """Send no more, and read until the caller ends too: to close with bytes unread would be a reset."""
        if self._is_half_closed or self.is_lingering:
            return
        if self.transport is not None and not self.transport.is_closing():
            self._is_half_closed = True
            self.transport.write_eof()
            self.transport.resume_reading()

    def _has_unread_bytes(self) -> bool:
        if self.transport is None:
            return False
        sock = self.transport.get_extra_info("socket")
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP, and to a defect of this program."""
        if isinstance(exc, ConnectionError):
            # The caller is gone, as the end of its invocation tells: nobody is left to be answered.
            detail = "the connection ended"
        elif status >= 500:
            log.error("internal error", reason=repr(exc), exc_info=exc)
            detail = "the server failed to answer this call; its log tells more"
        else:
            detail = f"the request is malformed: {(message or str(exc)).splitlines()[0]}"
        body = _problem_document(status, "Bad request" if status < 500 else "Internal error", detail)
        response = web.Response(status=status, body=body, headers={"Content-Type": _PROBLEM_TYPE})
        response.force_close()
        return response

    def _start_headers_timer(self) -> None:
        if self._headers_timer is None and self._headers_timeout_s:
            self._headers_timer = self._loop.call_later(self._headers_timeout_s, self._headers_too_slow)

    def _stop_headers_timer(self) -> None:
        self._has_part_of_headers = False
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None

    def _headers_too_slow(self) -> None:
        self._headers_timer = None
        if self.transport is not None and self._has_part_of_headers:
            detail = f"the headers were not complete after {self._headers_timeout_s:g} s (read_timeout)"
            body = _problem_document(408, "Request timed out", detail)
            self.transport.write(
                b"HTTP/1.1 408 Request Timeout\r\nContent-Type: %b\r\n"
                b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (_PROBLEM_TYPE.encode(), len(body), body)
            )
        self.force_close()
