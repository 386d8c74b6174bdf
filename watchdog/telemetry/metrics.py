"""Count calls, and make the text of the metrics for Prometheus.

Counting is plain arithmetic, so it costs a call almost nothing. prometheus-client is imported only at the first request
for the text, because the import takes longer than a small script.

The first three metrics have the names and labels of OpenFaaS's classic watchdog (its ``metrics`` package), and
``process_*`` come from prometheus-client. The docs' table of metrics is made from the texts here (``make docs``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from .. import __version__

if TYPE_CHECKING:
    from prometheus_client.core import Metric

# The default buckets of the Go client, which the classic watchdog uses, and longer ones for inference.
_DURATION_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
# A small interpreter loads in a tenth of a second, the weights of a large network in minutes.
_LOAD_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
# 16 MiB to 64 GiB, each twice as large as the one before: the usual sizes of a container's memory.
_MEMORY_BUCKETS_BYTES = tuple(float(1 << power) for power in range(24, 37))
# Every scraper reads text of this version. Later versions only add names that are not ASCII, and all names here are
# ASCII.
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """The numbers of observed values up to each bound, and the sum of the values."""

    def __init__(self, bounds: tuple[float, ...] = _DURATION_BUCKETS_S) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Return the upper bounds as text, ``+Inf`` last, each with its cumulative count."""
        total = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            rows.append((bound, total))
        return rows


class Callers(NamedTuple):
    """The resources of the server that callers use now.

    ``bodies_awaited``: calls whose bodies have not fully arrived. ``answers``: answers that are being sent.
    ``answer_bytes``: the bytes of these answers in ``tmp_dir``. ``given_up``: slow callers whose calls were ended to
    make room for others, by direction. ``idle_connections``: connections without a request. ``closed_connections``:
    idle connections that were closed to free descriptors.
    """

    bodies_awaited: int = 0
    answers: int = 0
    answer_bytes: int = 0
    given_up: Mapping[str, int] = {}
    idle_connections: int = 0
    closed_connections: int = 0


