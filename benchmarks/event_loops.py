"""Compare the event loops of asyncio and uvloop: the same server runs on each of them, in turns.

    python benchmarks/event_loops.py        (in an environment with oscar-watchdog and uvloop)

For each loop this prints the median time of a small call by one caller, the calls a second by eight callers, and the
memory of the server afterwards. It also prints the ratios. It takes about half a minute.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROUNDS = 6
CALLS = 150
CALLERS = 8
BODY = b"aGVsbG8gd29ybGQh"
SCRIPT = 'tr a-z A-Z < "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/out"\n'
STARTS = {
    "asyncio": "import sys; from watchdog.cli import main; sys.exit(main())",
    "uvloop": "import sys, uvloop; uvloop.install(); from watchdog.cli import main; sys.exit(main())",
}


class Contender:
    """One server and its measured values."""

    def __init__(self, code: str, directory: Path) -> None:
        flags = ["--port=0", "--bind=127.0.0.1", "--metrics-port=0", "--log-format=json", "--suppress-lock=true"]
        flags += [f"--script-path={directory / 'script.sh'}", f"--max-inflight={CALLERS}"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", *flags],
            stderr=subprocess.PIPE,
            env=os.environ | {"TMPDIR": str(directory)},
        )
        assert self._process.stderr is not None
        self._port: int = json.loads(self._process.stderr.readline())["port"]
        threading.Thread(target=self._process.stderr.read, daemon=True).start()
        self.call_ms: list[float] = []
        self.calls_per_s: list[float] = []

    def measure(self) -> None:
        self.call_ms += self._calls(CALLS)
        callers = [threading.Thread(target=self._calls, args=(CALLS // 2,)) for _ in range(CALLERS)]
        started_s = time.perf_counter()
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        self.calls_per_s.append(CALLERS * (CALLS // 2) / (time.perf_counter() - started_s))

    def _calls(self, count: int) -> list[float]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        times = []
        for _ in range(count):
            started_s = time.perf_counter()
            connection.request("POST", "/", BODY)
            answer = connection.getresponse().read()
            assert answer == b"SEVMTE8gV09STEQh\n", answer
            times.append((time.perf_counter() - started_s) * 1e3)
        connection.close()
        return times

    def rss_mib(self) -> float:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


def main() -> int:
    if importlib.util.find_spec("uvloop") is None:
        print("uvloop is missing: pip install uvloop", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "script.sh").write_text(SCRIPT)
        contenders = {loop: Contender(code, directory) for loop, code in STARTS.items()}
        for _ in range(ROUNDS):
            for contender in contenders.values():
                contender.measure()
        rows = {}
        for loop, contender in contenders.items():
            call_ms = statistics.median(contender.call_ms)
            calls_per_s = statistics.median(contender.calls_per_s)
            rows[loop] = call_ms, calls_per_s, contender.rss_mib()
            contender.stop()
            print(f"{loop:8} {call_ms:6.2f} ms a call  {calls_per_s:6.0f} calls/s  {rows[loop][2]:5.1f} MiB")
        ratios = [a / b for a, b in zip(rows["uvloop"], rows["asyncio"], strict=True)]
        print("uvloop / asyncio: time {:.2f}, calls a second {:.2f}, memory {:.2f}".format(*ratios))
    return 0


if __name__ == "__main__":
    sys.exit(main())
