"""Full disks, outputs that are not files, files that change, and files that a crash left."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from changes import lengthen, rewrite, shorten
from guards import changed_program
from running_server import WITHOUT_PRIVILEGES, RunningServer, StartServer, free_port, problem, read_all, until

RAW = {"Content-Type": "application/x-raw"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB with room for 100 files and directories."""
    disk = tmp_path / "disk"
    disk.mkdir()
    assert os.geteuid() == 0, "this test mounts a small file system and must be root"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=100", "none", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


# A call to this server waits until the files of the call before it are removed, also on a slow machine.
PATIENT = "from watchdog.invocation import invocation; replace(invocation, '_LONGEST_WAIT_FOR_SPACE_S', 60.0)"


@pytest.fixture
def start_on_small_disk(start_server: StartServer, small_disk: Path, removed_guard: str | None) -> StartServer:
    program = changed_program(PATIENT, removed_guard)
    return functools.partial(start_server, program=program, WATCHDOG_TMP_DIR=str(small_disk))


def assert_it_goes_on(server: RunningServer, disk: Path) -> None:
    """The next call works, and nothing is left."""
    server.script.write_text("echo fine; echo fine > $TMP_OUTPUT_DIR/x")
    assert server.call(b"QUJD").body == b"ZmluZQo=\n"
    server.stop()
    assert list(disk.iterdir()) == []


# ---- no space


@pytest.mark.guard("no-space")
def test_no_space_for_the_input(start_on_small_disk: StartServer, small_disk: Path) -> None:
    server = start_on_small_disk("echo never")
    for headers, body in (
        (RAW, bytes(2 << 20)),
        ({}, base64.b64encode(bytes(2 << 20))),
        ({"Content-Type": 'multipart/form-data; boundary="b"'}, form_of(bytes(2 << 20))),
    ):
        assert "the input file" in str(problem(server.call(body, headers=headers), 507)["detail"])
    assert_it_goes_on(server, small_disk)


def form_of(data: bytes) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n' + data + b"\r\n--b--\r\n"


@pytest.mark.guard("no-space")
def test_no_space_for_stdout(start_on_small_disk: StartServer, small_disk: Path) -> None:
    server = start_on_small_disk("head -c 3000000 /dev/zero")
    assert "stdout" in str(problem(server.call(b""), 507)["detail"])
    assert_it_goes_on(server, small_disk)


@pytest.mark.guard("full-disk-look")
def test_no_space_while_the_script_writes(start_on_small_disk: StartServer, small_disk: Path) -> None:
    server = start_on_small_disk("head -c 3000000 /dev/zero > $TMP_OUTPUT_DIR/x")
    document = problem(server.call(b""), 507)
    assert document["exit_code"] == 1
    assert "No space left on device" in str(document["stderr"])
    assert str(small_disk) in str(document["detail"])
    server.event("invocation ended", outcome="no_space", exit_code=1, level="error")
    assert_it_goes_on(server, small_disk)


@pytest.mark.guard("full-disk-look", never="the event 'doubtful success'")
def test_a_script_that_ignores_a_full_disk_gets_a_warning(start_on_small_disk: StartServer, small_disk: Path) -> None:
    server = start_on_small_disk("head -c 3000000 /dev/zero > $TMP_OUTPUT_DIR/x; exit 0")
    assert server.call(b"", "/?output=raw").status == 200
    server.event("doubtful success", warning="no-space", level="warning")
    assert_it_goes_on(server, small_disk)


def test_a_zip_needs_no_space(start_on_small_disk: StartServer, small_disk: Path) -> None:
    script = """
for n in 1 2 3 4; do head -c 200000 /dev/zero | tr '\\0' $n > $TMP_OUTPUT_DIR/$n; done
head -c 3000000 /dev/zero > $TMP_INPUT_DIR/filler
true
"""
    server = start_on_small_disk(script)
    for query in ("/?output=zip", "/"):
        body = server.call(b"", query).body
        archive = zipfile.ZipFile(io.BytesIO(body if body.startswith(b"PK") else base64.b64decode(body)))
        assert archive.testzip() is None
        read = {name: (len(data := archive.read(name)), set(data)) for name in archive.namelist()}
        assert read == {str(n): (200_000, {ord(str(n))}) for n in range(1, 5)}
    assert_it_goes_on(server, small_disk)


