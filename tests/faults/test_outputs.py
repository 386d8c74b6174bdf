"""Outputs that a script made to be slow, endless or unreadable; a file system that hangs."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import zipfile
from pathlib import Path

import pytest
from running_server import RunningServer, StartServer, problem, until

HANGING_SERVER = Path(__file__).parent / "hanging_server.py"
REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
# 2^23 paths lead through these directories to the last one.
LINKED_DIRECTORIES = """
cd $TMP_OUTPUT_DIR
for i in $(seq 24); do mkdir d$i; done
for i in $(seq 23); do ln -s ../d$((i + 1)) d$i/a; ln -s ../d$((i + 1)) d$i/b; done
echo x >d24/file
"""
# The first entries are listed without a thread, and the name that hangs comes after them.
HANGS = "cd $TMP_OUTPUT_DIR; touch $(seq 300); mkdir sub; touch sub/hangs"
# The largest number of threads for outputs on any machine.
MOST_THREADS = 32


@pytest.mark.guard("directories-once", never="no answer came")
def test_a_directory_with_millions_of_paths_is_sent_once(start_server: StartServer) -> None:
    server = start_server(LINKED_DIRECTORIES)
    answer = server.call(b"", "/?output=json")
    assert answer.status == 200
    assert [output["name"] for output in answer.json["outputs"]] == ["d24/file"]
    assert answer.headers["X-Warning"] == "outputs-skipped"


@pytest.mark.parametrize("depth", [1000, 3000])
def test_a_file_in_nested_directories_is_sent_or_500(start_server: StartServer, depth: int) -> None:
    """A path has at most 4096 bytes (PATH_MAX), but directories can be nested more deeply."""
    server = start_server(
        f"""#!/usr/bin/env python3
import os
os.chdir(os.environ["TMP_OUTPUT_DIR"])
for level in range({depth}):
    os.mkdir("d")
    os.chdir("d")
with open("important", "w") as file:
    file.write("x")
"""
    )
    answer = server.call(b"", "/?output=raw")
    # Remove these before anything can fail, because pytest cannot remove directories that are nested so deeply.
    until(lambda: not server.leftovers_of_calls(), "the workspace to be removed")
    if depth == 1000:
        assert (answer.status, answer.body) == (200, b"x")
    else:
        detail = str(problem(answer, 500)["detail"])
        assert "'d/d/d/" in detail
        assert "File name too long" in detail
        assert len(detail) < 1000


UNSAFE = """
cd $TMP_OUTPUT_DIR
echo 1 >'..\\..\\evil.txt'
echo 2 >C:evil.txt
mkdir 'sub\\..'
echo 3 >'sub\\../d:x'
echo 4 >.._.._evil.txt
"""


@pytest.mark.guard("safe-output-names")
def test_no_name_leaves_its_directory_on_another_system(start_server: StartServer) -> None:
    server = start_server(UNSAFE)
    names = {".._.._evil-2.txt": "1", "C_evil.txt": "2", "sub_../d_x": "3", ".._.._evil.txt": "4"}
    with zipfile.ZipFile(io.BytesIO(server.call(b"", "/?output=zip").body)) as archive:
        assert {name: archive.read(name).decode().strip() for name in archive.namelist()} == names
    server.event("output renamed", output="C:evil.txt", new_name="C_evil.txt", level="warning")
    assert [output["name"] for output in server.call(b"", "/?output=json").json["outputs"]] == sorted(names)
    server.script.write_text("echo 1 >$TMP_OUTPUT_DIR/'..\\x'")
    assert server.call(b"").headers["X-Output-Name"] == ".._x"


def start_hanging(start_server: StartServer, what: str, removed_guard: str | None, *flags: str) -> RunningServer:
    """Start a server whose file system hangs at ``what`` of each call without a body."""
    script = f"if [ -s $INPUT_FILE_PATH ]; then wc -c <$INPUT_FILE_PATH; else {HANGS}; fi"
    guard = [] if removed_guard is None else ["-" + removed_guard]
    return start_server(script, *flags, program=(str(HANGING_SERVER), *guard), HANGS=what, WATCHDOG_WRITE_TIMEOUT="1")


@pytest.mark.guard("listing-limit", never="no answer came", never_s=8)
def test_a_listing_that_hangs_ends_at_the_limit_of_its_call(
    start_server: StartServer, removed_guard: str | None
) -> None:
    server = start_hanging(start_server, "outputs", removed_guard)
    for limit_s in (1, 2, 4, 8, 16, 32):
        document = problem(server.call(b"", headers={"X-Timeout": f"{limit_s}s"}), 504)
        if "outputs could be listed" in str(document["detail"]):
            break  # on a slow machine, the script itself may reach a short limit
    assert f"outputs could be listed in {limit_s} s" in str(document["detail"])
    server.event("invocation ended", outcome="timeout")


@pytest.mark.guard("listing-limit", never="the event 'invocation ended'")
def test_a_listing_that_hangs_ends_when_its_caller_leaves(start_server: StartServer, removed_guard: str | None) -> None:
    server = start_hanging(start_server, "outputs", removed_guard)
    with server.connect() as sock:
        sock.sendall(REQUEST)
        server.event("hangs")
    server.event("invocation ended", outcome="caller_gone")


@pytest.mark.guard("threads-for-outputs", never="no answer came")
def test_hanging_listings_delay_no_other_work(
    start_server: StartServer, removed_guard: str | None, free_port: int
) -> None:
    most = min(MOST_THREADS, (os.cpu_count() or 1) + 4)
    # A call keeps its place until its outputs are listed, so one more place is for the call after them.
    server = start_hanging(
        start_server, "outputs", removed_guard, "--metrics-port", str(free_port), "--max-inflight", str(most + 1)
    )
    with contextlib.ExitStack() as stack:
        for _ in range(most):
            stack.enter_context(server.connect()).sendall(REQUEST)
        for _ in range(most):
            server.event("hangs")
        assert server.call(bytes(1_000_000), headers={"Content-Type": "image/png"}).body == b"1000000\n"
        assert server.call(None, "/metrics", "GET", port=free_port).status == 200
        assert server.call(None, "/_/ready", "GET").status == 200


@pytest.mark.guard("search-of-gone-caller", never="no answer came")
def test_a_search_that_hangs_is_the_only_one_though_its_caller_leaves(
    start_server: StartServer, removed_guard: str | None
) -> None:
    """Calls of this server wait for their searches without a limit, so a second search would be noticed."""
    server = start_hanging(start_server, "searches", removed_guard)
    server.script.write_text("true")
    with server.connect() as sock:
        sock.sendall(REQUEST)
        server.event("hangs")
    server.event("invocation ended", outcome="caller_gone")
    assert server.call(b"").headers["X-Warning"] == "no-output"
    assert server.stop() == 0
    assert [event["event"] for event in server.logs].count("hangs") == 1


@pytest.mark.guard("daemon-threads", never="the server did not end")
@pytest.mark.parametrize("what", ["outputs", "inputs", "removals"])
def test_a_thread_that_hangs_does_not_keep_the_server_from_ending(
    start_server: StartServer, removed_guard: str | None, what: str
) -> None:
    server = start_hanging(start_server, what, removed_guard)
    # 100 kB are received in a thread.
    body = bytes(100_000) if what == "inputs" else b""
    with server.connect() as sock:
        sock.sendall(b"POST /?input=raw HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        server.event("hangs")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert any(event["event"] == "threads left behind" for event in server.logs)
