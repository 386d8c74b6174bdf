"""Calls are isolated: the script of one call cannot reach the files of another call."""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from guards import changed_program
from running_server import AS_PID_1, WITHOUT_PRIVILEGES, RunningServer, StartServer, until

PREFIXES = {"plain": (), "pid 1": AS_PID_1, "no privileges": WITHOUT_PRIVILEGES}
SMALL = b"MARK of a small input"
LARGE = b"MARK of a large input" + bytes(300_000)

# Searches for files of other calls below TMPDIR and behind every descriptor that it may open, and overwrites them.
INTRUDER = r"""
cd "$TMPDIR" || exit 1
own=${TMP_INPUT_DIR%/input}
find . -type f -not -path "*/${own##*/}/*" -not -name lock -not -name .lock | while read -r file; do
    echo "found $file"
    echo spoilt > "$file"
done
find . -type d \( -name input -o -name output \) -not -path "*/${own##*/}/*" | while read -r directory; do
    echo "planted in $directory"
    echo planted > "$directory/planted"
    echo '{"status": 418}' > "${directory%/*}/response"
done
if [ "$INTRUDES_DESCRIPTORS" ]; then
    for file in /proc/[0-9]*/fd/*; do
        case $file in /proc/$$/*) continue ;; esac
        if [ -f "$file" ] && grep -q "M[A]RK of" "$file" 2>/dev/null; then echo "read $file"; echo spoilt > "$file"; fi
    done
fi
"""


def options(mode: str) -> dict[str, Any]:
    # Root may read the memory and the files of each process. Other users cannot read those of the server.
    return {"prefix": PREFIXES[mode], "INTRUDES_DESCRIPTORS": "yes" if mode == "no privileges" else ""}


@pytest.mark.guard("nameless-files")
@pytest.mark.parametrize("mode", PREFIXES)
def test_no_script_finds_the_large_input_of_a_call_that_waits(
    start_server: StartServer, tmp_path: Path, free_port: int, mode: str
) -> None:
    intrude_on_waiting(start_server, tmp_path, free_port, mode, LARGE)


@pytest.mark.guard("late-workspace")
@pytest.mark.parametrize("mode", PREFIXES)
def test_no_script_finds_or_plants_anything_of_a_call_that_waits(
    start_server: StartServer, tmp_path: Path, free_port: int, mode: str
) -> None:
    intrude_on_waiting(start_server, tmp_path, free_port, mode, SMALL)


def intrude_on_waiting(start_server: StartServer, tmp_path: Path, metrics_port: int, mode: str, body: bytes) -> None:
    """The input of one call waits for the only place while the script of another looks for it."""
    server = start_server(
        f"""#!/bin/bash
if [ "$Http_X_Kind" = intruder ]; then
    touch {tmp_path}/running
    until [ -e {tmp_path}/waiting ]; do sleep 0.02; done
    {INTRUDER}
else
    cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/copy"
fi
""",
        WATCHDOG_MAX_INFLIGHT="1",
        WATCHDOG_METRICS_PORT=str(metrics_port),
        **options(mode),
    )

    with ThreadPoolExecutor() as pool:
        intruder = pool.submit(server.call, b"", headers={"X-Kind": "intruder"})
        until((tmp_path / "running").exists, "the first script")
        waiting = pool.submit(server.call, base64.b64encode(body))
        server.await_waiting()
        (tmp_path / "waiting").touch()
        assert intruder.result().body == b""
        answer = waiting.result()
    assert (answer.status, base64.b64decode(answer.body) == body) == (200, True)


LEAVES = {
    "one file": 'head -c 40000000 /dev/zero | tr "\\0" x >"$TMP_OUTPUT_DIR/file"',
    "stdout": 'head -c 40000000 /dev/zero | tr "\\0" x',
}

# The value of write_timeout. The callers read nothing while the test does something else, also on a slow machine.
LONG = "300s"
# A server that gives up no slow reader for a call that waits.
PATIENT = "from watchdog.http import response; replace(response, '_JUDGED_AFTER_S', 1e6)"