@pytest.mark.guard("no-space")
def test_no_inode_for_a_workspace(start_on_small_disk: StartServer, small_disk: Path) -> None:
    server = start_on_small_disk("echo hi")
    assert server.call(b"").body == b"hi\n"
    until(lambda: not list(small_disk.glob("watchdog-*/[0-9]*")), "the workspace to be removed")
    (small_disk / "theirs").mkdir()
    fill(small_disk / "theirs" / str(n) for n in range(1000))
    assert "no space is left" in str(problem(server.call(b""), 507)["detail"])
    for path in (small_disk / "theirs").iterdir():
        path.unlink()
    (small_disk / "theirs").rmdir()
    assert_it_goes_on(server, small_disk)


@pytest.mark.guard("no-space")
def test_no_space_for_the_script_of_the_environment(start_on_small_disk: StartServer, small_disk: Path) -> None:
    text = "echo hi\n" + "# a long script\n" * 5000
    server = start_on_small_disk(None, SCRIPT=base64.b64encode(text.encode()).decode())
    assert server.call(b"").body == b"hi\n"
    until(lambda: not list(small_disk.glob("watchdog-*/[0-9]*")), "the workspace to be removed")
    fill([small_disk / "theirs"], bytes(65536))
    assert "SCRIPT" in str(problem(server.call(b""), 507)["detail"])
    (small_disk / "theirs").unlink()
    assert server.call(b"").body == b"hi\n"


def fill(paths: Iterable[Path], block: bytes = b"") -> None:
    """Make files until the disk is full. If there is a block, write it again and again into each file."""
    with contextlib.suppress(OSError):
        for path in paths:
            with path.open("wb", buffering=0) as file:
                while file.write(block):
                    pass


@pytest.mark.parametrize("log", ["a full disk", "a reader that is gone"])
def test_logs_that_cannot_be_written_harm_nobody(start_server: StartServer, log: str) -> None:
    into = "2>/dev/full" if log == "a full disk" else "2> >(exec head -c 0)"
    prefix = ("/bin/bash", "-c", f'exec "$@" {into}', "bash")
    script = "echo a line of the log >&2; echo hi; yes a line of the log | head -n 20000 >&2"
    server = start_server(script, prefix=prefix, has_logs=False)
    for _ in range(3):
        assert server.call(b"").body == b"hi\n"
    server.signal(signal.SIGTERM)
    assert server.process.wait(timeout=server.patience_s) == 0


def test_call_without_free_descriptors_is_refused_and_the_next_one_is_served(
    start_server: StartServer, tmp_path: Path
) -> None:
    """The server starts with its low limit: it would restore a limit that was lowered later."""
    up, gate = tmp_path / "up", tmp_path / "gate"
    script = 'touch "$UP"; until [ -e "$GATE" ]; do sleep 0.02; done; echo hi'

    def started(most: int) -> tuple[RunningServer, int]:
        gate.touch()
        prefix = ("prlimit", f"--nofile={most}:{most}")
        server = start_server(script, "--max-inflight", "2", prefix=prefix, UP=str(up), GATE=str(gate))
        in_use = server.descriptors_at_rest()
        gate.unlink()
        up.unlink()
        return server, in_use

    _, in_use = started(256)
    server, _ = started(in_use + 10)  # enough for one call and for the connection of another one
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.call, b"")
        until(up.exists, "the first script to run")
        refused = server.call(b"", headers={"Connection": "close"})
        gate.touch()
        assert first.result().body == b"hi\n"
    assert refused.status == 500
    assert "limit of open files" in refused.json["detail"]
    assert server.call(b"").body == b"hi\n"
    server.stop()
    assert len(server.logs) < 200  # the log is not flooded


