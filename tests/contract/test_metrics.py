"""The content of ``/metrics``: the names of the classic watchdog, each invocation, and the form for Prometheus."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from running_server import RunningServer, StartServer, until

import watchdog
from watchdog.invocation.outcome import OUTCOMES

KINDS_OF_THE_CLASSIC_WATCHDOG = {
    "http_requests": ("counter", {"code", "method"}),
    "http_request_duration_seconds": ("histogram", {"code", "method"}),
    "http_requests_in_flight": ("gauge", set()),
}


class Scrape:
    """One parsed answer of ``/metrics``."""

    def __init__(self, server: RunningServer, port: int) -> None:
        answer = server.call(None, "/metrics", "GET", port=port)
        assert answer.status == 200
        self.content_type = answer.headers["Content-Type"]
        self.text = answer.body.decode()
        self.families: dict[str, Metric] = {each.name: each for each in text_string_to_metric_families(self.text)}

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of a sample; None if there is no such sample."""
        for family in self.families.values():
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        return None


def lint(text: str) -> list[str]:
    """Return the violations of Prometheus' conventions: prometheus.io/docs/practices/naming."""
    problems = []
    helped = re.findall(r"^# HELP (\S+) \S", text, re.MULTILINE)
    kinds = re.findall(r"^# TYPE (\S+) (\w+)", text, re.MULTILINE)
    typed = [name for name, _ in kinds]
    for name, kind in kinds:
        if kind == "counter" and not name.endswith("_total"):
            problems.append(f"{name}: a counter without _total")
    problems += [f"{name}: no help" for name in set(typed) - set(helped)]
    problems += [f"{name}: told twice" for name in typed if typed.count(name) > 1]
    series = [line.rsplit(" ", 1)[0] for line in text.splitlines() if line and not line.startswith("#")]
    problems += [f"{line}: told twice" for line in set(series) if series.count(line) > 1]
    for family in text_string_to_metric_families(text):
        if family.type == "unknown":
            problems.append(f"{family.name}: no type")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", family.name):
            problems.append(f"{family.name}: is no name in lower case with underscores")
        if re.search(r"_(ms|millis|milliseconds|minutes|kb|kilobytes|mib|percent)(_|$)", family.name):
            problems.append(f"{family.name}: is no base unit")
        if re.search(r"_(total|count|sum|bucket)$", family.name):
            problems.append(f"{family.name}: a {family.type} with another type's suffix")
        for sample in family.samples:
            if set(sample.labels) & {"instance", "job"}:
                problems.append(f"{sample.name}: a label that the scraper gives")
    return problems


@pytest.fixture
def metrics_port(free_port: int) -> int:
    return free_port


def test_the_names_of_the_classic_watchdog(start_server: StartServer, metrics_port: int) -> None:
    server = start_server("exit ${Http_X_Exit:-0}", WATCHDOG_METRICS_PORT=str(metrics_port))
    for method in ("POST", "GET", "PUT", "PATCH", "DELETE"):
        server.call(b"" if method != "GET" else None, method=method)
    server.call(b"", headers={"X-Exit": "3"})
    until(lambda: Scrape(server, metrics_port).value("http_requests_in_flight") == 0, "the calls to end")
    scrape = Scrape(server, metrics_port)
    assert scrape.content_type == "text/plain; version=0.0.4; charset=utf-8"
    for name, (kind, labels) in KINDS_OF_THE_CLASSIC_WATCHDOG.items():
        family = scrape.families[name]
        assert family.type == kind
        assert {label for sample in family.samples for label in sample.labels} - {"le"} == labels
    for method in ("POST", "GET", "PUT", "PATCH", "DELETE"):
        assert scrape.value("http_requests_total", code="200", method=method) == 1
        assert scrape.value("http_request_duration_seconds_count", code="200", method=method) == 1
    assert scrape.value("http_requests_total", code="500", method="POST") == 1


def test_prometheus_has_nothing_against_it(start_server: StartServer, metrics_port: int) -> None:
    server = start_server("exit ${Http_X_Exit:-0}", WATCHDOG_METRICS_PORT=str(metrics_port))
    assert lint(Scrape(server, metrics_port).text) == []
    server.call(b"")
    server.call(b"", headers={"X-Exit": "3"})
    assert lint(Scrape(server, metrics_port).text) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("# TYPE a counter\na_total 1\n", "a: no help"),
        ("# HELP a A.\na 1\n", "a: no type"),
        ("# HELP a A.\n# TYPE a counter\na 1\n", "a: a counter without _total"),
        (
            "# HELP a_total A.\n# TYPE a_total gauge\na_total 1\n",
            "a_total: a gauge with another type's suffix",
        ),
        ("# HELP a_ms A.\n# TYPE a_ms gauge\na_ms 1\n", "a_ms: is no base unit"),
        ("# HELP aB A.\n# TYPE aB gauge\naB 1\n", "aB: is no name in lower case with underscores"),
        ('# HELP a A.\n# TYPE a gauge\na{job="x"} 1\n', "a: a label that the scraper gives"),
        ("# HELP a A.\n# TYPE a gauge\na 1\na 2\n", "a: told twice"),
    ],
)
def test_the_check_sees_what_is_wrong(text: str, problem: str) -> None:
    assert problem in lint(text)


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not here (Debian's package prometheus has it)"
)
def test_promtool_has_nothing_against_it(start_server: StartServer, metrics_port: int) -> None:
    server = start_server("exit ${Http_X_Exit:-0}", WATCHDOG_METRICS_PORT=str(metrics_port))
    server.call(b"")
    server.call(b"", headers={"X-Exit": "3"})
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=Scrape(server, metrics_port).text,
        capture_output=True,
        text=True,
        timeout=RunningServer.patience_s,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# This program uses more memory than the script below. Then it executes the server in the same process.
