"""A file system of scripts hangs, like a FUSE mount whose process does not answer. It affects only calls that use it.

The file system is real: ``hanging_file_system.py`` serves it, and it hangs while that process is stopped. The kernel
caches nothing of it, so each access to a file waits.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from guards import changed_program
from running_server import Answer, RunningServer, StartServer, problem, until

from watchdog.system.threads import LISTINGS

PROGRAM = str(Path(__file__).parent / "hanging_file_system.py")
# With this, a call is answered much sooner than the test without the guard stops waiting for it.
HASTY = "from watchdog.invocation import doubts; replace(doubts, '_LOOK_ELSEWHERE_S', 0.5)"


@dataclass
class Mount:
    """A server with the file system. ``$MOUNT`` is its directory for scripts. The command ``$HANG`` makes it hang."""

    server: RunningServer
    pid: int
    hanging_searches: Path  #: has a byte for each search that hangs, because it is for a file ``hangs``

    def hang(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


Start = Callable[..., Mount]


@pytest.fixture
def start(start_server: StartServer, tmp_path: Path, free_port: int, removed_guard: str | None) -> Iterator[Start]:
    """Start a server with two places before a file system that is about to hang."""
    directory, pid_file = tmp_path / "mount", tmp_path / "pid"
    directory.mkdir()
    as_root = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    mounted = ("unshare", *as_root, "--mount", sys.executable, PROGRAM, str(directory), str(pid_file))
    if (tried := subprocess.run([*mounted, "true"], capture_output=True, text=True)).returncode:
        pytest.skip(f"no file system can be mounted through FUSE here: {tried.stderr[-200:]}")
    hang = tmp_path / "hang"
    hang.write_text(f"kill -STOP $(cat {pid_file})")
    mounts = []

    def start(script: str, *command: str, change: str = "", **options: Any) -> Mount:
        # Use neither `-m` nor `-c`: with them, Python searches for modules in the working directory.
        program = tmp_path / "program.py"
        program.write_text(changed_program(change, removed_guard)[1])
        server = start_server(
            script,
            prefix=(*mounted, *(word.replace("$MOUNT", str(directory)) for word in command)),
            program=(str(program),),
            MOUNT=str(directory),
            HANG=f"sh {hang}",
            WATCHDOG_METRICS_PORT=str(free_port),
            WATCHDOG_WRITE_TIMEOUT="2",
            **{"WATCHDOG_MAX_INFLIGHT": "2", **options},
        )
        mounts.append(Mount(server, int(pid_file.read_text()), Path(f"{pid_file}.hangs")))
        return mounts[-1]

    yield start
    for mount in mounts:
        with contextlib.suppress(ProcessLookupError):  # it ends with its server
            os.kill(mount.pid, signal.SIGKILL)


def assert_others_are_served(server: RunningServer) -> None:
    for body in (b"QUJD", b64encode(bytes(100_000))):  # more than 64 KiB need a thread
        answer = server.call(body, "/other")
        assert (answer.status, answer.body) == (200, body + b"\n")
        answer = server.call(body, "/printed")
        assert (answer.status, answer.body) == (200, b64decode(body))
    assert server.call(None, "/_/health", "GET").status == 200
    assert server.call(None, "/_/ready", "GET").status == 200
    assert server.metric("watchdog_places_taken") <= 1


OTHER = """
case $Http_Path in
/other) cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/copy"; exit 0 ;;
/printed) cat "$INPUT_FILE_PATH"; exit 0 ;;
esac
"""
USES = {
    "reads": 'echo text >"$MOUNT/file"; $HANG; cat "$MOUNT/file"',
    "writes": '(sleep 0.2; $HANG) & while :; do echo text >>"$MOUNT/file"; done',
    "executes": 'cp /bin/sleep "$MOUNT"; $HANG; "$MOUNT/sleep" 60',
    "works there": 'mkdir "$MOUNT/here"; cd "$MOUNT/here"; $HANG; ls',
    "works there in the background": 'mkdir "$MOUNT/here"; cd "$MOUNT/here"; $HANG; setsid ls & sleep 600',
}


@pytest.mark.parametrize("use", USES)
def test_a_script_that_waits_for_a_hanging_file_system_ends_at_its_limit(start: Start, use: str) -> None:
    mount = start(OTHER + USES[use])
    with ThreadPoolExecutor() as pool:
        hanging = call_that_hangs(mount, pool)
        assert_others_are_served(mount.server)
        problem(hanging.result(), 504)
    assert mount.server.stop() == 0
    assert not mount.server.leftovers()


def call_that_hangs(mount: Mount, pool: ThreadPoolExecutor) -> Future[Answer]:
    """Make a call whose script makes the file system hang. On a slow machine, it may reach a short limit earlier."""
    limit_s = 3
    while True:
        call = pool.submit(mount.server.call, b"", headers={"X-Timeout": f"{limit_s}s"})
        until(lambda: call.done() or state_of(mount.pid) == "T", "the file system to hang")  # noqa: B023
        if state_of(mount.pid) == "T":
            return call
        problem(call.result(), 504)
        limit_s *= 2


@pytest.mark.guard("threads-for-listings", never="no answer came to POST /other")
def test_outputs_that_are_links_into_a_hanging_file_system_end_at_the_limits_of_their_calls(start: Start) -> None:
    # The kernel lets only one search at a time wait in a directory.
    links = 'mkdir "$MOUNT/$CALL_ID"; ln -s "$MOUNT/$CALL_ID/hangs" "$TMP_OUTPUT_DIR/link"'
    mount = start(OTHER + links, WATCHDOG_MAX_INFLIGHT=str(LISTINGS.most))
    limit_s = 1
    while missing := LISTINGS.most - mount.hanging_searches.stat().st_size:
        with ThreadPoolExecutor(missing) as pool:
            headers = {"X-Timeout": f"{limit_s}s"}
            hanging = [pool.submit(mount.server.call, b"", headers=headers) for _ in range(missing)]
        for call in hanging:
            problem(call.result(), 504)
        limit_s *= 2  # on a slow machine, a script may reach a short limit before its outputs are listed
    assert_others_are_served(mount.server)


@pytest.mark.guard("short-look", never="no answer came to POST /hang")
def test_a_call_without_outputs_is_answered_though_its_working_directory_hangs(start: Start) -> None:
    """The server searches the working directory for files that belong into TMP_OUTPUT_DIR."""
    mount = start(
        'if [ "$Http_Path" = /hang ]; then $HANG; fi', "sh", "-c", 'cd "$MOUNT" && exec "$@"', "sh", change=HASTY
    )
    answer = mount.server.call(b"", "/hang")
    assert (answer.status, answer.headers["X-Warning"]) == (200, "no-output")
    mount.server.event("no search for files in other directories")
    assert mount.server.call(None, "/_/health", "GET").status == 200
    mount.go_on()
    assert mount.server.call(b"").headers["X-Warning"] == "no-output"
    assert mount.server.stop() == 0


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