class Metrics:
    """All counters of one server.

    Args:
        places: returns the numbers of places taken and of calls waiting, and the limit of places (0 means no limit).
        outcomes: the outcomes that are counted from 0. Without a 0 before the first failure, Prometheus does not see
            this failure as an increase.
        callers: returns the resources that callers use now.
        unattributed: returns the number of processes that do not certainly belong to one invocation.
    """

    def __init__(
        self,
        places: Callable[[], tuple[int, int, int]],
        outcomes: Iterable[str] = (),
        callers: Callable[[], Callers] = Callers,
        unattributed: Callable[[], int] = lambda: 0,
    ) -> None:
        self._places = places
        self._callers = callers
        self._unattributed = unattributed
        self.requests_in_flight = 0
        self._requests: defaultdict[tuple[str, str], Histogram] = defaultdict(Histogram)
        self._invocations: defaultdict[str, int] = defaultdict(int, dict.fromkeys(outcomes, 0))
        self._runs: defaultdict[str, Histogram] = defaultdict(Histogram)
        self._queue_wait = Histogram()
        self._input_bytes = 0
        self._output_bytes = 0
        self._cpu_s = 0.0
        self._peak_rss = Histogram(_MEMORY_BUCKETS_BYTES)
        self._transfers: dict[tuple[str, str, str], int] = {}
        self._transfer_bytes: dict[tuple[str, str], int] = {}
        self._workers: Callable[[], Mapping[str, int]] | None = None
        self._worker_loads = Histogram(_LOAD_BUCKETS_S)
        self._worker_restarts: dict[str, int] = {}

    def request_answered(self, *, code: int, method: str, duration_s: float) -> None:
        self._requests[str(code), method].observe(duration_s)

    def invocation_ended(
        self,
        *,
        outcome: str,
        duration_s: float | None,
        queue_wait_s: float | None,
        input_bytes: int,
        output_bytes: int,
        cpu_s: float,
        peak_rss_bytes: int | None,
    ) -> None:
        """Count an invocation.

        A time is None if the invocation did not reach that step. The peak is None if it is not known.
        """
        self._invocations[outcome] += 1
        if duration_s is not None:
            self._runs[outcome].observe(duration_s)
        if queue_wait_s is not None:
            self._queue_wait.observe(queue_wait_s)
        self._input_bytes += input_bytes
        self._output_bytes += output_bytes
        self._cpu_s += cpu_s
        if peak_rss_bytes is not None:
            self._peak_rss.observe(peak_rss_bytes)

    def expect_transfers(self, providers: Iterable[str]) -> None:
        """Count the transfers of these storage providers from 0."""
        for provider in providers:
            for direction in ("fetch", "store"):
                self._transfer_bytes[direction, provider] = 0
                for outcome in ("ok", "failed", "cancelled"):
                    self._transfers[direction, provider, outcome] = 0

    def transfer_ended(self, direction: str, provider: str, outcome: str, size_bytes: int) -> None:
        """Count the transfer of a file. ``size_bytes``: its size if the transfer succeeded, else 0."""
        key = direction, provider, outcome
        self._transfers[key] = self._transfers.get(key, 0) + 1
        self._transfer_bytes[direction, provider] = self._transfer_bytes.get((direction, provider), 0) + size_bytes

    def expect_workers(self, states: Callable[[], Mapping[str, int]], reasons: Iterable[str]) -> None:
        """Show the workers of a warm function, too.

        Args:
            states: returns the number of workers in each state.
            reasons: why a worker may be replaced, counted from 0.
        """
        self._workers = states
        self._worker_restarts = dict.fromkeys(reasons, 0)

    def worker_loaded(self, load_s: float) -> None:
        """Count a worker that has loaded."""
        self._worker_loads.observe(load_s)

    def worker_restarted(self, reason: str) -> None:
        """Count a worker that has ended and is replaced."""
        self._worker_restarts[reason] += 1

    def exposition(self) -> tuple[bytes, str]:
        """Return the text for Prometheus and its content type."""
        from prometheus_client import CollectorRegistry, exposition

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return exposition.generate_latest(registry), _CONTENT_TYPE

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families. prometheus-client's registry calls this."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        requests = CounterMetricFamily(
            "http_requests",
            "Calls answered. Code 499: the caller disconnected. A stream of events counts with its verdict's status.",
            labels=["code", "method"],
        )
        request_seconds = HistogramMetricFamily(
            "http_request_duration_seconds",
            "Time from the end of the headers to the end of the answer.",
            labels=["code", "method"],
        )
        for labels, histogram in list(self._requests.items()):
            requests.add_metric(list(labels), histogram.buckets()[-1][1])
            request_seconds.add_metric(list(labels), histogram.buckets(), histogram.sum)
        yield requests
        yield request_seconds
        yield GaugeMetricFamily(
            "http_requests_in_flight",
            "Calls that the server receives, keeps in the queue, runs or answers now.",
            self.requests_in_flight,
        )

        invocations = CounterMetricFamily("watchdog_invocations", "Invocations ended, by outcome.", labels=["outcome"])
        for outcome, count in list(self._invocations.items()):
            invocations.add_metric([outcome], count)
        yield invocations
        runs = HistogramMetricFamily(
            "watchdog_invocation_duration_seconds",
            "Run time of scripts, without calls whose script did not start.",
            labels=["outcome"],
        )
        for outcome, histogram in list(self._runs.items()):
            runs.add_metric([outcome], histogram.buckets(), histogram.sum)
        yield runs
        yield HistogramMetricFamily(
            "watchdog_queue_wait_seconds",
            "Time that calls waited for a place and for a worker, also calls that got none.",
            buckets=self._queue_wait.buckets(),
            sum_value=self._queue_wait.sum,
        )
        yield CounterMetricFamily("watchdog_input_bytes", "Bytes of inputs after decoding.", self._input_bytes)
        yield CounterMetricFamily("watchdog_output_bytes", "Bytes of answers after encoding.", self._output_bytes)
        yield CounterMetricFamily(
            "watchdog_script_cpu_seconds",
            "CPU time of scripts, and of the child processes for which they waited.",
            self._cpu_s,
        )
        yield HistogramMetricFamily(
            "watchdog_script_peak_rss_bytes",
            "Peak memory of scripts. A peak below the server's own memory cannot be measured and is left out. For warm "
            "functions: the memory of the worker's own process, without those that it starts.",
            buckets=self._peak_rss.buckets(),
            sum_value=self._peak_rss.sum,
        )
        transfers = CounterMetricFamily(
            "watchdog_transfers",
            "Files fetched from storages (fetch) and stored in them (store).",
            labels=["direction", "provider", "outcome"],
        )
        for names, count in list(self._transfers.items()):
            transfers.add_metric(list(names), count)
        yield transfers
        transferred = CounterMetricFamily(
            "watchdog_transfer_bytes",
            "Bytes of the files fetched from storages and stored in them.",
            labels=["direction", "provider"],
        )
        for pair, count in list(self._transfer_bytes.items()):
            transferred.add_metric(list(pair), count)
        yield transferred
        taken, waiting, limit = self._places()
        yield GaugeMetricFamily("watchdog_places_taken", "Invocations that run now.", taken)
        yield GaugeMetricFamily(
            "watchdog_places_limit", "Invocations that may run at the same time; 0 means no limit.", limit
        )
        yield GaugeMetricFamily("watchdog_calls_waiting", "Calls that wait for a place now.", waiting)
        yield GaugeMetricFamily(
            "watchdog_unattributed_processes",
            "Processes that became children of the server and do not certainly belong to one invocation. While there "
            "are such processes, the server uses no directory a second time.",
            self._unattributed(),
        )
        callers = self._callers()
        yield GaugeMetricFamily(
            "watchdog_bodies_awaited", "Calls whose body the server is waiting for now.", callers.bodies_awaited
        )
        yield GaugeMetricFamily(
            "watchdog_answers", "Calls whose script has ended and whose answer the server still sends.", callers.answers
        )
        yield GaugeMetricFamily(
            "watchdog_answer_bytes",
            "Bytes in tmp_dir of the inputs and outputs of calls whose answer the server still sends.",
            callers.answer_bytes,
        )
        given_up = CounterMetricFamily(
            "watchdog_callers_given_up",
            "Slow callers that the server refused (body) or cut off (answer) to make room for other calls.",
            labels=["direction"],
        )
        for direction, count in callers.given_up.items():
            given_up.add_metric([direction], count)
        yield given_up
        yield GaugeMetricFamily("watchdog_idle_connections", "Connections without a request.", callers.idle_connections)
        yield CounterMetricFamily(
            "watchdog_idle_connections_closed",
            "Idle connections closed because too few descriptors were free.",
            callers.closed_connections,
        )
        if self._workers is not None:
            yield from self._of_workers(self._workers())
        build = GaugeMetricFamily(
            "watchdog_build_info", "Always 1; the label has the version of the running server.", labels=["version"]
        )
        build.add_metric([__version__], 1)
        yield build
        yield from _of_this_process()

    def _of_workers(self, states: Mapping[str, int]) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        workers = GaugeMetricFamily("watchdog_workers", "Workers of a warm function, by state.", labels=["state"])
        for state, count in states.items():
            workers.add_metric([state], count)
        yield workers
        yield HistogramMetricFamily(
            "watchdog_worker_load_seconds",
            "Time from the start of a worker until it was ready, without loads that failed.",
            buckets=self._worker_loads.buckets(),
            sum_value=self._worker_loads.sum,
        )
        restarts = CounterMetricFamily(
            "watchdog_worker_restarts",
            "Workers that ended and were replaced, by reason.",
            labels=["reason"],
        )
        for reason, count in list(self._worker_restarts.items()):
            restarts.add_metric([reason], count)
        yield restarts


def _of_this_process() -> list[Metric]:
    """Return prometheus-client's metrics of this process: memory, CPU time, descriptors, start.

    Some or all of them are missing if the container's /proc cannot be read.
    """
    from prometheus_client import ProcessCollector

    try:
        return list(ProcessCollector(registry=None).collect())
    except (OSError, ValueError):  # prometheus-client cannot read this /proc
        return []
