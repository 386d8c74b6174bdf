"""Measure the floor: a bare loop starts the servers' script, whose files are ready, and waits for its end.

    python floor.py SCRIPT DIRECTORY COUNT IN_FLIGHT

Each run has a directory of its own, which is made before the measurement. The script creates its output in it, as it
does under the server. The interpreter does nothing else: it makes no pipes and no process group. Stdin, stdout and
stderr are /dev/null. The outputs are checked afterwards. This prints JSON: the seconds of each run, the seconds of all
runs, and how many were wrong.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time

INPUT = b"hello world!"


def main(script: str, directory: str, count: int, in_flight: int) -> None:
    runs = [os.path.join(directory, f"floor-{number}") for number in range(count)]
    environments = [_made_ready(run) for run in runs]
    null = os.open(os.devnull, os.O_RDWR)
    actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in range(3)]
    command = ["/bin/sh", script]
    times_s = []
    failed = 0
    running: dict[int, float] = {}
    began = time.perf_counter()
    for environment in environments:
        if len(running) == in_flight:
            pid, status = os.waitpid(-1, 0)
            times_s.append(time.perf_counter() - running.pop(pid))
            failed += status != 0
        started = time.perf_counter()
        running[os.posix_spawn("/bin/sh", command, environment, file_actions=actions)] = started
    while running:
        pid, status = os.waitpid(-1, 0)
        times_s.append(time.perf_counter() - running.pop(pid))
        failed += status != 0
    elapsed_s = time.perf_counter() - began
    wrong = sum(_output(run) != INPUT for run in runs)
    for run in runs:
        shutil.rmtree(run)
    print(json.dumps({"times_s": times_s, "elapsed_s": elapsed_s, "wrong": wrong, "errors": failed}))


def _made_ready(run: str) -> dict[str, str]:
    os.makedirs(run + "/input")
    os.mkdir(run + "/output")
    with open(run + "/input/file", "wb") as file:
        file.write(INPUT)
    return dict(os.environ) | {"INPUT_FILE_PATH": run + "/input/file", "TMP_OUTPUT_DIR": run + "/output"}


def _output(run: str) -> bytes | None:
    try:
        with open(run + "/output/out", "rb") as file:
            return file.read()
    except OSError:
        return None


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