def test_lack_of_a_descriptor_for_stdout_is_not_the_fault_of_the_script(
    start_server: StartServer, tmp_path: Path
) -> None:
    up, gate = tmp_path / "up", tmp_path / "gate"
    script = 'touch "$UP"; until [ -e "$GATE" ]; do sleep 0.02; done; head -c 100000 /dev/zero'

    def started(most: int) -> RunningServer:
        prefix = ("prlimit", f"--nofile={most}:{most}")
        return start_server(script, "--max-inflight", "1", prefix=prefix, UP=str(up), GATE=str(gate))

    server = started(256)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.call, b"")
        until(up.exists, "the script to run")
        most = server.descriptors()
        gate.touch()
        assert first.result().status == 200
    # This is enough to run the script, but not to keep more than 64 KiB of stdout. The server may have had a descriptor
    # more for a moment. Then the first of these calls succeeds.
    while (answer := (server := started(most)).call(b"")).status == 200:
        most -= 1
    assert "limit of open files" in str(problem(answer, 500)["detail"])
    server.event("invocation ended", outcome="no_resources", exit_code=0)


# ---- outputs that are not files

NO_FILES = {
    "link to a file": "ln -s /etc/passwd $TMP_OUTPUT_DIR/x",
    "link to a directory": "ln -s /etc $TMP_OUTPUT_DIR/x",
    "link to the input": "ln -s $INPUT_FILE_PATH $TMP_OUTPUT_DIR/x",
    "link to itself": "ln -s x $TMP_OUTPUT_DIR/x",
    "FIFO": "mkfifo $TMP_OUTPUT_DIR/x",
    "link to a FIFO": "mkfifo $TMP_INPUT_DIR/f; ln -s $TMP_INPUT_DIR/f $TMP_OUTPUT_DIR/x",
    "device": "mknod $TMP_OUTPUT_DIR/x c 1 5",
    "link to a device": "ln -s /dev/zero $TMP_OUTPUT_DIR/x",
    "socket": "cd $TMP_OUTPUT_DIR; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"x\")'",
}


@pytest.mark.guard("output-checks", never="the event 'output skipped'")
@pytest.mark.parametrize("kind", NO_FILES)
def test_an_output_that_is_not_a_file_is_never_opened(start_server: StartServer, kind: str) -> None:
    server = start_server(NO_FILES[kind] + "; echo said")
    for query in ("/", "/?output=json"):
        answer = server.call(b"c2VjcmV0", query)
        assert (answer.status, answer.body[:5] if query == "/" else answer.json["outputs"]) == (
            200,
            b"said\n" if query == "/" else [],
        )
        server.event("output skipped", output="x", level="warning")


UNREADABLE = {
    "folder": ("d", "chmod 0 d"),
    "file in a folder that may only be listed": ("d/f", "chmod 444 d"),
    "link into such a folder": ("l", "mkdir e; mv d e/d; ln -s e/d/f l; chmod 444 e/d; chmod 0 e"),
    "output directory": ("TMP_OUTPUT_DIR", "chmod 0 ../output"),
}


def unreadable(start_server: StartServer, path: str, command: str) -> None:
    """Check the answer. The server runs without privileges, because root can read everything."""
    script = f"cd $TMP_OUTPUT_DIR; echo a > good; mkdir d; echo b > d/f; {command}"
    server = start_server(script, prefix=WITHOUT_PRIVILEGES)
    for query in ("/", "/?output=zip", "/?output=json"):
        detail = str(problem(server.call(b"", query), 500)["detail"])
        assert f"'{path}" in detail
        assert "Permission denied" in detail
    server.stop()
    assert server.leftovers() == []


def test_an_output_that_cannot_be_read_is_reported(start_server: StartServer) -> None:
    unreadable(start_server, "d/f", "chmod 0 d/f")


@pytest.mark.guard("unreadable-outputs")
@pytest.mark.parametrize("what", UNREADABLE)
def test_an_entry_that_cannot_be_examined_is_500_with_its_name(start_server: StartServer, what: str) -> None:
    unreadable(start_server, *UNREADABLE[what])