AFTER_A_LARGE_PROGRAM = (
    sys.executable,
    "-c",
    "import os, sys; data = bytearray(400 << 20); os.execv(sys.argv[1], sys.argv[1:])",
)


@pytest.mark.guard("own-peak")
def test_peak_memory_is_known_although_a_large_program_executed_the_server(start_server: StartServer) -> None:
    server = start_server(f"{sys.executable} -c 'bytearray(320 << 20)'", prefix=AFTER_A_LARGE_PROGRAM)
    assert server.call(b"").status == 200
    assert 320 << 20 < (server.event("invocation ended")["peak_rss_bytes"] or 0) < 400 << 20


def test_an_invocation_is_counted_with_its_times_and_sizes(start_server: StartServer, metrics_port: int) -> None:
    # Much more memory than the server has. A smaller peak cannot be measured.
    script = f"""set -e
        {sys.executable} -c 'data = bytearray(320 << 20); sum(range(1_000_000))'
        printf 1234567 > "$TMP_OUTPUT_DIR/out"
    """
    server = start_server(script, WATCHDOG_METRICS_PORT=str(metrics_port))
    before = Scrape(server, metrics_port)
    assert before.value("watchdog_invocations_total", outcome="ok") == 0
    answer = server.call(b"aGVsbG8=", "/?output=raw")
    assert answer.body == b"1234567"
    until(lambda: Scrape(server, metrics_port).value("watchdog_invocations_total", outcome="ok"), "the call to end")
    scrape = Scrape(server, metrics_port)
    assert scrape.value("watchdog_invocations_total", outcome="ok") == 1
    assert scrape.value("watchdog_invocation_duration_seconds_count", outcome="ok") == 1
    assert (scrape.value("watchdog_invocation_duration_seconds_sum", outcome="ok") or 0) > 0
    assert scrape.value("watchdog_queue_wait_seconds_count") == 1
    assert scrape.value("watchdog_input_bytes_total") == 5
    assert scrape.value("watchdog_output_bytes_total") == 7
    assert (scrape.value("watchdog_script_cpu_seconds_total") or 0) > 0
    assert scrape.value("watchdog_script_peak_rss_bytes_count") == 1
    assert (scrape.value("watchdog_script_peak_rss_bytes_sum") or 0) > 256 << 20
    assert scrape.value("watchdog_script_peak_rss_bytes_bucket", le=str(float(256 << 20))) == 0
    assert scrape.value("watchdog_script_peak_rss_bytes_bucket", le="+Inf") == 1


def test_what_did_not_come_to_run_is_counted_but_took_no_time(start_server: StartServer, metrics_port: int) -> None:
    server = start_server("echo hi", WATCHDOG_METRICS_PORT=str(metrics_port))
    assert server.call(b"QUJD!").status == 400
    until(lambda: Scrape(server, metrics_port).value("watchdog_invocations_total", outcome="bad_input"), "its end")
    scrape = Scrape(server, metrics_port)
    assert scrape.value("watchdog_invocations_total", outcome="bad_input") == 1
    assert scrape.value("watchdog_invocation_duration_seconds_count", outcome="bad_input") is None
    assert scrape.value("watchdog_queue_wait_seconds_count") == 0


def test_every_outcome_is_counted_from_zero(start_server: StartServer, metrics_port: int) -> None:
    server = start_server("echo hi", WATCHDOG_METRICS_PORT=str(metrics_port))
    scrape = Scrape(server, metrics_port)
    told = {sample.labels["outcome"]: sample.value for sample in scrape.families["watchdog_invocations"].samples}
    assert told == dict.fromkeys(OUTCOMES, 0.0)


@contextmanager
def one_that_runs(server: RunningServer, fifo: Path) -> Iterator[None]:
    """Make a call whose script runs until the end of this context. The script is ``cat`` of the FIFO."""
    caller = threading.Thread(target=server.call, args=(b"",))
    caller.start()
    with fifo.open("w"):  # this open waits until the script has opened the FIFO, too
        yield
    caller.join(RunningServer.patience_s)
    assert not caller.is_alive()


