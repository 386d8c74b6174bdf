"""Calculate the number of pods and the waits for docs/explanation/scaling.md, and compare them with a real server.

Run it from the project's root: ``.venv/bin/python benchmarks/queueing.py``. It prints Markdown. ``--measure`` adds a
real server on the loopback interface, which takes about a minute. Without it nothing is started.

The model is M/M/c: calls arrive at random (Poisson), a run takes a random time (exponential), and c places serve one
queue in order. Then Erlang's C formula gives the wait. If all runs take the same time, calls wait about half as long.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from running_server import RunningServer

PERCENTILE = 0.99
# For the measurement: a run takes 0.2 s, and there are four places. The rate of calls is 70 % of the possible rate.
PLACES = 4
SLEEP_S = 0.2
UTILISATION = 0.7
STARTS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=100, metavar="R", help="calls a second (100)")
    parser.add_argument("--run", type=float, default=2, metavar="S", help="seconds of one run (2)")
    parser.add_argument("--utilisation", type=float, default=0.7, metavar="U", help="share of the places in use (0.7)")
    parser.add_argument(
        "--burst-from", type=int, default=8, metavar="PODS", help="pods when the full rate begins suddenly (8)"
    )
    parser.add_argument("--max-pods", type=int, default=150, metavar="PODS", help="max-scale (150)")
    parser.add_argument("--start", type=float, default=10, metavar="S", help="seconds from call to new pods (10)")
    parser.add_argument("--measure", action="store_true", help="measure a real server, too")
    parser.add_argument("--seconds", type=float, default=40, metavar="S", help="seconds of the measurement (40)")
    given = parser.parse_args()
    steady(given.rate, given.run, given.utilisation)
    print()
    burst(given.rate, given.run, given.utilisation, given.burst_from, given.max_pods, given.start)
    if given.measure:
        print()
        with tempfile.TemporaryDirectory() as directory:
            measure(Path(directory), given.seconds)


# ---- the calculation


def erlang_c(places: int, offered: float) -> float:
    """Return the probability that a call waits, for ``offered`` calls in flight on average (rate x run)."""
    blocked = 1.0
    for count in range(1, places + 1):
        blocked = offered * blocked / (count + offered * blocked)
    return blocked / (1 - offered / places * (1 - blocked))


def waits_s(places: int, rate: float, run_s: float) -> tuple[float, float, float]:
    """Return the probability of a wait, the mean wait of all calls, and the wait that only 1 % of the calls exceed."""
    offered = rate * run_s
    probability = erlang_c(places, offered)
    spare = places / run_s - rate
    exceeded = 1 - PERCENTILE
    return probability, probability / spare, max(0.0, math.log(probability / exceeded) / spare)


def steady(rate: float, run_s: float, utilisation: float) -> None:
    in_flight = rate * run_s
    print(
        f"{rate:g} calls/s x {run_s:g} s = {in_flight:g} in flight (Little's law); the target is {utilisation:.0%}.\n"
    )
    one_queue = "one queue: waits | mean | 99 % under"
    queue_a_pod = "a queue a pod: waits | mean | 99 % under"
    print(f"| places a pod | pods | places | {one_queue} | {queue_a_pod} |")
    print("|---|---|---|---|---|---|---|---|---|")
    for places in (1, 2, 4, 8):
        pods = math.ceil(in_flight / (places * utilisation))
        cells = []
        for count, share in ((pods * places, rate), (places, rate / pods)):
            probability, mean_s, most_s = waits_s(count, share, run_s)
            cells += [f"{probability:.2%}", f"{mean_s:.2f} s", f"{most_s:.1f} s"]
        print(f"| {places} | {pods} | {pods * places} | " + " | ".join(cells) + " |")


def burst(
    rate: float, run_s: float, utilisation: float, pods: int, max_pods: int, start_s: float, places: int = 4
) -> None:
    """Print what happens if the full rate begins suddenly, with ``pods`` pods.

    In this state the queue is not in balance, so the calculation treats calls as a continuous flow.
    """
    served = pods * places / run_s
    waiting = max(0.0, (rate - served) * start_s)
    seen = waiting + min(rate * run_s, pods * places)
    wanted = math.ceil(seen / (places * utilisation))
    got = min(max_pods, wanted)
    grown = got * places / run_s
    print(f"{rate:g} calls/s at once on {pods} pods of {places} places, new pods after {start_s:g} s:\n")
    print("| | |\n|---|---|")
    print(f"| rate until new pods are ready | {served:g} calls/s |")
    print(f"| waiting calls when new pods are ready | {waiting:g} calls |")
    print(f"| calls in flight as the autoscaler counts them, with the waiting calls | {seen:g} |")
    print(f"| pods that the autoscaler wants, and pods that `max-scale` allows | {wanted}, {got} |")
    print(f"| time until the queue is empty | {waiting / (grown - rate):.1f} s more |")
    print(f"| the longest wait | {waiting / rate:.1f} s |")


# ---- the measurement


def measure(directory: Path, seconds: float) -> None:
    starts = [start_s(directory / f"start-{number}") for number in range(STARTS)]
    print(
        f"From the program's start to the first connection: {statistics.median(starts):.2f} s (median of {STARTS}).\n"
    )

    # The times of arrival are chosen before the calls. So the queue of a perfect server can be calculated from them.
    rate = UTILISATION * PLACES / SLEEP_S
    random.seed(7)
    arrivals = [random.expovariate(rate)]
    while arrivals[-1] < seconds:
        arrivals.append(arrivals[-1] + random.expovariate(rate))
    server = RunningServer(
        directory / "queue", f"sleep {SLEEP_S}; echo hi", WATCHDOG_MAX_INFLIGHT=str(PLACES), WATCHDOG_MAX_QUEUE="1000"
    )
    began = time.perf_counter()
    callers = []
    for arrival in arrivals:
        time.sleep(max(0.0, began + arrival - time.perf_counter()))
        callers.append(threading.Thread(target=server.call, args=(b"",)))
        callers[-1].start()
    for caller in callers:
        caller.join()
    server.stop()
    ended = [event for event in server.logs if event["event"] == "invocation ended"]
    assert len(ended) == len(arrivals)
    assert {event["outcome"] for event in ended} == {"ok"}
    run_s = statistics.mean(event["duration_s"] for event in ended)
    measured = [event["queue_wait_s"] for event in ended]
    computed = waits_of(arrivals, [run_s] * len(arrivals), PLACES)
    print(f"{len(arrivals)} calls at random in {seconds:g} s, {PLACES} places, runs of {run_s:.3f} s:\n")
    print("| wait | mean | 99 % under |\n|---|---|---|")
    for name, waits in (("in the server", measured), ("in a perfect queue with the same arrivals", computed)):
        print(f"| {name} | {statistics.mean(waits) * 1e3:.0f} ms | {percentile(waits) * 1e3:.0f} ms |")
    _, mean_s, most_s = waits_s(PLACES, rate, run_s)
    print(f"| by Erlang's C (runs of random length) | {mean_s * 1e3:.0f} ms | {most_s * 1e3:.0f} ms |")


def start_s(directory: Path) -> float:
    """Return the seconds of a start, including the start of the interpreter."""
    began = time.perf_counter()
    # Without logs, RunningServer waits until the server accepts a connection.
    server = RunningServer(directory, "echo hi", has_logs=False)
    took_s = time.perf_counter() - began
    server.stop()
    return took_s


def waits_of(arrivals: Sequence[float], runs: Sequence[float], places: int) -> list[float]:
    """Return the wait of each call, if calls get places in the order of their arrival."""
    free = [0.0] * places
    waits = []
    for arrival, run in zip(arrivals, runs, strict=True):
        begin = max(arrival, heapq.heappop(free))
        heapq.heappush(free, begin + run)
        waits.append(begin - arrival)
    return waits


def percentile(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(PERCENTILE * len(values)) - 1]


if __name__ == "__main__":
    main()