def slow_reader(server: RunningServer) -> http.client.HTTPConnection:
    """Return a connection with a small buffer at the caller, so most of a large answer stays in the server."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=server.patience_s)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(server.patience_s)
    sock.connect(("127.0.0.1", server.port))
    connection.sock = sock
    return connection


@pytest.mark.guard("held-outputs", "nameless-files", "clean-place")
@pytest.mark.parametrize("mode", PREFIXES)
def test_no_script_finds_what_is_still_being_sent(start_server: StartServer, tmp_path: Path, mode: str) -> None:
    """One answer is a file, and the other is printed text. Both callers stop reading after the headers."""
    server = start_server(
        f"""#!/bin/bash
case "$Http_X_Kind" in
intruder) {INTRUDER} ;;
file) {LEAVES["one file"]} ;;
*) {LEAVES["stdout"]} ;;
esac
""",
        WATCHDOG_MAX_INFLIGHT="1",
        WATCHDOG_WRITE_TIMEOUT=LONG,
        **options(mode),
    )
    with contextlib.ExitStack() as stack:
        responses = []
        for kind in ("file", "stdout"):
            connection = stack.enter_context(contextlib.closing(slow_reader(server)))
            connection.request("POST", "/?output=raw", b"", {"X-Kind": kind})
            responses.append(connection.getresponse())
        assert server.call(b"", headers={"X-Kind": "intruder"}).body == b""
        for response in responses:
            assert response.status == 200
            assert response.read() == b"x" * 40_000_000


@pytest.mark.guard("held-outputs", never="1 calls to wait")
def test_a_call_with_many_outputs_keeps_the_only_place_until_it_is_answered(
    start_server: StartServer, tmp_path: Path, free_port: int, removed_guard: str | None
) -> None:
    server = start_server(
        f"""#!/bin/bash
if [ "$Http_X_Kind" = many ]; then
    for number in {{1..40}}; do head -c 1000000 /dev/zero >"$TMP_OUTPUT_DIR/$number"; done
else
    touch {tmp_path}/started
fi
""",
        program=changed_program(PATIENT, removed_guard),
        WATCHDOG_MAX_INFLIGHT="1",
        WATCHDOG_METRICS_PORT=str(free_port),
        WATCHDOG_WRITE_TIMEOUT=LONG,
    )
    connection = slow_reader(server)
    with contextlib.closing(connection), ThreadPoolExecutor() as pool:
        connection.request("POST", "/?output=json", b"", {"X-Kind": "many"})
        response = connection.getresponse()
        other = pool.submit(server.call, b"")
        server.await_waiting()
        assert not (tmp_path / "started").exists()
        assert len(response.read()) > 40 * 1_000_000
        assert other.result().status == 200
    assert (tmp_path / "started").exists()


# A server that keeps the directories of a call for the next one, even on a slow machine.
KEPT = """
from watchdog.workspace import disposal, workspaces
replace(disposal, "_KEPT_S", 60.0)
replace(workspaces, "_SLOW_S", 60.0)
"""


@pytest.mark.guard("loans", never="no answer came", never_s=8)
def test_an_answer_that_ends_late_leaves_the_directories_of_the_next_call_alone(
    start_server: StartServer, tmp_path: Path, removed_guard: str | None
) -> None:
    """The next call gets the directories of the first call while its answer is still being sent."""
    server = start_server(
        f"""#!/bin/bash
if [ "$Http_X_Kind" = first ]; then
    {LEAVES["one file"]}
else
    touch {tmp_path}/running
    until [ -e {tmp_path}/over ]; do sleep 0.02; done
    cat "$INPUT_FILE_PATH" >"$TMP_OUTPUT_DIR/mine"
fi
""",
        program=changed_program(KEPT, removed_guard),
        WATCHDOG_MAX_INFLIGHT="1",
        WATCHDOG_WRITE_TIMEOUT=LONG,
    )
    with contextlib.closing(slow_reader(server)) as connection, ThreadPoolExecutor() as pool:
        connection.request("POST", "/?output=raw", b"", {"X-Kind": "first", "X-Call-Id": "first"})
        response = connection.getresponse()
        until(lambda: not list(server.tmp.glob("watchdog-*/*/input/*")), "the directories to be empty")
        second = pool.submit(server.call, base64.b64encode(b"second"))
        until((tmp_path / "running").exists, "the second script")
        assert response.read() == b"x" * 40_000_000
        server.event("invocation ended", call_id="first")
        # After a few probes, the server has emptied all directories that it had to empty.
        for _ in range(20):
            assert server.call(None, "/_/health", "GET").status == 200
        (tmp_path / "over").touch()
        assert base64.b64decode(second.result().body) == b"second"
