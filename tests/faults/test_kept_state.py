"""The next call does not see the changes that a script made to its directories and pipes."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from running_server import AS_PID_1, WITHOUT_PRIVILEGES, StartServer, until

PREFIXES = {"plain": (), "pid 1": AS_PID_1, "no privileges": WITHOUT_PRIVILEGES}

# Prints the state of the directories and pipes. Then it changes every part of this state that its user may change.
SCRIPT = r"""
import contextlib, fcntl, os, signal, struct

GET_FLAGS, SET_FLAGS = 0x80086601, 0x40086602  # linux/fs.h
LOCK = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
output = os.environ["TMP_OUTPUT_DIR"]
directories = [os.path.dirname(output), output, os.environ["TMP_INPUT_DIR"]]


def flags(path):
    try:
        return struct.unpack("=Q", fcntl.ioctl(os.open(path, os.O_RDONLY), GET_FLAGS, bytes(8)))[0]
    except OSError:
        return 0


def set_flag(path, flag):
    fcntl.ioctl(os.open(path, os.O_RDONLY), SET_FLAGS, struct.pack("=Q", flags(path) | flag))


for path in directories:
    status = os.stat(path)
    attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    print(oct(status.st_mode), status.st_uid, status.st_gid, attributes, hex(flags(path)))
for fd in 1, 2:
    status = os.fstat(fd)
    print(oct(status.st_mode), status.st_uid, status.st_gid)
    print([fcntl.fcntl(fd, get) for get in (fcntl.F_GETFL, fcntl.F_GETPIPE_SZ, fcntl.F_GETOWN, fcntl.F_GETSIG)])
    with contextlib.suppress(PermissionError):
        again = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK)
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.fcntl(again, fcntl.F_OFD_SETLK, LOCK)
        os.close(again)

changes = {
    "pipes": [
        lambda fd: fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 1 << 17),
        lambda fd: fcntl.flock(fd, fcntl.LOCK_EX),
        lambda fd: fcntl.fcntl(fd, fcntl.F_OFD_SETLK, LOCK),
        lambda fd: fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG),
        lambda fd: os.fchmod(fd, 0),
        lambda fd: os.fchown(fd, 12345, 12345),
        lambda fd: fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC | os.O_DIRECT),
    ],
    "directories": [
        *(lambda path, flag=flag: set_flag(path, flag) for flag in (0x8, 0x40, 0x80, 0x10000, 0x20000000)),
        lambda path: os.setxattr(path, "user.mine", b"1"),
        lambda path: os.chmod(path, 0o3711),
        lambda path: os.chown(path, 12345, 12345),
    ],
}
kind = os.environ["Http_X_Kind"]
for change in changes[kind]:
    for each in (1, 2) if kind == "pipes" else directories:
        with contextlib.suppress(OSError):
            change(each)
"""


@pytest.mark.guard("fresh-pipes")
@pytest.mark.parametrize("mode", PREFIXES)
def test_next_call_has_pipes_in_their_first_state(start_server: StartServer, tmp_path: Path, mode: str) -> None:
    assert_each_call_sees_the_same(start_server, tmp_path, mode, "pipes")


@pytest.mark.guard("as-made")
@pytest.mark.parametrize("mode", PREFIXES)
def test_next_call_has_directories_in_their_first_state(start_server: StartServer, tmp_path: Path, mode: str) -> None:
    assert_each_call_sees_the_same(start_server, tmp_path, mode, "directories")


def assert_each_call_sees_the_same(start_server: StartServer, tmp_path: Path, mode: str, kind: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    server = start_server(f"exec {sys.executable} {tmp_path}/script.py", prefix=PREFIXES[mode])
    answers = [server.call(b"", headers={"X-Kind": kind}) for _ in range(10)]
    assert [answer.status for answer in answers] == [200] * 10
    assert len({answer.body for answer in answers}) == 1, answers


@pytest.mark.guard("same-directories")
def test_files_behind_a_link_stay_when_other_scripts_run(start_server: StartServer, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/precious").touch()
    server = start_server(
        f"""#!/bin/sh
case "$Http_X_Kind" in
long) touch {tmp_path}/runs; until [ -e {tmp_path}/may_end ]; do sleep 0.02; done ;;
link) mv "$TMP_INPUT_DIR" {tmp_path}/moved; ln -s {tmp_path}/data "$TMP_INPUT_DIR" ;;
esac
""",
        WATCHDOG_MAX_INFLIGHT="2",
    )
    with ThreadPoolExecutor() as pool:
        other = pool.submit(server.call, b"", headers={"X-Kind": "long"})
        until((tmp_path / "runs").exists, "the other script to run")
        assert server.call(b"", headers={"X-Kind": "link"}).status == 200
        assert server.call(b"").status == 200  # before this answer, the directory of the last call was emptied
        (tmp_path / "may_end").touch()
        assert other.result().status == 200
    assert (tmp_path / "data/precious").exists()


SPOIL = {
    "mode": "os.chmod(root, 0)",
    "mode for all": "os.chmod(root, 0o2777)",
    "what new directories inherit": "os.setxattr(root, 'system.posix_acl_default', ACCESS_LIST)",
    "file in its place": "os.rename(root, moved); open(root, 'w').close()",
    "link in its place": "os.rename(root, moved); os.symlink(moved, root)",
    "nothing in its place": "os.rename(root, moved)",
}


@pytest.mark.guard("root-as-made")
@pytest.mark.parametrize(
    "spoil", ["mode for all", "what new directories inherit", "file in its place", "link in its place"]
)
def test_next_call_does_not_depend_on_a_directory_of_all_calls_that_a_script_spoiled(
    start_server: StartServer, tmp_path: Path, spoil: str
) -> None:
    """The directory is in ``TMPDIR``, and each call has its own directory in it."""
    assert_next_call_has_clean_directories(start_server, tmp_path, spoil)


@pytest.mark.parametrize("spoil", ["mode", "nothing in its place"])
def test_next_call_does_not_depend_on_a_directory_of_all_calls_that_a_script_closed_or_moved(
    start_server: StartServer, tmp_path: Path, spoil: str
) -> None:
    assert_next_call_has_clean_directories(start_server, tmp_path, spoil)


def assert_next_call_has_clean_directories(start_server: StartServer, tmp_path: Path, spoil: str) -> None:
    (tmp_path / "script.py").write_text(f"""
import os, struct

output = os.environ["TMP_OUTPUT_DIR"]
root = os.path.dirname(os.path.dirname(output))
moved = os.path.join(os.path.dirname(root), "moved-" + os.path.basename(root))
# A list that names a user (linux/posix_acl_xattr.h).
entries = [(1, 7, -1), (2, 5, os.getuid()), (4, 0, -1), (0x10, 5, -1), (0x20, 0, -1)]
ACCESS_LIST = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
print([oct(os.lstat(path).st_mode) for path in (root, os.path.dirname(output), output)], os.listxattr(output))
if "Http_X_Spoil" in os.environ:
    {SPOIL[spoil]}
""")
    server = start_server(f"exec {sys.executable} {tmp_path}/script.py", prefix=WITHOUT_PRIVILEGES)
    first = server.call(b"")
    for _ in range(3):
        server.call(b"", headers={"X-Spoil": "yes"})
        # The call waits until the directories of the last call are removed. They are removed even without another call.
        until(lambda: not server.leftovers_of_calls(), "the directories to be removed")
        answer = server.call(b"")
        assert (answer.status, answer.body) == (200, first.body), answer.body
    assert len(list(server.tmp.glob("watchdog-*"))) <= 2
    assert server.stop() == 0
    assert list(server.tmp.glob("watchdog-*")) == []