def test_places_and_calls_that_wait_for_one(start_server: StartServer, metrics_port: int, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    server = start_server(
        f'[ "$Http_Query" = quick ] || cat {fifo}', max_inflight="1", WATCHDOG_METRICS_PORT=str(metrics_port)
    )
    with one_that_runs(server, fifo):
        second = threading.Thread(target=server.call, args=(b"", "/?quick"))
        second.start()
        until(lambda: Scrape(server, metrics_port).value("watchdog_calls_waiting") == 1, "the second call to wait")
        scrape = Scrape(server, metrics_port)
        assert scrape.value("watchdog_places_taken") == 1
        assert scrape.value("watchdog_places_limit") == 1
        assert scrape.value("http_requests_in_flight") == 2
    second.join(RunningServer.patience_s)
    until(lambda: Scrape(server, metrics_port).value("http_requests_in_flight") == 0, "both calls to end")
    scrape = Scrape(server, metrics_port)
    assert scrape.value("watchdog_places_taken") == 0
    assert scrape.value("watchdog_calls_waiting") == 0
    assert scrape.value("watchdog_queue_wait_seconds_count") == 2


def test_a_call_that_got_no_place_is_in_the_waits(start_server: StartServer, metrics_port: int, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    server = start_server(
        f"cat {fifo}", "--queue-timeout", "200ms", max_inflight="1", WATCHDOG_METRICS_PORT=str(metrics_port)
    )
    with one_that_runs(server, fifo):
        assert server.call(b"", headers={"X-Call-Id": "in-vain"}).status == 429
        event = server.event("invocation ended", call_id="in-vain")
        assert event["outcome"] == "overloaded"
        assert event["queue_wait_s"] > 0
        waited_s = Scrape(server, metrics_port).value("watchdog_queue_wait_seconds_sum")
        assert waited_s is not None
        rounding_s = 1e-6  # events of the log
        assert waited_s >= event["queue_wait_s"] - rounding_s


def test_callers_make_no_series(start_server: StartServer, metrics_port: int) -> None:
    """Labels have few values, whatever callers send."""
    server = start_server("echo hi", WATCHDOG_METRICS_PORT=str(metrics_port))
    server.call(b"")
    until(lambda: Scrape(server, metrics_port).value("http_requests_in_flight") == 0, "the call to end")
    before = Scrape(server, metrics_port)
    for method in ("OPTIONS", "TRACE", "PROPFIND"):
        assert server.call(None, method=method).status == 405
    assert server.call(None, method="BREW").status == 400
    server.raw(b"NO HTTP\r\n\r\n")
    for path in ("/_/health", "/_/ready"):
        assert server.call(None, path, "GET").status == 200
    for number in range(20):
        server.call(b"", f"/{number}?{number}", headers={"User-Agent": f"agent {number}", "X-Call-Id": f"id-{number}"})
    until(lambda: Scrape(server, metrics_port).value("http_requests_in_flight") == 0, "the calls to end")
    after = Scrape(server, metrics_port)
    assert after.value("http_requests_total", code="200", method="POST") == 21

    def series(scrape: Scrape) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
        return {(s.name, tuple(sorted(s.labels.items()))) for f in scrape.families.values() for s in f.samples}

    assert series(after) == series(before)


@pytest.mark.executed
def test_the_server_itself(start_server: StartServer, metrics_port: int) -> None:
    server = start_server("echo hi", WATCHDOG_METRICS_PORT=str(metrics_port))
    scrape = Scrape(server, metrics_port)
    assert scrape.value("watchdog_build_info", version=watchdog.__version__) == 1
    resident_bytes = scrape.value("process_resident_memory_bytes")
    assert resident_bytes is not None
    assert 0 < resident_bytes <= server.memory_mib("VmHWM") * 1024 * 1024
    assert (scrape.value("process_open_fds") or 0) > 3
    assert (scrape.value("process_start_time_seconds") or 0) > 1e9
    assert scrape.value("process_cpu_seconds_total") is not None


def test_each_metric_is_explained(start_server: StartServer, metrics_port: int) -> None:
    # Only such a function has the metrics of workers.
    worker = "echo ready >&4; read -r call <&3"
    server = start_server(worker, WATCHDOG_METRICS_PORT=str(metrics_port), WATCHDOG_WARM="1")
    page = (Path(__file__).parent.parent.parent / "docs" / "reference" / "metrics.md").read_text()
    families = Scrape(server, metrics_port).families.values()
    names = {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    assert names == {name for name in re.findall(r"`(\w+)`", page) if name in names}
    rows = re.findall(r"^\| `((?:http|watchdog|process)_.*?) \| \w", page, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"\w+", row)} == names


def test_nothing_else_is_at_the_port(start_server: StartServer, metrics_port: int) -> None:
    server = start_server("echo hi", WATCHDOG_METRICS_PORT=str(metrics_port))
    assert server.call(None, "/", "GET", port=metrics_port).status == 404
    assert server.call(b"", "/metrics", port=metrics_port).status == 405