def test_names_of_any_bytes_come_back(start_server: StartServer) -> None:
    names = [b"\xff\xfe.bin", b"new\nline", b"a b\t'\"%.txt", "\u202egpj.exe".encode(), b"n" * 255, b"-rf"]
    server = start_server('#!/bin/bash\ncp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/$(printf %b "$Http_X_Name")"')
    for name in names:
        escaped = "".join(f"\\x{byte:02x}" for byte in name)
        answer = server.call(b"aGk=", "/?output=raw", headers={"X-Name": escaped})
        assert (answer.status, answer.body) == (200, b"hi")
        assert unquote_to_bytes(answer.headers["X-Output-Name"]) == name.rstrip(b"\n")
        (output,) = server.call(b"aGk=", "/?output=json", headers={"X-Name": escaped}).json["outputs"]
        assert output["data"] == "aGk="


@pytest.mark.guard("sparse-look", never="no answer came")
def test_a_sparse_file_that_cannot_be_is_refused(start_server: StartServer) -> None:
    server = start_server("truncate -s 1T $TMP_OUTPUT_DIR/x; echo y > $TMP_OUTPUT_DIR/y")
    for query in ("/?output=zip", "/"):
        assert "sparse" in str(problem(server.call(b"", query), 500)["detail"])
    server.script.write_text("truncate -s 30M $TMP_OUTPUT_DIR/x")
    assert server.call(b"", "/?output=raw").body == bytes(30 << 20)


@pytest.mark.guard("output-dir-look")
def test_something_else_in_the_place_of_the_output_directory(start_server: StartServer) -> None:
    server = start_server('rmdir $TMP_OUTPUT_DIR; echo said; cp "$INPUT_FILE_PATH" $TMP_OUTPUT_DIR')
    assert "a file in the place of the directory" in str(problem(server.call(b"aGk="), 500)["detail"])
    server.script.write_text("rmdir $TMP_OUTPUT_DIR; ln -s /etc $TMP_OUTPUT_DIR; echo said")
    assert "a symbolic link in the place" in str(problem(server.call(b"aGk="), 500)["detail"])
    server.script.write_text("rmdir $TMP_OUTPUT_DIR; echo said")  # tidied up: no outputs
    assert server.call(b"").body == b"said\n"
    server.event("output skipped", output="TMP_OUTPUT_DIR", level="warning")


def test_a_script_that_removes_all_there_is(start_server: StartServer) -> None:
    server = start_server("rm -rf $TMP_INPUT_DIR/../../*; echo said")
    assert server.call(b"aGk=").body == b"said\n"
    server.script.write_text("rm -rf $TMP_INPUT_DIR/../..; echo said")
    assert server.call(b"aGk=").body == b"said\n"
    server.script.write_text('cp "$INPUT_FILE_PATH" $TMP_OUTPUT_DIR')
    assert server.call(b"aGk=").body == b"aGk=\n"
    server.stop()
    assert server.leftovers() == []


@pytest.mark.slow
def test_a_hundred_thousand_small_files(start_server: StartServer) -> None:
    script = f"""#!{sys.executable} -S
import os
os.chdir(os.environ["TMP_OUTPUT_DIR"])
for n in range(100_000):
    with open(f"{{n:05}}", "w") as file:
        file.write(f"{{n}}")
"""
    # Use memory. On a disk, these files would need more time than the rest of the test.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        server = start_server(script, WATCHDOG_TMP_DIR=memory)
        answer = server.call(b"", "/?output=zip")
        assert answer.status == 200
        archive = zipfile.ZipFile(io.BytesIO(answer.body))
        assert len(archive.namelist()) == 100_000
        assert archive.read("09999") == b"9999"
        assert archive.testzip() is None
        assert server.memory_mib("VmHWM") < 150
        assert server.stop() == 0
        assert os.listdir(memory) == []


# ---- files that change while they are sent

# An output that is being sent has no name any more, but a link that the script made elsewhere is the same file.
LINK = 'ln -f "$TMP_OUTPUT_DIR/x" "$TMPDIR/link"'
# So many outputs keep their names until they are sent.
MANY = 'cd "$TMP_OUTPUT_DIR"; touch $(seq 100)'


@pytest.mark.guard("change-look")
@pytest.mark.parametrize("change", [rewrite, lengthen])
@pytest.mark.parametrize("form", ["raw", "base64", "zip"])
def test_a_file_that_changes_while_it_is_sent_cuts_the_answer(
    start_server: StartServer, change: Callable[[Path], None], form: str
) -> None:
    cut_by(start_server, change, form, LINK, "link")


