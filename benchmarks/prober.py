"""Ask a server for its health every 5 ms on one connection, until stdin ends: ``python prober.py PORT``.

This prints ``ready`` after the first answer, and at the end the times of the answers as JSON. While a request has no
answer, no other request is sent. So a stall is measured once, in its whole length.
"""

from __future__ import annotations

import json
import select
import socket
import statistics
import sys
import time

INTERVAL_S = 0.005
REQUEST = b"GET /_/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def main(port: int) -> None:
    times_s: list[float] = []
    wrong = 0
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        while True:
            started = time.perf_counter()
            connection.sendall(REQUEST)
            answer = connection.recv(65536)
            times_s.append(time.perf_counter() - started)
            wrong += not answer.startswith(b"HTTP/1.1 200 ")
            if len(times_s) == 1:
                print("ready", flush=True)
            rest_s = max(0.0, INTERVAL_S - (time.perf_counter() - started))
            if not answer or select.select([sys.stdin], [], [], rest_s)[0]:
                break
    print(
        json.dumps(
            {
                "asked": len(times_s),
                "wrong": wrong,
                "median_ms": statistics.median(times_s) * 1e3,
                "worst_ms": max(times_s) * 1e3,
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
