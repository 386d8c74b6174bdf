"""The server as PID 1 of a container: it reaps processes, it stops, and it survives when memory runs out."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from running_server import until

from image.builds import Builds
from image.conftest import StartContainer
from image.containers import Engine, Options
from image.serving import CONFIG, Ways, check_bytes, write_script

pytestmark = [pytest.mark.image, pytest.mark.timeout(300, func_only=True)]

_STOP_S = 0.5


def test_what_a_script_leaves_is_ended_and_reaped(ways: Ways, start_container: StartContainer) -> None:
    """The script starts daemons. Their parents have ended, so they become children of PID 1."""
    container = start_container(ways.plain("debian-12").serving())
    write_script(
        ways.config,
        "/bin/sh",
        """
        for number in 1 2 3 4 5 6 7 8; do
            (setsid sh -c 'echo $$ >>"$TMP_OUTPUT_DIR/daemons"; exec sleep 1000' &)
            (setsid sh -c 'echo $$ >>"$TMP_OUTPUT_DIR/daemons"' &)
        done
        while [ "$(cat "$TMP_OUTPUT_DIR/daemons" | wc -l)" -lt 16 ]; do sleep 0.01; done
        """,
    )
    answer = container.curl("/", "--data", "aGVsbG8=")
    assert answer.status == 200, answer.body
    assert len({int(pid) for pid in base64.b64decode(answer.body).split()} - {1}) == 16
    assert children(container.pid) == []
    assert container.pids() == [container.pid]


def test_what_others_leave_is_left_alone_and_reaped_when_it_ends(
    ways: Ways, engine: Engine, start_container: StartContainer, tmp_path: Path
) -> None:
    """An entry point may start processes before it executes the server, and so may a user with ``docker exec``."""
    way = replace(ways.plain("debian-12"), prefix=("/bin/sh", "-c", 'sleep 1000 & exec "$@"', "sh"))
    container = start_container(way.serving())
    of_entry_point = children(container.pid)
    engine.run("podman", "exec", container.name, "sh", "-c", "exec >/dev/null 2>&1; sleep 1000 & true")
    until(lambda: len(children(container.pid)) == 2, "an orphan")
    check_bytes(container, way, ways.config, tmp_path)
    left = children(container.pid)
    assert len(of_entry_point) == 1
    assert set(of_entry_point) < set(left)
    assert len(left) == 2
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    until(lambda: children(container.pid) == [], "the dead to be reaped")


def test_an_idle_container_stops_at_once(
    builds: Builds, engine: Engine, config: Path, start_container: StartContainer, figures: dict[str, str]
) -> None:
    """This is also true directly after the health check of the image, because no platform sends calls."""
    write_script(config, "/bin/sh", "true")
    took_s = []
    for _ in range(5):
        container = start_container(Options(builds.image, mounts=((config, CONFIG),), network="none"))
        assert container.curl("/", "--data", "aGVsbG8=").status == 200
        engine.run("podman", "healthcheck", "run", container.name)
        begin = time.monotonic()
        engine.run("podman", "stop", "--time", "20", container.name)
        took_s.append(time.monotonic() - begin)
        assert container.wait() == 0
    best_s, worst_s = min(took_s), max(took_s)
    figures["podman stop of an idle container"] = f"{best_s:.2f} s to {worst_s:.2f} s (limit for the best: {_STOP_S} s)"
    assert best_s <= _STOP_S


def test_a_busy_container_stops_after_the_complete_answer(
    builds: Builds, engine: Engine, config: Path, start_container: StartContainer, tmp_path: Path
) -> None:
    write_script(
        config,
        "/bin/sh",
        f"""
        echo has begun
        while [ ! -e {CONFIG}/go-on ]; do sleep 0.01; done
        cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/copy"
        """,
    )
    data = os.urandom(5_000_000)
    body = tmp_path / "body"
    body.write_bytes(data)
    container = start_container(Options(builds.image, mounts=((config, CONFIG),), network="none"))
    raw = ("--header", "Content-Type: image/jpeg")
    with ThreadPoolExecutor() as threads:
        call = threads.submit(container.curl, "/?output=raw", *raw, data=body)
        container.event("has begun", logger="script")
        stop = threads.submit(engine.run, "podman", "stop", "--time", "60", container.name)
        container.event("draining")
        (config / "go-on").touch()
        answer = call.result()
        stop.result()
    assert (answer.status, answer.body == data) == (200, True)
    assert container.wait() == 0


@pytest.mark.parametrize("command", ["exec tail /dev/zero", "tail /dev/zero"], ids=["script", "child of the script"])
def test_a_script_that_runs_out_of_memory_is_reported(
    command: str, ways: Ways, start_container: StartContainer, tmp_path: Path
) -> None:
    """The server and the script are in the same control group, and the kernel kills the script."""
    way = ways.plain("debian-12")
    way = replace(way, options=replace(way.options, flags=("--memory", "128m", "--memory-swap", "128m")))
    container = start_container(way.serving())
    write_script(ways.config, "/bin/sh", command)
    answer = container.curl("/", "--data", "aGVsbG8=")
    assert answer.status == 500, answer.body
    assert answer.json["out_of_memory"] is True
    assert container.event("invocation ended")["outcome"] == "out_of_memory"
    check_bytes(container, way, ways.config, tmp_path)
    assert container.stop() == 0


def children(pid: int) -> list[int]:
    """Return the pids of the children of a process, including zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        # A process may end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if entry.name.isdecimal():
                # The name may contain any character. The state and the parent come after its last parenthesis.
                _, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if int(parent) == pid:
                    found.append(int(entry.name))
    return sorted(found)
