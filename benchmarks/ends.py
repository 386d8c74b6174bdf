"""Measure how long ends take: of a call whose script leaves processes, of an idle server, of a killed server's script.

Run it from the project's root: ``.venv/bin/python benchmarks/ends.py``. It prints medians as Markdown. The kinds take
turns in each round. Servers listen on the loopback interface only.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from lifeline import Lifeline
from running_server import RunningServer, is_guardian, until

REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
LEFT = {
    "nothing": "",
    "a child that holds stdout open": "sleep 60 &",
    "the same, ignoring SIGTERM": "(trap '' TERM; sleep 60) &",
    "a session of its own": "setsid sleep 60 &",
    "the same, with an empty environment": "env -i setsid sleep 60 &",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as directory:
        calls(Path(directory), rounds)
        stops(Path(directory), rounds)
        kills(Path(directory), rounds)


def calls(directory: Path, rounds: int) -> None:
    """Print how long a call takes for each kind of process that its script leaves. The script itself takes 50 ms."""
    server = RunningServer(directory / "calls", 'eval "$Http_X_Left"; sleep 0.05; echo hi')
    times: defaultdict[str, list[float]] = defaultdict(list)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
        for _ in range(rounds):
            for name, fragment in LEFT.items():
                started = time.perf_counter()
                connection.request("POST", "/", b"", {"X-Left": fragment})
                assert connection.getresponse().read() == b"hi\n"
                times[name].append(time.perf_counter() - started)
    server.stop()
    print("| the script leaves | ms for the call | ms more than for a script that leaves nothing |\n|---|---|---|")
    least = statistics.median(times["nothing"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"| {name} | {median * 1000:.0f} | {(median - least) * 1000:.0f} |")


def stops(directory: Path, rounds: int) -> None:
    """Print the time from SIGTERM to the end of an idle server's process."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        for name in ("no connection", "a kept connection", "a new connection"):
            times[name].append(seconds_of_stop(directory / f"stop-{name}-{number}", name))
    print("\n| an idle server with | ms from SIGTERM to its end |\n|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {statistics.median(seconds) * 1000:.0f} |")


def seconds_of_stop(directory: Path, connection: str) -> float:
    server = RunningServer(directory, "echo hi")
    server.call(b"")
    with contextlib.ExitStack() as stack:
        if connection != "no connection":
            sock = stack.enter_context(server.connect())
            if connection == "a kept connection":
                sock.sendall(REQUEST)
                sock.recv(65536)
        started = time.perf_counter()
        server.signal(signal.SIGTERM)
        server.process.wait()
        seconds = time.perf_counter() - started
    server.kill()
    return seconds


def kills(directory: Path, rounds: int) -> None:
    """Print the time from the kill -9 of a server to the end of the processes that its script started."""
    seconds, memory = zip(*(kill(directory / f"kill-{number}") for number in range(rounds)), strict=True)
    print("\n| after kill -9 of the server | |\n|---|---|")
    print(f"| ms to the end of its script and its child | {statistics.median(seconds) * 1000:.0f} |")
    print(f"| MiB of the guardian's own memory, not shared with the server | {statistics.median(memory):.1f} |")


def kill(directory: Path) -> tuple[float, float]:
    """Return the seconds to the end of the script, and the MiB of the guardian."""
    directory.mkdir()
    with contextlib.closing(Lifeline(directory / "lifeline")) as lifeline:
        script = f"{lifeline.script_line}setsid sleep 60 & touch {directory}/up; sleep 60"
        server = RunningServer(directory, script)
        with server.connect() as sock:
            sock.sendall(REQUEST)
            until((directory / "up").exists, "the script")
            memory = private_memory_mib(guardian_of(server))
            started = time.perf_counter()
            server.process.kill()
            until(lambda: not lifeline.is_held(), "its end")
            seconds = time.perf_counter() - started
        server.kill()
    return seconds, memory


def guardian_of(server: RunningServer) -> int:
    pid = server.process.pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        comm = Path(f"/proc/{child}/comm")
        if is_guardian(int(child), of=pid):
            until(partial(_is_named, comm), "the guardian")
            return int(child)
    raise AssertionError("the server has no guardian")


def _is_named(comm: Path) -> bool:
    return comm.read_text() == "watchdog-guard\n"


def private_memory_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_")) / 1024


if __name__ == "__main__":
    main()