@pytest.mark.parametrize("form", ["raw", "base64", "zip"])
def test_a_file_that_shrinks_while_it_is_sent_cuts_the_answer(start_server: StartServer, form: str) -> None:
    cut_by(start_server, shorten, form, LINK, "link")


@pytest.mark.guard("change-look")
@pytest.mark.parametrize("change", [rewrite, lengthen])
def test_a_file_of_many_that_changes_while_it_is_sent_cuts_the_answer(
    start_server: StartServer, change: Callable[[Path], None]
) -> None:
    cut_by(start_server, change, "zip", MANY, "watchdog-*/*/output/x")


def cut_by(start_server: StartServer, change: Callable[[Path], None], form: str, last: str, pattern: str) -> None:
    """Change the large output of a script while it is sent.

    Args:
        last: the last command of the script.
        pattern: the path of the file after this command, below ``TMPDIR``.
    """
    # The output is larger than all buffers on the way. So most of it is not read yet when the file changes.
    script = f"head -c 60000000 /dev/zero > $TMP_OUTPUT_DIR/x; {last}"
    server = start_server(script, WATCHDOG_METRICS_PORT=str(free_port()))
    with server.connect() as sock:
        sock.sendall(
            b"POST /?output=%b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % form.encode()
        )
        start = b""
        while len(start) < 100_000:
            start += sock.recv(65536)
        (output,) = server.tmp.glob(pattern)
        change(output)
        head, _, body = (start + read_all(sock)).partition(b"\r\n\r\n")
    length = re.search(rb"\r\nContent-Length: (\d+)", head)
    assert length is not None
    assert 0 < len(body) < int(length[1])
    server.event("invocation ended", outcome="bad_output", level="error")
    until(lambda: server.metric('http_requests_total{code="500",method="POST"}') == 1, "the call to be counted")
    assert server.call(b"", "/?output=json").status == 200


@pytest.mark.guard("regular-files-only", never="no answer came")
def test_script_that_leaves_a_fifo_in_its_own_place_delays_no_call(start_server: StartServer) -> None:
    """The server reads the script again after a failure, to see whether the file explains it."""
    server = start_server('rm "$0"; mkfifo "$0"; exit 3')
    assert problem(server.call(b""), 500)["exit_code"] == 3
    assert "it is not a regular file" in str(problem(server.call(b""), 500)["detail"])
    assert server.call(None, "/_/health", "GET").status == 200


# ---- files that a crash left


@pytest.mark.guard("sweep", "sweep-lock")
def test_the_sweep_removes_only_what_a_crash_left(start_server: StartServer, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    wait = f"touch {tmp_path}/up-$CALL_ID; until [ -e {tmp_path}/go ]; do sleep 0.05; done; cat $INPUT_FILE_PATH"
    dead = start_server(wait, TMPDIR=str(shared))
    live = start_server(wait, TMPDIR=str(shared))
    with ThreadPoolExecutor(1) as pool, dead.connect() as sock, contextlib.ExitStack() as stack:
        stack.callback((tmp_path / "go").touch)  # let the calls end, even if an assertion fails
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nX-Call-Id: dead\r\nContent-Length: 4\r\n\r\nZGVk")
        living = pool.submit(live.call, b"bGl2ZXM=", headers={"X-Call-Id": "live"})
        for name in ("up-dead", "up-live"):
            until((tmp_path / name).exists, name)
        (shared / "watchdog-no-lock").mkdir()  # without a lock, it is not the directory of a server
        (shared / "theirs").touch()
        dead.process.kill()
        dead.process.wait()
        assert len(list(shared.glob("watchdog-*/lock"))) == 2
        # This server has the same TMPDIR, so it replaces the lock file of the dead server. It makes its own directory
        # at its first call.
        following = start_server("echo hi", TMPDIR=str(shared))
        assert len(list(shared.glob("watchdog-*/lock"))) == 1
        assert following.call(b"").body == b"hi\n"
        (tmp_path / "go").touch()
        assert living.result().body == b"lives"
    assert (shared / "watchdog-no-lock").is_dir()
    assert (shared / "theirs").exists()
