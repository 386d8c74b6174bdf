"""What is counted, and its text for Prometheus.

Counting is plain arithmetic, so that a call pays next to nothing and prometheus-client is imported only
when somebody asks for the text: it takes longer to import than a small script to run.

The names and labels of the first three are those of OpenFaaS's classic watchdog (its ``metrics`` package).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.core import Metric

# The default buckets of the Go client, which the classic watchdog uses; then longer ones for inference.
_DURATION_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Histogram:
    """Counts of observations up to each bound, and their sum."""

    def __init__(self, bounds: tuple[float, ...] = _DURATION_BUCKETS_S) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts with their upper bounds as text, ``+Inf`` last."""
        total = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            rows.append((bound, total))
        return rows


class Metrics:
    """All counters of one server.

    Args:
        places: tells the places taken, the calls waiting and the limit of places (0 is none), when asked.
    """

    def __init__(self, places: Callable[[], tuple[int, int, int]]) -> None:
        self._places = places
        self.requests_in_flight = 0
        self._requests: defaultdict[tuple[str, str], Histogram] = defaultdict(Histogram)
        self._invocations: defaultdict[str, Histogram] = defaultdict(Histogram)
        self._queue_wait = Histogram()
        self._input_bytes = 0
        self._output_bytes = 0
        self._cpu_s = 0.0
        self._largest_rss_bytes = 0

    def request_answered(self, *, code: int, method: str, duration_s: float) -> None:
        self._requests[str(code), method].observe(duration_s)

    def invocation_ended(
        self,
        *,
        outcome: str,
        duration_s: float,
        queue_wait_s: float,
        input_bytes: int,
        output_bytes: int,
        cpu_s: float,
        peak_rss_bytes: int,
    ) -> None:
        self._invocations[outcome].observe(duration_s)
        self._queue_wait.observe(queue_wait_s)
        self._input_bytes += input_bytes
        self._output_bytes += output_bytes
        self._cpu_s += cpu_s
        self._largest_rss_bytes = max(self._largest_rss_bytes, peak_rss_bytes)

    def exposition(self) -> tuple[bytes, str]:
        """The text for Prometheus and its content type."""
        from prometheus_client import CollectorRegistry, exposition

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return exposition.generate_latest(registry), exposition.CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        """The families, as prometheus-client's registry asks for them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        requests = CounterMetricFamily("http_requests", "Calls answered.", labels=["code", "method"])
        request_seconds = HistogramMetricFamily(
            "http_request_duration_seconds",
            "Time from headers read to answer sent.",
            labels=["code", "method"],
        )
        for labels, histogram in list(self._requests.items()):
            requests.add_metric(list(labels), histogram.buckets()[-1][1])
            request_seconds.add_metric(list(labels), histogram.buckets(), histogram.sum)
        yield requests
        yield request_seconds
        yield GaugeMetricFamily("http_requests_in_flight", "Calls being answered now.", self.requests_in_flight)

        runs = HistogramMetricFamily(
            "watchdog_invocation_duration_seconds",
            "Run time of the script, by how it ended.",
            labels=["outcome"],
        )
        for outcome, histogram in list(self._invocations.items()):
            runs.add_metric([outcome], histogram.buckets(), histogram.sum)
        yield runs
        yield HistogramMetricFamily(
            "watchdog_queue_wait_seconds",
            "Time that invocations waited for a place.",
            buckets=self._queue_wait.buckets(),
            sum_value=self._queue_wait.sum,
        )
        yield CounterMetricFamily("watchdog_input_bytes", "Decoded input of invocations.", self._input_bytes)
        yield CounterMetricFamily("watchdog_output_bytes", "Bytes of answers sent.", self._output_bytes)
        yield CounterMetricFamily("watchdog_script_cpu_seconds", "CPU time of scripts.", self._cpu_s)
        yield GaugeMetricFamily(
            "watchdog_script_largest_rss_bytes",
            "Largest peak memory of a script so far.",
            self._largest_rss_bytes,
        )
        taken, waiting, limit = self._places()
        yield GaugeMetricFamily("watchdog_places_taken", "Invocations running now.", taken)
        yield GaugeMetricFamily("watchdog_places_limit", "max_inflight; 0 is no limit.", limit)
        yield GaugeMetricFamily("watchdog_calls_waiting", "Calls waiting for a place now.", waiting)
