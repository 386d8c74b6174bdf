"""The lock file of OpenFaaS's health check, in a directory where every script may write."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from running_server import StartServer, until


def is_lock_file(path: Path) -> bool:
    """Whether ``cat`` can read the file without waiting."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    return stat.S_ISREG(mode) and bool(mode & stat.S_IRUSR)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        # The path of a socket may have 107 bytes at most.
        directory = os.open(path.parent, os.O_PATH)
        sock.bind(f"/proc/self/fd/{directory}/{path.name}")
        os.close(directory)


PLANTED: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "socket": make_socket,
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "unreadable file": lambda path: path.touch(mode=0),
}


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED.keys())
def test_server_starts_over_what_is_in_the_place_of_its_lock_file(
    start_server: StartServer, tmp_path: Path, plant: Callable[[Path], object]
) -> None:
    lock = tmp_path / ".lock"
    plant(lock)
    server = start_server("echo hi", TMPDIR=str(tmp_path))
    assert is_lock_file(lock)
    assert any("the lock file was not a readable regular file" in each["event"] for each in server.logs)
    assert server.call(b"").body == b"hi\n"
    assert server.stop() == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".lock")] == []


@pytest.mark.guard("lock-file-made-anew")
@pytest.mark.parametrize("link", [os.link, os.symlink], ids=["hard link", "symbolic link"])
def test_file_linked_as_lock_file_keeps_its_content(
    start_server: StartServer, tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    (tmp_path / "model").write_text("weights")
    link(tmp_path / "model", tmp_path / ".lock")
    server = start_server("echo hi", TMPDIR=str(tmp_path))
    assert server.call(b"").body == b"hi\n"
    assert (tmp_path / "model").read_text() == "weights"


@pytest.mark.guard("lock-file-made-anew", never="the event 'the lock file was gone")
def test_fifo_as_lock_file_does_not_block_a_running_server(start_server: StartServer) -> None:
    server = start_server('mkfifo "$TMPDIR/new"; mv -f "$TMPDIR/new" "$TMPDIR/.lock"')
    assert server.call(b"").status == 200
    server.event("the lock file was gone and is written again", change="replaced")
    assert server.call(None, "/_/health", "GET").status == 200


@pytest.mark.guard("lock-file-kept", never="the lock file")
@pytest.mark.parametrize(
    "script",
    [
        'rm "$TMPDIR/.lock"',
        'mkfifo "$TMPDIR/new"; mv -f "$TMPDIR/new" "$TMPDIR/.lock"',
        'ln -s /dev/zero "$TMPDIR/new"; mv -f "$TMPDIR/new" "$TMPDIR/.lock"',
        'chmod 0 "$TMPDIR/.lock"',
    ],
    ids=["removed", "FIFO", "link to a device", "unreadable"],
)
def test_lock_file_that_a_script_spoils_is_written_again(start_server: StartServer, script: str) -> None:
    """No probe comes over HTTP: a health check may be ``cat`` in the container."""
    server = start_server(script)
    assert server.call(b"").status == 200
    until(lambda: is_lock_file(server.tmp / ".lock"), "the lock file")
    assert server.stop() == 0
    (warning,) = [each for each in server.logs if each["event"] == "the lock file was gone and is written again"]
    assert (warning["level"], warning["change"]) == ("warning", "removed" if script.startswith("rm") else "replaced")
    assert not (server.tmp / ".lock").exists()


def test_health_is_503_while_the_lock_file_cannot_be_written_again(start_server: StartServer) -> None:
    server = start_server('until mkdir "$TMPDIR/.lock"; do rm -f "$TMPDIR/.lock"; done')
    assert server.call(b"").status == 200
    assert server.call(None, "/_/health", "GET").status == 503
    assert server.call(None, "/_/ready", "GET").status == 503
    (server.tmp / ".lock").rmdir()
    assert server.call(None, "/_/health", "GET").status == 200
    assert server.stop() == 0
    assert sum("cannot be written again" in each["event"] for each in server.logs) == 1
