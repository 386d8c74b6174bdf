"""Answer calls: make an invocation from a request, and an answer from its result."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from multidict import CIMultiDict

from ..errors import BadInput, InputTooLarge, OutOfResources, ScriptError, WatchdogError, quoted
from ..input.detect import BodyHints
from ..invocation.admission import Admission
from ..invocation.call import Call, Record
from ..invocation.cloud_event import event_of, headers_of_answer, is_structured
from ..invocation.invocation import Invocations
from ..invocation.outcome import SKIPPED
from ..invocation.pace import Paces
from ..logs.setup import get_logger
from ..output.accept import AnswerForm, AnswerPreference
from ..output.answer import Answer, Result, in_pieces, prepare, prepare_printed, prepare_skipped
from ..output.event_stream import completed, result_events
from ..settings.kinds import DURATION, parse_duration_s
from ..settings.load import Configuration
from ..system.pattern import pattern
from ..telemetry.metrics import Metrics
from ..telemetry.tracing import Trace, Tracing
from .authorization import Authorization
from .body import Bodies
from .health import Health
from .http_message import Request, Response
from .live import LiveStream
from .problem_document import PROBLEM_TYPE
from .problems import problem
from .request import body_hints, call_id_of, cgi_variables, is_reconnection, preference_of, wants_events
from .response import Sender, headers_of

log = get_logger("server")
# The status in the metrics and the trace if the caller disconnected. nginx uses it, too. It is never sent.
_CALLER_GONE = 499
_WHOLE_SECONDS = pattern(r"[0-9]{1,9}")


class _AnswerCutOff(ConnectionResetError):
    """The server could not send the rest of an answer, so it reset the connection."""


class Calls:
    """Answers calls.

    Args:
        base_path: the prefix that the server removes from the path of each request.
    """

    def __init__(
        self,
        configuration: Configuration,
        *,
        base_path: str,
        invocations: Invocations,
        admission: Admission,
        metrics: Metrics,
        tracing: Tracing,
        health: Health,
        authorization: Authorization,
        bodies: Bodies,
        sender: Sender,
    ) -> None:
        self._settings = configuration.settings
        self._service_name = configuration.service_name
        self._base_path = base_path
        self._is_classic = self._settings.fprocess is not None
        self._loop = asyncio.get_running_loop()
        self._invocations = invocations
        self._admission = admission
        self._metrics = metrics
        self._tracing = tracing
        self._health = health
        self._authorization = authorization
        self._bodies = bodies
        self._sender = sender
        self._none_in_flight = asyncio.Event()

    async def answer(self, request: Request) -> None:
        """Answer a call, and count it."""
        started_s = self._loop.time()
        self._metrics.requests_in_flight += 1
        trace = self._tracing.call(request.method, request.path, request.headers)
        record = Record()
        code = _CALLER_GONE
        try:
            if (refusal := await self._answer(request, record, trace)) is None:
                code = record.status or code
            else:
                code = refusal.status
                await self._sender.send(request, refusal)
        except asyncio.CancelledError:
            if record.is_handed_over:
                code = record.status or code
            raise
        except _AnswerCutOff:
            code = 500
            raise
        except ConnectionError:
            raise
        except Exception:
            code = 500
            raise
        finally:
            self._metrics.requests_in_flight -= 1
            if not self._metrics.requests_in_flight:
                self._none_in_flight.set()
            self._metrics.request_answered(code=code, method=request.method, duration_s=self._loop.time() - started_s)
            trace.end(code)

    async def all_answered(self) -> None:
        """Return once all answers are sent."""
        while self._metrics.requests_in_flight:
            self._none_in_flight.clear()
            await self._none_in_flight.wait()

    async def _answer(self, request: Request, record: Record, trace: Trace) -> Response | None:
        """Send the answer of the function. If the call fails, return the answer that reports the problem."""
        call_id = os.urandom(16).hex()
        live: LiveStream | None = None
        try:
            call_id = call_id_of(request, call_id)
            trace.note({"call_id": call_id})
            await self._authorization.check(request)
            self._refuse_early(request)
            preference = None if self._is_classic else preference_of(request)
            if wants_events(request) if preference is None else preference.form is AnswerForm.EVENTS:
                if is_reconnection(request):
                    log.info("call not repeated", call_id=call_id, reason="the request has a Last-Event-ID")
                    return Response(204, [("X-Call-Id", call_id)])
                live = LiveStream(request, call_id)
            call = self._call(request, call_id, trace, live)
            if live is None:
                hand_over = functools.partial(self._hand_over, request, call, record, preference)
            else:
                hand_over = functools.partial(self._hand_over_live, request, call, record, live)
            await self._invocations.invoke(call, record, hand_over)
        except Exception as error:
            trace.failed(error)
            if live is not None and live.is_open and isinstance(error, WatchdogError):
                await self._fail_live(request, call_id, record, live, error)
                return None
            if record.is_begun or (live is not None and live.is_open):
                # The status is already sent. So only a reset of the connection shows the caller that bytes are missing.
                if not isinstance(error, (WatchdogError, ConnectionError)):
                    log.error("internal error", reason=repr(error), exc_info=error)
                request.connection.reset()
                kind = ConnectionResetError if isinstance(error, ConnectionError) else _AnswerCutOff
                raise kind(str(error)) from error
            if not isinstance(error, WatchdogError):
                raise
            return problem(request, call_id, record, error, is_draining=self._health.is_draining)
        finally:
            if live is not None:
                live.close()
        return None

    async def _hand_over(
        self, request: Request, call: Call, record: Record, preference: AnswerPreference | None, result: Result
    ) -> None:
        """Send the result of a call. ``preference``: None for a classic function."""
        with call.trace.phase("hand over answer"):
            if preference is None:
                await self._bodies.discard_rest(request)
                answer = self._printed(request, result)
            elif record.outcome == SKIPPED:
                answer = _skipped(call, record, preference)
            else:
                answer = await prepare(result, preference)
            record.status = record.chosen.status or (200 if result.failure is None else 500)
            await self._sender.send_answer(
                request,
                answer,
                status=record.status,
                headers=self._headers(call, record, answer, record.status),
                record=record,
                readers=self._readers(record),
            )

    async def _hand_over_live(
        self, request: Request, call: Call, record: Record, live: LiveStream, result: Result
    ) -> None:
        """Send the outputs and the verdict of a call whose events the caller gets."""
        if result.failure is not None:
            raise result.failure
        with call.trace.phase("hand over answer"):
            # The status of the stream is always 200. Metrics and traces have the status of the verdict.
            record.status = record.chosen.status or 200
            verdict = _verdict(call.call_id, record, record.status)
            printed_type = self._type_of_printed(request) if self._is_classic else result.printed_type
            for name, value in record.chosen.headers:
                if name.lower() == "content-type":
                    printed_type = value
            pieces = in_pieces(result_events(result, verdict, printed_type), self._sender.pieces_ahead)
            with self._sender.long_answer():
                async with contextlib.aclosing(pieces):
                    await self._finish_live(request, record, live, pieces)

    async def _fail_live(
        self, request: Request, call_id: str, record: Record, live: LiveStream, error: WatchdogError
    ) -> None:
        """Send the verdict of a call that failed after its stream was opened."""
        response = problem(request, call_id, record, error, is_draining=self._health.is_draining)
        record.status = response.status
        # A script may have chosen any text, also a date.
        seconds = _WHOLE_SECONDS.fullmatch(response.headers.get("Retry-After", ""))
        last = completed(
            _verdict(call_id, record, response.status),
            error=response.body,
            stdout=record.stdout_tail,
            stderr=error.stderr if isinstance(error, ScriptError) else record.stderr_tail,
            retry_after_s=None if seconds is None else int(seconds[0]),
        )
        await self._finish_live(request, record, live, _only(last))

    async def _finish_live(
        self, request: Request, record: Record, live: LiveStream, pieces: AsyncIterator[bytes]
    ) -> None:
        """Send the last events, and the end of the stream.

        The caller of a classic function may still be sending a body that the function did not read. The last events do
        not wait for this body, but the end of the stream does (:meth:`Bodies.discard_rest`).
        """
        send = self._sending(request, record)
        if request.content.is_complete:
            await live.finish(pieces, send, record)
            return
        rest = asyncio.ensure_future(self._bodies.discard_rest(request))
        try:
            await live.finish(pieces, send, record, rest)
        finally:
            rest.cancel()

    def _sending(self, request: Request, record: Record) -> Callable[[bytes], Awaitable[None]]:
        """Return the function that sends the last events of a stream to a caller."""
        readers = self._readers(record)

        async def send(data: bytes) -> None:
            record.output_bytes += len(data)
            await self._sender.send_in_time(request, data, readers)

        return send

    def _readers(self, record: Record) -> Paces:
        """Return the callers that read the answers of calls of this kind."""
        return self._admission.readers_with_place if record.keeps_place else self._admission.readers

    def _refuse_early(self, request: Request) -> None:
        """Reject a call early, if the state of the server or the headers alone show that it cannot be answered.

        Raises:
            Draining, OutOfResources: the server accepts no calls now.
            InputTooLarge, BadInput: the headers show that the call cannot be answered.
        """
        if self._admission.is_closed:
            raise self._admission.refusal()
        if self._health.lowered_limits:
            raise OutOfResources(self._health.about_limits)
        limit_bytes = self._settings.max_input_size_bytes
        if self._is_classic and limit_bytes and (request.content_length or 0) > limit_bytes:
            raise InputTooLarge(f"the input has {request.content_length} bytes, over {limit_bytes} (max_input_size)")
        for expect in request.headers.getall("Expect", []):
            if expect.lower() != "100-continue":
                raise BadInput(f"Expect: {quoted(expect)} is not supported; use 100-continue")

    def _call(self, request: Request, call_id: str, trace: Trace, live: LiveStream | None) -> Call:
        headers = request.headers
        timeout = headers.get("X-Timeout")
        try:
            timeout_s = 0.0 if timeout is None else parse_duration_s(timeout)
        except ValueError as error:
            raise BadInput(f"X-Timeout: {error}; expected {DURATION.accepts}") from None
        if timeout is not None and not timeout_s:
            raise BadInput("X-Timeout: 0 gives the script no time; omit the header if you want no limit of your own")
        return Call(
            call_id=call_id,
            body=self._bodies.read(request),
            # A classic function gets the body as it is. Only the Http_* variables describe it.
            hints=BodyHints() if self._is_classic else body_hints(request),
            variables=cgi_variables(request, self._base_path) if self._settings.cgi_headers else {},
            timeout_s=timeout_s,
            trace=trace,
            event=event_of(headers),
            observer=live,
        )

    def _printed(self, request: Request, result: Result) -> Answer:
        """Return the answer of a classic function.

        Raises:
            ScriptFailed, ScriptKilled: the function failed, and the caller accepts JSON. So the error is sent as JSON.
        """
        if result.failure is None:
            return prepare_printed(result, self._type_of_printed(request))
        accept = ",".join(request.headers.getall("Accept", [])).lower()
        if PROBLEM_TYPE in accept or "application/json" in accept:
            raise result.failure
        return prepare_printed(result, "text/plain; charset=utf-8")

    def _type_of_printed(self, request: Request) -> str:
        """Return the media type of what a classic function prints."""
        return self._settings.content_type or request.headers.get("Content-Type") or "application/octet-stream"

    def _headers(self, call: Call, record: Record, answer: Answer, status: int) -> CIMultiDict[str]:
        """Return the headers of an answer from the script."""
        headers = headers_of(call.call_id, record)
        headers.update(answer.headers)
        if call.event and status < 400 and record.outcome != SKIPPED:
            headers.update(headers_of_answer(call.event, self._service_name))
        headers["Content-Type"] = answer.content_type
        # A header that the script chose replaces the server's header of this name. The script may choose a header
        # several times (Link, Set-Cookie).
        if record.chosen.headers:
            for name in {name.lower() for name, _ in record.chosen.headers}:
                headers.popall(name, None)
            headers.extend(record.chosen.headers)
        if self._health.is_draining:
            headers["Connection"] = "close"
        return headers


def _verdict(call_id: str, record: Record, status: int) -> dict[str, Any]:
    """Return the members of the last event of a stream that do not depend on the result.

    Args:
        status: the status that the call would have without a stream.
    """
    verdict: dict[str, Any] = {
        "call_id": call_id,
        "status": status,
        "outcome": record.outcome,
        "exit_code": record.exit_code,
        "duration_s": None if record.duration_s is None else round(record.duration_s, 6),
        "queue_wait_s": round(record.queue_wait_s or 0.0, 6),
        "input_encoding": record.input_encoding,
    }
    if record.served_before is not None:
        verdict["worker"] = {"calls": record.served_before}
    if record.outcome == SKIPPED:
        verdict["skipped"] = record.reason
    return verdict


async def _only(piece: bytes) -> AsyncIterator[bytes]:
    yield piece


def _skipped(call: Call, record: Record, preference: AnswerPreference) -> Answer:
    """Return the answer to an event without an object to process."""
    is_cloud_event = call.event or is_structured(call.hints.content_type)
    return prepare_skipped(record.reason or "", None if is_cloud_event else preference)
