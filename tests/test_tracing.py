"""Traces: the caller's context, checked, and spans as a collector gets them from a real server."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any
from unittest.mock import Mock

import pytest
from guards import changed_program
from multidict import CIMultiDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace.sampling import Decision, SamplingResult
from running_server import RunningServer, StartServer, until

import watchdog
from watchdog.telemetry import otel, otel_log, otel_spans, trace_context, tracing

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
UNSAMPLED = f"00-{TRACE_ID}-{PARENT_ID}-00"
PHASES = ["take in input", "wait for a place", "run script", "hand over answer"]
TELL_CONTEXT = 'echo "$TRACEPARENT $TRACESTATE"'
# The server. At its end, it prints the modules of OpenTelemetry that it has imported.
TELLING_ITS_IMPORTS = """
import atexit, json, os, sys
from watchdog.__main__ import main

def tell():
    names = [name for name in sys.modules if name.partition(".")[0] in ("opentelemetry", "google", "requests")]
    os.write(2, json.dumps({"event": "imported", "names": names}).encode() + b"\\n")

atexit.register(tell)
sys.exit(main())
"""
WITHOUT_OPENTELEMETRY = """
import sys
sys.modules["opentelemetry"] = None
from watchdog.__main__ import main
sys.exit(main())
"""


# A server that waits until the collector has the last spans, also on a slow machine.
PATIENT_STOP = "from watchdog.telemetry import otel_spans; replace(otel_spans, '_STOP_S', 60.0)"


class Collector:
    """An OTLP/HTTP receiver."""

    def __init__(self, status: int = 200) -> None:
        self.bodies: list[bytes] = []
        self.hangs = False
        self.was_asked = threading.Event()
        self._status = status
        self._may_go_on = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.was_asked.set()
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if collector.hangs:
                    collector._may_go_on.wait()
                    return
                collector.bodies.append(body)
                self.send_response(collector._status if self.path == "/v1/traces" else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.environ = environ_for(f"http://127.0.0.1:{self._server.server_port}")
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def resources(self) -> list[dict[str, Any]]:
        return [attributes_of(each.resource) for body in self.bodies for each in decoded(body).resource_spans]

    def spans(self) -> list[Span]:
        return [
            span
            for body in self.bodies
            for resource_spans in decoded(body).resource_spans
            for scope_spans in resource_spans.scope_spans
            for span in scope_spans.spans
        ]

    def calls(self, count: int = 1) -> list[Span]:
        """Wait for the spans of this number of calls, and return them."""

        def of_calls() -> list[Span]:
            return [span for span in self.spans() if span.kind == Span.SPAN_KIND_SERVER]

        until(lambda: len(of_calls()) >= count, "the spans of the calls")
        calls = of_calls()
        assert len(calls) == count
        return sorted(calls, key=lambda span: span.start_time_unix_nano)

    def children(self, parent: Span) -> list[Span]:
        found = [span for span in self.spans() if span.parent_span_id == parent.span_id]
        return sorted(found, key=lambda span: span.start_time_unix_nano)

    def close(self) -> None:
        self._may_go_on.set()
        self._server.shutdown()
        self._server.server_close()


def environ_for(endpoint: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "20", "NO_PROXY": "*"}


def decoded(body: bytes) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    request.ParseFromString(body)
    return request


def attributes_of(thing: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in thing.attributes}


def is_named_by(traceparent: str, span: Span) -> bool:
    """Return whether a traceparent names a span and is sampled. It may also have the flag for a random id."""
    return traceparent[:-2] == f"00-{span.trace_id.hex()}-{span.span_id.hex()}-" and traceparent[-2:] in ("01", "03")


@contextmanager
def collecting(status: int = 200) -> Iterator[Collector]:
    collector = Collector(status)
    try:
        yield collector
    finally:
        collector.close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


# ---- the caller's context

VALID = [
    TRACEPARENT,
    UNSAMPLED,
    f"00-{TRACE_ID}-{PARENT_ID}-ff",
    f"cc-{TRACE_ID}-{PARENT_ID}-01",
    f"cc-{TRACE_ID}-{PARENT_ID}-01-what-the-future-will-be-like",
    f"01-{TRACE_ID}-{PARENT_ID}-00-",
]
INVALID = [
    "",
    "00",
    f"ff-{TRACE_ID}-{PARENT_ID}-01",
    f"00-{'0' * 32}-{PARENT_ID}-01",
    f"00-{TRACE_ID}-{'0' * 16}-01",
    f"cc-{'0' * 32}-{PARENT_ID}-01",
    f"00-{TRACE_ID}-{PARENT_ID}-01-what-the-future-will-be-like",
    f"00-{TRACE_ID}-{PARENT_ID}-01.",
    f"cc-{TRACE_ID}-{PARENT_ID}-01.what-the-future-will-be-like",
    f"cc-{TRACE_ID}-{PARENT_ID}-01-\x1b[31m",
    f"00-{TRACE_ID.upper()}-{PARENT_ID}-01",
    f"00-{TRACE_ID}0-{PARENT_ID}-01",
    f"00-{TRACE_ID[1:]}-{PARENT_ID}-01",
    f"00-{TRACE_ID}-{PARENT_ID}0-01",
    f"00-{TRACE_ID}-{PARENT_ID[1:]}-01",
    f"00-{TRACE_ID}-{PARENT_ID}-1",
    f"00-{TRACE_ID}-{PARENT_ID}-001",
    f"0-{TRACE_ID}-{PARENT_ID}-01",
    f"000-{TRACE_ID}-{PARENT_ID}-01",
    f".0-{TRACE_ID}-{PARENT_ID}-01",
    f"00-{TRACE_ID}-{PARENT_ID}-.0",
    f"00_{TRACE_ID}_{PARENT_ID}_01",
    TRACEPARENT + "\n",
    " " + TRACEPARENT,
]


@pytest.mark.parametrize("traceparent", VALID)
def test_a_valid_traceparent(traceparent: str) -> None:
    assert trace_context.caller_context(CIMultiDict(Traceparent=traceparent)) == (traceparent, "")


@pytest.mark.parametrize("traceparent", INVALID)
def test_an_invalid_traceparent_counts_as_none_and_so_does_its_tracestate(traceparent: str) -> None:
    assert trace_context.caller_context(CIMultiDict(traceparent=traceparent, tracestate="a=1")) == ("", "")


def test_of_two_traceparents_none_counts() -> None:
    headers = CIMultiDict([("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT)])
    assert trace_context.caller_context(headers) == ("", "")


@pytest.mark.parametrize(
    ("values", "tracestate"),
    [
        (["congo=t61rcWkgMzE"], "congo=t61rcWkgMzE"),
        (["rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"], "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        (["a=1", "b=2"], "a=1,b=2"),
        (["a=1 \t,\t b=2,, ,"], "a=1,b=2"),
        (["0tenant@vendor=!~: +"], "0tenant@vendor=!~: +"),
        (["a_-*/9=b=c"], ""),
        ([f"a={'v' * 256}"], f"a={'v' * 256}"),
        ([f"a={'v' * 257}"], ""),
        ([f"{'k' * 256}=1"], f"{'k' * 256}=1"),
        ([f"{'k' * 257}=1"], ""),
        ([f"{'t' * 241}@{'s' * 14}=1"], f"{'t' * 241}@{'s' * 14}=1"),
        ([f"{'t' * 242}@v=1"], ""),
        ([f"t@{'s' * 15}=1"], ""),
        (["A=1"], ""),
        (["a"], ""),
        (["a="], ""),
        (["=1"], ""),
        (["a =1"], ""),
        (["a=1,a=2"], ""),
        (["a=1,b=\x1b[31m"], ""),
        (["a=é"], ""),
        ([",".join(f"k{n}=1" for n in range(32))], ",".join(f"k{n}=1" for n in range(32))),
        ([",".join(f"k{n}=1" for n in range(33))], ""),
        ([""], ""),
    ],
)
def test_tracestate(values: list[str], tracestate: str) -> None:
    headers = CIMultiDict([("traceparent", TRACEPARENT), *(("tracestate", value) for value in values)])
    assert trace_context.caller_context(headers) == (TRACEPARENT, tracestate)


# ---- off

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:1"},
        {**ENDPOINT, "OTEL_SDK_DISABLED": "true"},
        {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_off_without_a_message(environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    assert type(otel.start(environ, "")) is tracing.Tracing
    assert caplog.records == []


def test_off_where_another_protocol_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    environ = {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    assert type(otel.start(environ, "")) is tracing.Tracing
    (record,) = caplog.records
    assert "traces are off: OTEL_EXPORTER_OTLP_PROTOCOL is grpc" in record.getMessage()


def test_a_trace_that_is_not_recorded_hands_on_what_came() -> None:
    trace = tracing.Tracing().call("POST", "/", CIMultiDict(traceparent=UNSAMPLED, tracestate="a=1"))
    with trace.phase("run script") as phase:
        phase.process_ended(1, None)
        assert trace.variables == {"TRACEPARENT": UNSAMPLED, "TRACESTATE": "a=1"}
    trace.note({"outcome": "ok"})
    trace.end(200)
    assert trace.fields == {"trace_id": TRACE_ID, "traceparent": UNSAMPLED}
    assert tracing.Tracing().call("POST", "/", CIMultiDict()) is tracing.NO_TRACE
    assert tracing.NO_TRACE.variables == tracing.NO_TRACE.fields == {}


def test_without_an_endpoint_nothing_is_imported(start_server: StartServer) -> None:
    server = start_server(TELL_CONTEXT, program=("-c", TELLING_ITS_IMPORTS))
    answer = server.call(b"", headers={"traceparent": TRACEPARENT, "tracestate": "a=1"})
    assert answer.body.decode() == f"{TRACEPARENT} a=1\n"
    event = server.event("invocation ended")
    assert (event["trace_id"], event["traceparent"]) == (TRACE_ID, TRACEPARENT)
    server.stop()
    assert [event["names"] for event in server.logs if event["event"] == "imported"] == [[]]


def test_the_look_at_the_imports_sees_them(start_server: StartServer, collector: Collector) -> None:
    server = start_server(TELL_CONTEXT, program=("-c", TELLING_ITS_IMPORTS), **collector.environ)
    server.stop()
    (names,) = (event["names"] for event in server.logs if event["event"] == "imported")
    assert "opentelemetry.sdk.trace" in names


def test_with_an_endpoint_but_without_the_packages(start_server: StartServer, collector: Collector) -> None:
    server = start_server(TELL_CONTEXT, program=("-c", WITHOUT_OPENTELEMETRY), **collector.environ)
    answer = server.call(b"", headers={"traceparent": TRACEPARENT})
    assert answer.body.decode() == f"{TRACEPARENT} \n"
    assert server.stop() == 0
    (warning,) = (event for event in server.logs if event["logger"] == "tracing")
    assert warning["level"] == "warning"
    assert "pip install 'oscar-watchdog[otel]'" in warning["event"]
    assert not collector.was_asked.is_set()


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_BSP_MAX_QUEUE_SIZE": "-1"},
        {"OTEL_EXPORTER_OTLP_TIMEOUT": "soon", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1000000"},
    ],
)
def test_a_bad_value_of_the_sdks_own_does_not_stop_the_server(
    start_server: StartServer, collector: Collector, environ: dict[str, str]
) -> None:
    server = start_server("echo hi", **(collector.environ | environ))
    assert server.call(b"").status == 200
    server.stop()
    assert any("the OpenTelemetry SDK does not start" in event["event"] for event in server.logs)


# ---- on


def test_the_spans_of_a_call(start_server: StartServer, collector: Collector) -> None:
    server = start_server(TELL_CONTEXT, OSCAR_SERVICE_NAME="plants", **collector.environ)
    secrets = {"Authorization": "Bearer never-told", "Cookie": "never-told", "X-Api-Key": "never-told"}
    answer = server.call(b"aGk=", "/run/plants?token=never-told", headers={"X-Call-Id": "one", **secrets})
    (call,) = collector.calls()
    until(lambda: len(collector.children(call)) == len(PHASES), "all phases")
    phases = collector.children(call)
    assert [phase.name for phase in phases] == PHASES
    assert {phase.kind for phase in phases} == {Span.SPAN_KIND_INTERNAL}
    assert {phase.trace_id for phase in phases} == {call.trace_id}
    assert call.parent_span_id == b""
    assert call.name == "POST"
    for earlier, later in pairwise(phases):
        assert earlier.end_time_unix_nano <= later.start_time_unix_nano
    assert call.start_time_unix_nano <= phases[0].start_time_unix_nano
    assert phases[-1].end_time_unix_nano <= call.end_time_unix_nano

    attributes = attributes_of(call)
    expected = {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.path": "/run/plants",
        "url.scheme": "http",
        "faas.invocation_id": "one",
        "process.exit.code": 0,
        "watchdog.outcome": "ok",
        "watchdog.input_bytes": 2,
        "watchdog.output_bytes": len(answer.body),
    }
    assert expected.items() <= attributes.items()
    assert attributes_of(phases[2])["process.exit.code"] == 0
    assert {span.status.code for span in [call, *phases]} == {Status.STATUS_CODE_UNSET}
    (resource,) = {json.dumps(each, sort_keys=True) for each in collector.resources()}
    assert {"service.name": "plants", "service.version": watchdog.__version__}.items() <= json.loads(resource).items()
    assert b"never-told" not in b"".join(collector.bodies)

    # The parent of the script's own spans is the phase that runs the script. The log has the id of the call.
    assert is_named_by(answer.body.decode().strip(), phases[2])
    event = server.event("invocation ended")
    assert event["trace_id"] == call.trace_id.hex()
    assert is_named_by(event["traceparent"], call)


def test_the_callers_span_is_the_parent(start_server: StartServer, collector: Collector) -> None:
    server = start_server(TELL_CONTEXT, OTEL_SERVICE_NAME="mine", K_SERVICE="not-mine", **collector.environ)
    headers = {"traceparent": f"cc-{TRACE_ID}-{PARENT_ID}-01-more", "tracestate": "a=1, b=2", "User-Agent": "tester/1"}
    answer = server.call(b"", headers=headers)
    (call,) = collector.calls()
    assert (call.trace_id.hex(), call.parent_span_id.hex(), call.trace_state) == (TRACE_ID, PARENT_ID, "a=1,b=2")
    assert attributes_of(call)["user_agent.original"] == "tester/1"
    traceparent, _, tracestate = answer.body.decode().strip().partition(" ")
    assert re.fullmatch(f"00-{TRACE_ID}-[0-9a-f]{{16}}-01", traceparent)
    assert tracestate == "a=1,b=2"
    assert collector.resources()[0]["service.name"] == "mine"


def test_an_unsampled_call_is_not_sent_and_the_script_knows_it(start_server: StartServer, collector: Collector) -> None:
    server = start_server(TELL_CONTEXT, program=changed_program(PATIENT_STOP, None), **collector.environ)
    answer = server.call(b"", headers={"traceparent": UNSAMPLED})
    assert re.fullmatch(f"00-{TRACE_ID}-[0-9a-f]{{16}}-00 \n", answer.body.decode())
    server.call(b"", headers={"X-Call-Id": "sampled"})
    server.stop()
    (call,) = collector.calls()
    assert attributes_of(call)["faas.invocation_id"] == "sampled"


def test_the_sampler_can_be_chosen(start_server: StartServer, collector: Collector) -> None:
    environ = collector.environ | {"OTEL_TRACES_SAMPLER": "parentbased_always_off"}
    server = start_server(TELL_CONTEXT, program=changed_program(PATIENT_STOP, None), **environ)
    server.call(b"")
    server.call(b"", headers={"traceparent": TRACEPARENT})
    server.stop()
    (call,) = collector.calls()
    assert call.trace_id.hex() == TRACE_ID


@pytest.mark.parametrize("good", [0, 1])
def test_a_sampler_that_raises_harms_no_call(collector: Collector, monkeypatch: pytest.MonkeyPatch, good: int) -> None:
    """A user may install a sampler beside the SDK, and choose it with OTEL_TRACES_SAMPLER."""
    for name, value in collector.environ.items():
        monkeypatch.setenv(name, value)
    recording = otel.start(collector.environ, "a")
    assert isinstance(recording, otel_spans.Recording)
    left = good

    def should_sample(*_: object, **__: object) -> SamplingResult:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError("sampler")
        return SamplingResult(Decision.RECORD_AND_SAMPLE)

    sampler = recording._provider.sampler
    monkeypatch.setattr(recording._tracer, "sampler", Mock(wraps=sampler, should_sample=should_sample))
    trace = recording.call("POST", "/", CIMultiDict({"traceparent": TRACEPARENT}))
    with trace.phase("run script") as phase:
        assert trace.variables["TRACEPARENT"].split("-")[1] == TRACE_ID
        phase.process_ended(0, None)
    trace.end(200)
    asyncio.run(recording.stop())


def test_an_invalid_traceparent_begins_a_new_trace(start_server: StartServer, collector: Collector) -> None:
    server = start_server(TELL_CONTEXT, **collector.environ)
    answer = server.call(b"", headers={"traceparent": f"00-{TRACE_ID}-{'0' * 16}-01", "tracestate": "a=1"})
    (call,) = collector.calls()
    assert call.trace_id.hex() != TRACE_ID
    assert call.parent_span_id == b""
    assert re.fullmatch(f"00-{call.trace_id.hex()}-[0-9a-f]{{16}}-0[13] \n", answer.body.decode())


def test_each_call_of_a_connection_is_a_trace_of_its_own(start_server: StartServer, collector: Collector) -> None:
    server = start_server(TELL_CONTEXT, **collector.environ)
    one = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    server.raw(one + one + one.replace(b"Host: x", b"Host: x\r\nConnection: close"))
    calls = collector.calls(3)
    assert len({call.trace_id for call in calls}) == 3
    assert {call.parent_span_id for call in calls} == {b""}


def test_calls_at_the_same_time_do_not_mix(start_server: StartServer, collector: Collector) -> None:
    server = start_server(TELL_CONTEXT, max_inflight="4", **collector.environ)
    trace_ids = [f"{number:032x}" for number in range(1, 17)]

    def told(trace_id: str) -> str:
        return server.call(b"", headers={"traceparent": f"00-{trace_id}-{PARENT_ID}-01"}).body.decode()

    with ThreadPoolExecutor(8) as pool:
        answers = dict(zip(trace_ids, pool.map(told, trace_ids), strict=True))
    for call in collector.calls(len(trace_ids)):
        until(lambda: len(collector.children(call)) == len(PHASES), "all phases")  # noqa: B023
        assert is_named_by(answers[call.trace_id.hex()].strip(), collector.children(call)[2])


def test_a_failed_script(start_server: StartServer, collector: Collector) -> None:
    server = start_server("exit 3", **collector.environ)
    server.call(b"")
    (call,) = collector.calls()
    assert call.status.code == Status.STATUS_CODE_ERROR
    assert call.status.message == "the script ended with exit code 3"
    expected = {"http.response.status_code": 500, "error.type": "failed", "process.exit.code": 3}
    assert expected.items() <= attributes_of(call).items()
    *_, run = collector.children(call)
    assert (run.name, run.status.code) == ("run script", Status.STATUS_CODE_ERROR)
    assert {"process.exit.code": 3, "error.type": "exit code 3"}.items() <= attributes_of(run).items()


def test_a_classic_function_takes_its_input_while_it_runs(start_server: StartServer, collector: Collector) -> None:
    server = start_server(fprocess="sh -c 'cat >&2; exit 3'", **collector.environ)
    assert server.call(b"hello").status == 500
    (call,) = collector.calls()
    children = collector.children(call)
    assert [phase.name for phase in children] == ["wait for a place", "run function", "hand over answer"]
    assert attributes_of(children[1])["process.exit.code"] == 3
    assert (call.status.code, attributes_of(call)["error.type"]) == (Status.STATUS_CODE_ERROR, "failed")
    assert "exit code 3" in call.status.message


def test_a_cloud_event_is_named(start_server: StartServer, collector: Collector) -> None:
    server = start_server("echo hi", **collector.environ)
    event = {"ce-specversion": "1.0", "ce-id": "A-1", "ce-source": "/camera", "ce-type": "picture.taken"}
    assert server.call(b"", headers=event).status == 200
    (call,) = collector.calls()
    expected = {
        "cloudevents.event_id": "A-1",
        "cloudevents.event_source": "/camera",
        "cloudevents.event_type": "picture.taken",
    }
    assert expected.items() <= attributes_of(call).items()


def test_a_script_that_is_killed(start_server: StartServer, collector: Collector) -> None:
    server = start_server("kill -SEGV $$", **collector.environ)
    server.call(b"")
    (call,) = collector.calls()
    assert {"error.type": "killed", "watchdog.signal": "SIGSEGV"}.items() <= attributes_of(call).items()
    assert attributes_of(collector.children(call)[-1])["watchdog.signal"] == "SIGSEGV"


def test_a_fault_of_the_caller_is_not_an_error_of_the_server(start_server: StartServer, collector: Collector) -> None:
    server = start_server("echo hi", WATCHDOG_AUTH_TOKEN="right", **collector.environ)
    right = {"Authorization": "Bearer right"}
    assert server.call(b"", headers={"Authorization": "Bearer never-told"}).status == 401
    assert server.call(b"QUJD!", headers=right).status == 400
    unauthorized, bad = collector.calls(2)
    for call, status in ((unauthorized, 401), (bad, 400)):
        assert call.status.code == Status.STATUS_CODE_UNSET
        assert attributes_of(call)["http.response.status_code"] == status
    assert collector.children(unauthorized) == []
    (phase,) = collector.children(bad)
    assert (phase.name, phase.status.code) == ("take in input", Status.STATUS_CODE_ERROR)
    assert attributes_of(phase)["error.type"] == "BadInput"
    assert attributes_of(bad)["watchdog.outcome"] == "bad_input"
    assert b"never-told" not in b"".join(collector.bodies)
    assert b"Bearer" not in b"".join(collector.bodies)


def test_a_caller_that_disconnects(start_server: StartServer, collector: Collector) -> None:
    server = start_server("echo started; sleep 60", **collector.environ)
    with server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        server.event("started")
    (call,) = collector.calls()
    assert {"http.response.status_code": 499, "watchdog.outcome": "caller_gone"}.items() <= attributes_of(call).items()
    assert collector.children(call)[-1].name == "run script"


def test_probes_are_not_calls(start_server: StartServer, collector: Collector, free_port: int) -> None:
    server = start_server(
        "echo hi",
        program=changed_program(PATIENT_STOP, None),
        WATCHDOG_METRICS_PORT=str(free_port),
        healthcheck_interval="0",
        **collector.environ,
    )
    for path in ("/_/health", "/_/ready"):
        assert server.call(None, path, "GET").status == 200
    assert server.call(None, "/metrics", "GET", port=free_port).status == 200
    assert server.call(b"").status == 200
    server.stop()
    collector.calls(1)
    assert {span.name for span in collector.spans()} == {"POST", *PHASES}


def test_what_is_not_utf_8_does_not_keep_other_spans_back(start_server: StartServer, collector: Collector) -> None:
    server = start_server("echo hi", **collector.environ)
    server.raw(
        b"POST /%ff%00 HTTP/1.1\r\nHost: x\r\nUser-Agent: \xff" + b"a" * 5000 + b"\r\n"
        b"Connection: close\r\nContent-Length: 0\r\n\r\n"
    )
    (call,) = collector.calls()
    assert attributes_of(call)["user_agent.original"].startswith("\\udcffaaa")
    assert len(attributes_of(call)["user_agent.original"]) < 1100


# ---- a collector that is not there, hangs, or refuses


def test_the_last_spans_are_sent_at_a_stop(start_server: StartServer, collector: Collector) -> None:
    environ = collector.environ | {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    server = start_server("echo hi", program=changed_program(PATIENT_STOP, None), **environ)
    server.call(b"")
    assert server.stop() == 0
    (call,) = collector.calls()
    assert len(collector.children(call)) == len(PHASES)
    assert [event["event"] for event in server.logs if event["logger"] == "tracing"] == []


def test_a_collector_that_hangs_delays_neither_calls_nor_the_end(
    start_server: StartServer, collector: Collector
) -> None:
    collector.hangs = True
    server = start_server("echo hi", **(collector.environ | {"OTEL_EXPORTER_OTLP_TIMEOUT": "3600"}))
    assert server.call(b"").status == 200
    assert collector.was_asked.wait(RunningServer.patience_s)
    for _ in range(20):
        assert server.call(b"").status == 200
    assert server.stop() == 0
    assert any("spans of the last calls are lost" in event["event"] for event in server.logs)


def test_a_collector_that_is_not_there_is_reported_once(start_server: StartServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    environ = environ_for(f"http://user:never-told@127.0.0.1:{port}/?token=never-told")
    server = start_server("echo hi", **environ)
    for _ in range(20):
        assert server.call(b"").status == 200
    assert server.stop() == 0
    told = [event for event in server.logs if event["logger"] in ("tracing", "urllib3") or "exception" in event]
    assert [event["level"] for event in told] in (["warning"], ["warning", "warning"])  # one more at the stop
    assert "Connection refused" in told[0]["event"]
    assert "never-told" not in json.dumps(server.logs)


def test_a_collector_that_refuses_is_reported_once(start_server: StartServer) -> None:
    with collecting(status=400) as collector:
        server = start_server("echo hi", **collector.environ)
        for number in range(5):
            assert server.call(b"").status == 200
            until(lambda: len(collector.bodies) > number, "the collector to be asked")  # noqa: B023
        assert server.stop() == 0
    told = [event for event in server.logs if event["logger"] == "tracing"]
    assert len(told) == 1
    assert "spans may be lost" in told[0]["event"]
    assert "400" in told[0]["event"]


def test_what_the_sdk_says_is_counted_while_it_is_silenced(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = otel_log._Seldom()
    now_s = 1000.0
    monkeypatch.setattr("watchdog.telemetry.otel_log.time.monotonic", lambda: now_s)

    def say(text: str, *values: object) -> None:
        handler.emit(logging.LogRecord("opentelemetry", logging.ERROR, __file__, 1, text, values, None))

    for number in range(10):
        say("no collector at %s, try %d", "http://user:secret@host/v1?key=secret", number)
    now_s += 61
    say("%d", "no number")
    assert [record.getMessage() for record in caplog.records] == [
        "spans may be lost: no collector at http://…@host/v1?…, try 0",
        "spans may be lost: %d (and 9 such messages before)",
    ]
