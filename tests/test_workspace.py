"""Workspaces: safe names, the files that are outputs, removal after any change by a script, the sweep after a crash."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchdog.errors import BadInput, OutOfResources, OutputTooLarge, OutputUnreadable
from watchdog.process.command import command_for
from watchdog.system.directory_state import state_of
from watchdog.workspace import listing as listing_module
from watchdog.workspace import workspace as workspace_module
from watchdog.workspace import workspaces as workspaces_module
from watchdog.workspace.file_name import new_file_name, safe_file_name
from watchdog.workspace.listing import MOST_OUTPUTS, Listing, list_outputs
from watchdog.workspace.outputs import Output, open_output
from watchdog.workspace.remove_tree import remove_tree
from watchdog.workspace.response_file import read_response_file
from watchdog.workspace.space import is_full
from watchdog.workspace.workspace import Workspace
from watchdog.workspace.workspaces import Workspaces


def listed(workspace: Workspace, most: int = MOST_OUTPUTS) -> tuple[list[Output], list[tuple[str, str]]]:
    """List all outputs at once; return `outputs` and `skipped` of the listing."""
    listing = Listing()
    for _ in list_outputs(workspace.output_dir, listing, most):
        pass
    return listing.outputs, listing.skipped


@pytest.fixture(autouse=True)
def no_slow_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep directories also on a busy machine, where work on files takes long."""
    monkeypatch.setattr(workspaces_module, "_SLOW_S", 60.0)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("photo.jpg", "photo.jpg"),
        ("my photo (1).jpg", "my photo (1).jpg"),
        ("/etc/passwd", "passwd"),
        ("../../x", "x"),
        ("C:\\Users\\a\\b.png", "b.png"),
        (".bashrc", "bashrc"),
        ("...", None),
        ("..", None),
        (".", None),
        ("", None),
        ("a/", None),
        ("ab\u202egpj.exe", "abgpj.exe"),
        ("\u200b\u200f", None),
        (". .bashrc", "bashrc"),
        (". ..", None),
        ("\udcf1.jpg", "\ufffd.jpg"),
        ("Größe.tar.gz", "Größe.tar.gz"),
        ("x" * 300 + ".jpg", "x" * 196 + ".jpg"),
        ("é" * 150 + ".jpg", "é" * 98 + ".jpg"),
        ("x" * 300, "x" * 200),
    ],
)
def test_safe_file_name(name: str, safe: str | None) -> None:
    assert safe_file_name(name) == safe


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "a\rb", "\x7f", "a\tb"])
def test_a_control_character_in_a_name_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="control character"):
        safe_file_name(name)


@given(st.text(max_size=400))
def test_a_safe_name_is_always_one_visible_component(name: str) -> None:
    try:
        safe = safe_file_name(name)
    except (BadInput, UnicodeEncodeError):
        return
    if safe is not None:
        assert "/" not in safe
        assert not safe.startswith(".")
        assert len(os.fsencode(safe)) <= 200


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(str(tmp_path / "w"))


def test_new_file_name_has_a_random_uuid() -> None:
    names = {new_file_name() for _ in range(1000)}
    assert len(names) == 1000
    for name in names:
        given = uuid.UUID(name.removeprefix("event-file-"))
        assert (given.version, given.variant, f"event-file-{given}") == (4, uuid.RFC_4122, name)


def test_outputs_are_the_regular_files_below(workspace: Workspace, tmp_path: Path) -> None:
    out = Path(workspace.output_dir)
    (out / "b.txt").write_bytes(b"bb")
    (out / "a" / "deep").mkdir(parents=True)
    (out / "a" / "deep" / "c").write_bytes(b"c")
    (out / "link").symlink_to("b.txt")
    (out / "linked-dir").symlink_to("a")
    (out / "a" / "up").symlink_to("..")
    (tmp_path / "secret").write_bytes(b"no")
    (out / "leaves").symlink_to(tmp_path / "secret")
    (out / "leaves-dir").symlink_to("/etc")
    (out / "dangling").symlink_to("nothing")
    os.mkfifo(out / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(out / "socket"))
        outputs, skipped = listed(workspace)
    names = [(output.name, output.size_bytes) for output in outputs]
    assert names == [("a/deep/c", 1), ("b.txt", 2), ("link", 2)]
    reasons = dict(skipped)
    assert reasons["fifo"] == "a FIFO"
    assert reasons["socket"] == "a socket"
    assert reasons["leaves"] == reasons["leaves-dir"] == "a symbolic link that leaves the directory"
    assert reasons["dangling"] == "a symbolic link to nothing"
    assert reasons["linked-dir"] == "a symbolic link to a directory whose files are outputs already"
    assert reasons["a/up"] == reasons["linked-dir"]


def make_bomb(directory: Path) -> None:
    """Make 24 directories, each with two links to the next one: 2^23 paths lead to the last one and its file."""
    for level in range(24):
        (directory / f"d{level:02}").mkdir(parents=True)
        if level < 23:
            (directory / f"d{level:02}/a").symlink_to(f"../d{level + 1:02}")
            (directory / f"d{level:02}/b").symlink_to(f"../d{level + 1:02}")
    (directory / "d23/file").write_bytes(b"x")


def test_a_directory_with_many_paths_is_listed_once(workspace: Workspace) -> None:
    make_bomb(Path(workspace.output_dir))
    outputs, skipped = listed(workspace, 1000)
    assert [output.name for output in outputs] == ["d23/file"]
    assert len(skipped) == 46


def test_more_files_than_the_limit_are_refused(workspace: Workspace) -> None:
    for number in range(11):
        Path(workspace.output_dir, str(number)).touch()
    assert len(listed(workspace, 11)[0]) == 11
    with pytest.raises(OutputTooLarge, match="over 10 files"):
        listed(workspace, 10)


def test_the_first_step_of_a_listing_is_short(workspace: Workspace) -> None:
    for number in range(1000):
        Path(workspace.output_dir, str(number)).touch()
    listing = Listing()
    steps = list_outputs(workspace.output_dir, listing)
    assert next(steps)
    assert 0 < len(listing.outputs) <= 200
    assert next(steps, None) is None
    assert [output.name for output in listing.outputs] == sorted(map(str, range(1000)))


def test_a_listing_that_is_closed_goes_no_further(workspace: Workspace) -> None:
    for number in range(1000):
        Path(workspace.output_dir, str(number)).touch()
    listing = Listing()
    steps = list_outputs(workspace.output_dir, listing)
    next(steps)
    seen = len(listing.outputs)
    descriptors = os.listdir("/proc/self/fd")
    steps.close()
    assert len(os.listdir("/proc/self/fd")) == len(descriptors) - 1
    assert next(steps, None) is None
    assert len(listing.outputs) == seen < 1000


def test_no_link_is_followed_in_the_first_step(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(workspace.output_dir, "link").symlink_to("nothing")
    followed: list[str] = []

    def follow(output_dir: str, name: str, path: str) -> str:
        followed.append(name)
        return "followed"

    monkeypatch.setattr(listing_module, "_behind_link", follow)
    steps = list_outputs(workspace.output_dir, Listing())
    assert next(steps)
    assert followed == []
    assert next(steps, None) is None
    assert followed == ["link"]


def test_an_output_dir_that_was_removed_has_no_outputs(workspace: Workspace) -> None:
    os.rmdir(workspace.output_dir)
    assert listed(workspace) == ([], [("TMP_OUTPUT_DIR", "removed by the script")])


@pytest.mark.parametrize("instead", ["a file", "a symbolic link", "a FIFO"])
def test_something_in_the_place_of_the_output_dir_is_reported(workspace: Workspace, instead: str) -> None:
    os.rmdir(workspace.output_dir)
    if instead == "a file":
        Path(workspace.output_dir).write_bytes(b"x")
    elif instead == "a FIFO":
        os.mkfifo(workspace.output_dir)
    else:
        os.symlink("/etc", workspace.output_dir)
    with pytest.raises(OutputUnreadable, match=instead):
        listed(workspace)


@pytest.mark.parametrize(
    ("blocks", "free", "inodes", "free_inodes", "full"),
    [
        (1000, 500, 100, 50, False),
        (1000, 0, 100, 50, True),
        (1000, 500, 100, 0, True),
        (0, 0, 100, 50, False),  # tmpfs with size=0 counts no blocks
        (1000, 500, 0, 0, False),  # btrfs counts no inodes
    ],
)
def test_a_file_system_is_full_if_it_counts_and_has_none_left(
    monkeypatch: pytest.MonkeyPatch, blocks: int, free: int, inodes: int, free_inodes: int, full: bool
) -> None:
    status = (4096, 4096, blocks, free, free, inodes, free_inodes, free_inodes, 0, 255)
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(status))
    assert is_full("/") is full


def test_a_file_larger_than_its_file_system_is_refused(workspace: Workspace) -> None:
    with open(workspace.output_dir + "/sparse", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OutputTooLarge, match="sparse"):
        listed(workspace)


def test_a_name_that_is_not_utf8_is_kept(workspace: Workspace) -> None:
    with open(os.fsencode(workspace.output_dir) + b"/\xff.bin", "wb"):
        pass
    assert [os.fsencode(output.name) for output in listed(workspace)[0]] == [b"\xff.bin"]


def test_an_output_that_changed_is_not_opened(workspace: Workspace) -> None:
    path = Path(workspace.output_dir) / "x"
    path.write_bytes(b"12")
    (output,), _ = listed(workspace)
    os.close(open_output(output))
    path.write_bytes(b"123")
    with pytest.raises(OutputUnreadable, match="changed"):
        open_output(output)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OutputUnreadable, match="changed"):
        open_output(output)
    path.unlink()
    with pytest.raises(OutputUnreadable, match="No such file"):
        open_output(output)


def test_an_error_shows_only_the_ends_of_a_very_long_name(workspace: Workspace) -> None:
    output = Output(f"{workspace.output_dir}/x", "a" * 4000, 0, 0.0, 0o644)
    with pytest.raises(OutputUnreadable, match=r"cannot read the output 'a{150}…a{150}': No such file"):
        open_output(output)


def test_a_very_deep_tree_is_removed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    here = os.open(root, os.O_RDONLY)
    for _ in range(3000):  # far over PATH_MAX and the recursion limit
        os.mkdir("d" * 20, dir_fd=here)
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    remove_tree(str(root))
    assert not root.exists()


def test_a_directory_of_many_entries_is_removed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of millions of entries would need gigabytes of memory."""
    monkeypatch.setattr("watchdog.workspace.remove_tree._REMOVED_AT_ONCE", 3)
    root = tmp_path / "root"
    for folder in ("", "a", "a/b"):
        (root / folder).mkdir()
        for number in range(10):
            (root / folder / f"file{number}").touch()
            (root / folder / f"folder{number}").mkdir()
    remove_tree(str(root))
    assert not root.exists()


def test_directory_in_which_files_appear_during_the_removal_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that a warm script left may continue to write. Here it writes just before a directory is removed."""
    late = iter(range(3))
    rmdir = os.rmdir

    def rmdir_after_a_write(path: str) -> None:
        if (number := next(late, None)) is not None:
            Path(path, f"late-{number}").touch()
        rmdir(path)

    monkeypatch.setattr(os, "rmdir", rmdir_after_a_write)
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    remove_tree(str(root))
    assert not root.exists()


def test_what_took_its_permissions_away_is_removed(tmp_path: Path) -> None:
    code = """
import os, sys
from watchdog.workspace.remove_tree import remove_tree
root = sys.argv[1]
os.makedirs(root + "/a/b/c")
open(root + "/a/b/f", "w").close()
for path in ("/a/b/c", "/a/b", "/a"):
    os.chmod(root + path, 0)
try:
    os.listdir(root + "/a")
except PermissionError:
    remove_tree(root)
    assert not os.path.exists(root)
    print("removed")
"""
    # Modes bind root only without these two capabilities.
    unprivileged = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*unprivileged, sys.executable, "-c", code, str(tmp_path / "root")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "removed\n"


def test_the_sweep_removes_only_directories_of_dead_servers(tmp_path: Path) -> None:
    code = """
import os, sys
from watchdog.workspace.workspaces import Workspaces
workspace = Workspaces(sys.argv[1]).make()
open(workspace.input_dir + "/x", "w").close()
print(workspace.path, flush=True)
sys.stdin.read()
"""

    def start() -> tuple[subprocess.Popen[str], Path]:
        server = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        return server, Path(server.stdout.readline().strip())

    crashed, crashed_path = start()
    living, living_path = start()
    with crashed, living:
        crashed.kill()
        crashed.wait()
        (tmp_path / "watchdog-mine").mkdir()
        (tmp_path / "watchdog-file").touch()
        swept = Workspaces(str(tmp_path)).sweep()
        assert swept == ([str(crashed_path.parent)], [])
        assert living_path.exists()
        assert (tmp_path / "watchdog-mine").exists()
        living.kill()


def no_locks(fd: int, operation: int) -> None:
    """Stand in for flock(2) on a file system without locks."""
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.parametrize("what", ["folder", "link", "output", "response file", "script"])
def test_lack_of_a_descriptor_is_not_the_fault_of_the_script(workspace: Workspace, what: str) -> None:
    leaf = Path(workspace.output_dir, "leaf")
    leaf.write_text("x")
    (output,), _ = listed(workspace)
    steps = list_outputs(workspace.output_dir, Listing())
    if what == "link":
        Path(workspace.output_dir, "link").symlink_to(leaf)
        assert next(steps)  # the directory is open, and the next step follows the link
    use: dict[str, Callable[[], object]] = {
        "folder": lambda: next(steps),
        "link": lambda: next(steps),
        "output": lambda: open_output(output),
        "response file": lambda: read_response_file(workspace.response_file),
        "script": lambda: command_for(str(leaf), "/bin"),
    }
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OutOfResources, match=r"Too many open files; raise the limit of open files \(docker run"):
            use[what]()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("lacks", ["descriptors", "locks"])
def test_a_root_that_cannot_be_locked_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    before = os.listdir("/proc/self/fd")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if lacks == "locks":
        monkeypatch.setattr(fcntl, "flock", no_locks)
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError) as caught:
            Workspaces(str(tmp_path)).make()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == (errno.ENOLCK if lacks == "locks" else errno.EMFILE)
    assert os.listdir("/proc/self/fd") == before
    assert list(tmp_path.iterdir()) == []


def test_the_sweep_leaves_directories_whose_lock_cannot_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "watchdog-other/lock"
    lock.parent.mkdir()
    lock.touch()
    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert Workspaces(str(tmp_path)).sweep() == ([], [])
    assert lock.exists()


def test_a_removed_root_is_made_again(tmp_path: Path) -> None:
    workspaces = Workspaces(str(tmp_path))
    first = workspaces.make()
    remove_tree(os.path.dirname(first.path))
    second = workspaces.make()
    assert os.path.isdir(second.input_dir)
    workspaces.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("replaced", ["path", "input_dir", "output_dir"])
def test_what_lies_behind_a_link_is_not_removed(workspace: Workspace, tmp_path: Path, replaced: str) -> None:
    """A script moved one of its directories away and put a link there, to a place that has files of the same names."""
    elsewhere = tmp_path / "elsewhere"
    files = ["input/a", "output/b", "response", "a", "b"]
    for name in files:
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / name).touch()
    path = Path(getattr(workspace, replaced))
    path.rename(tmp_path / "moved")
    path.symlink_to(elsewhere)
    workspace.remove()
    assert not os.path.lexists(workspace.path)
    assert all((elsewhere / name).exists() for name in files)


@pytest.mark.parametrize("place", ["output", "output/below"])
def test_what_a_script_has_mounted_is_not_emptied(tmp_path: Path, place: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    code = """
import os, subprocess, sys
from watchdog.workspace.workspace import Workspace
workspace = Workspace(sys.argv[1])
mounted = os.path.join(workspace.path, sys.argv[3])
os.makedirs(mounted, exist_ok=True)
subprocess.run(["mount", "--bind", sys.argv[2], mounted], check=True)
try:
    workspace.remove()
except OSError as error:
    print(error.strerror)
"""
    root = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    command = ["unshare", *root, "--mount", sys.executable, "-c", code, str(tmp_path / "1"), str(elsewhere), place]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=60)
    assert done.stdout == "Device or resource busy\n", done.stderr
    assert (elsewhere / "file").exists()


# ---- reuse

_UNTIDY = {
    "a directory": 'mkdir "$TMP_OUTPUT_DIR/d"',
    "a directory beside": "mkdir d",
    "many files": "touch $(seq 17); [ -e 17 ]",
    "a file that is large now": 'truncate -s 2M "$TMP_INPUT_DIR/in"',
    "another mode": 'chmod 711 "$TMP_OUTPUT_DIR"',
    "no permission": 'chmod 0 "$TMP_INPUT_DIR"',
    "another directory": 'mv "$TMP_OUTPUT_DIR" ../moved; mkdir -m 755 "$TMP_OUTPUT_DIR"',
    "a link to where it was": 'mv "$TMP_INPUT_DIR" ../moved; ln -s ../moved "$TMP_INPUT_DIR"',
    "a file in its place": 'rm -r "$TMP_OUTPUT_DIR"; touch "$TMP_OUTPUT_DIR"',
    "no directory": 'rm -r "$TMP_OUTPUT_DIR"',
}
_TIDY = {
    "nothing": ":",
    "an output": 'echo 1 > "$TMP_OUTPUT_DIR/out"',
    "no input any more": 'rm "$TMP_INPUT_DIR/in"',
    "a response, and what is no file": 'echo Status: 201 > response; ln -s / "$TMP_OUTPUT_DIR/link"; mkfifo fifo',
    "a file without any mode": 'touch "$TMP_OUTPUT_DIR/x"; chmod 0 "$TMP_OUTPUT_DIR/x"',
    "sixteen files": "touch $(seq 15)",
}


def after_script(workspaces: Workspaces, script: str) -> Workspace:
    workspace = workspaces.make()
    Path(workspace.input_dir, "in").write_text("1")
    environment = {**os.environ, "TMP_INPUT_DIR": workspace.input_dir, "TMP_OUTPUT_DIR": workspace.output_dir}
    subprocess.run(["sh", "-ec", script], check=True, env=environment, cwd=workspace.path)
    return workspace


@pytest.mark.parametrize("script", _TIDY.values(), ids=_TIDY)
def test_the_directory_of_a_small_call_is_the_next_ones(tmp_path: Path, script: str) -> None:
    workspaces = Workspaces(str(tmp_path))
    first = after_script(workspaces, script)
    assert workspaces.keep(first)
    second = workspaces.make()
    assert second is first
    below = sorted(
        os.path.join(where, name) for where, directories, files in os.walk(first.path) for name in directories + files
    )
    assert below == [first.input_dir, first.output_dir]
    assert workspaces.make().path != second.path
    workspaces.close()


@pytest.mark.parametrize("script", _UNTIDY.values(), ids=_UNTIDY)
def test_what_is_not_small_or_not_as_it_was_made_is_not_kept(tmp_path: Path, script: str) -> None:
    workspaces = Workspaces(str(tmp_path))
    first = after_script(workspaces, script)
    assert not workspaces.keep(first)
    assert workspaces.make().path != first.path
    first.remove()
    assert not os.path.lexists(first.path)
    workspaces.close()


def test_a_directory_that_has_grown_is_not_kept(tmp_path: Path) -> None:
    workspaces = Workspaces(str(tmp_path))
    workspace = after_script(workspaces, 'cd "$TMP_OUTPUT_DIR"; touch $(seq 3000); rm $(seq 3000)')
    has_grown = os.stat(workspace.output_dir).st_size > 16 * 1024  # on ext4, not on tmpfs
    assert workspaces.keep(workspace) is not has_grown
    workspaces.close()


def test_a_file_system_may_give_any_size_for_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CephFS reports the size of all files below a directory, other file systems the size of a whole block."""
    fstat = os.fstat

    def large(fd: int) -> os.stat_result:
        status = fstat(fd)
        return os.stat_result((*status[:6], 1 << 20, *status[7:10]))

    workspaces = Workspaces(str(tmp_path))
    with monkeypatch.context() as context:
        context.setattr(os, "fstat", large)
        workspace = workspaces.make()
        assert workspaces.keep(workspace)
        assert workspaces.make() is workspace
    workspaces.close()


def set_flag(path: str, flag: int) -> None:
    """Do what ``chattr`` does."""
    get_flags, set_flags = 0x80086601, 0x40086602  # linux/fs.h
    fd = os.open(path, os.O_RDONLY)
    try:
        (flags,) = struct.unpack("=Q", fcntl.ioctl(fd, get_flags, bytes(8)))
        fcntl.ioctl(fd, set_flags, struct.pack("=Q", flags | flag))
    except OSError as error:
        # EINVAL: in a user namespace, no process can change what belongs to projects.
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            pytest.skip(f"the file system of {path} does not have the flag {flag:#x}, or this user cannot set it")
        raise
    finally:
        os.close(fd)


def access_list(others: int) -> bytes:
    """Return a list as ``system.posix_acl_*`` has it (linux/posix_acl_xattr.h) that names a user."""
    no_id = 0xFFFFFFFF
    entries = [(1, 7, no_id), (2, 5, os.getuid()), (4, 5, no_id), (0x10, 5, no_id), (0x20, others, no_id)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def change_owner(path: str) -> None:
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    else:
        groups = set(os.getgroups()) - {os.stat(path).st_gid}
        if not groups:
            pytest.skip("this user is in one group only")
        os.chown(path, -1, groups.pop())


_CHANGES: dict[str, Callable[[str], None]] = {
    "owner": change_owner,
    "set-group-id": lambda path: os.chmod(path, 0o2755),
    "sticky": lambda path: os.chmod(path, 0o1755),
    "attribute": lambda path: os.setxattr(path, "user.mine", b"1"),
    "access list": lambda path: os.setxattr(path, "system.posix_acl_access", access_list(5)),
    "default access list": lambda path: os.setxattr(path, "system.posix_acl_default", access_list(5)),
    "chattr +S": lambda path: set_flag(path, 0x8),
    "chattr +d": lambda path: set_flag(path, 0x40),
    "chattr +A": lambda path: set_flag(path, 0x80),
    "chattr +D": lambda path: set_flag(path, 0x10000),
    "chattr +P": lambda path: set_flag(path, 0x20000000),
}


@pytest.mark.parametrize("place", ["input", "output", "."])
@pytest.mark.parametrize("change", _CHANGES.values(), ids=_CHANGES)
def test_directory_whose_state_has_changed_is_not_kept(
    tmp_path: Path, change: Callable[[str], None], place: str
) -> None:
    workspaces = Workspaces(str(tmp_path))
    workspace = workspaces.make()
    directory = os.path.join(workspace.path, place)
    change(directory)
    Path(directory, "file").touch()
    os.unlink(os.path.join(directory, "file"))
    assert not workspaces.keep(workspace)
    workspaces.close()


@pytest.mark.parametrize("place", ["input", "output", "."])
@pytest.mark.parametrize("change", _CHANGES.values(), ids=_CHANGES)
def test_directory_that_changed_while_other_scripts_ran_is_not_the_next_ones(
    tmp_path: Path, change: Callable[[str], None], place: str
) -> None:
    workspaces = Workspaces(str(tmp_path))
    workspace = workspaces.make()
    change(os.path.join(workspace.path, place))
    workspaces.keep(workspace, others_run=True)
    assert workspaces.make() is not workspace
    workspaces.close()


@pytest.mark.parametrize("script", _UNTIDY.values(), ids=_UNTIDY)
def test_untidy_directory_is_not_the_next_ones_if_other_scripts_ran(tmp_path: Path, script: str) -> None:
    workspaces = Workspaces(str(tmp_path))
    workspace = after_script(workspaces, script)
    workspaces.keep(workspace, others_run=True)
    assert workspaces.make() is not workspace
    workspaces.close()


@pytest.mark.parametrize("place", ["input_dir", "output_dir", "path"])
def test_nothing_behind_a_link_is_removed_while_other_scripts_run(tmp_path: Path, place: str) -> None:
    workspaces = Workspaces(str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    workspace = workspaces.make()
    directory = Path(getattr(workspace, place))
    moved = tmp_path / "moved"
    directory.rename(moved)
    (moved / "data").touch()
    directory.symlink_to(moved)
    assert not workspaces.keep(workspace, others_run=True)
    assert (moved / "data").exists()
    workspaces.close()


def settled_workspace(workspaces: Workspaces, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Return a directory whose time of change shows each later change."""
    monkeypatch.setattr(workspace_module, "_SETTLED_S", -1.0)
    for _ in range(3):
        workspace = workspaces.make()
        assert workspaces.keep(workspace)
    probe = Path(workspaces.tmp_dir, "probe")
    while True:  # until the clock of the file system has moved on
        probe.touch()
        if probe.stat().st_ctime_ns > os.stat(workspace.path).st_ctime_ns:
            return workspaces.make()


def opened_directories(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which each directory is added whose state is read."""
    opened = []

    def noted(path: str) -> object:
        opened.append(os.path.basename(path))
        return state_of(path)

    monkeypatch.setattr(workspace_module, "state_of", noted)
    return opened


def test_untouched_directory_is_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspaces = Workspaces(str(tmp_path))
    workspace = settled_workspace(workspaces, monkeypatch)
    opened = opened_directories(monkeypatch)
    assert workspaces.keep(workspace)
    assert opened == ["input", "output"]
    workspaces.close()


def test_directory_is_opened_again_as_long_as_two_changes_may_have_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspaces = Workspaces(str(tmp_path))
    monkeypatch.setattr(workspace_module, "_SETTLED_S", 3600.0)
    for _ in range(5):
        workspace = workspaces.make()
        opened = opened_directories(monkeypatch)
        assert workspaces.keep(workspace)
        assert opened == [os.path.basename(workspace.path), "input", "output"]
    workspaces.close()


@pytest.mark.parametrize("change", _CHANGES.values(), ids=_CHANGES)
def test_settled_directory_whose_state_has_changed_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[str], None]
) -> None:
    workspaces = Workspaces(str(tmp_path))
    workspace = settled_workspace(workspaces, monkeypatch)
    change(workspace.path)
    assert not workspaces.keep(workspace)
    workspaces.close()


def test_response_file_in_a_settled_directory_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspaces = Workspaces(str(tmp_path))
    workspace = settled_workspace(workspaces, monkeypatch)
    Path(workspace.response_file).write_text("Status: 201")
    assert workspaces.keep(workspace)
    assert workspaces.make() is workspace
    assert sorted(os.listdir(workspace.path)) == ["input", "output"]
    workspaces.close()


def test_directory_whose_inherited_access_list_has_changed_is_not_kept(tmp_path: Path) -> None:
    name = "system.posix_acl_default"
    os.setxattr(tmp_path, name, access_list(0))
    workspaces = Workspaces(str(tmp_path))
    kept, changed = workspaces.make(), workspaces.make()
    assert os.listxattr(changed.output_dir) == os.listxattr(kept.output_dir) != []
    os.setxattr(changed.output_dir, name, access_list(7))
    assert not workspaces.keep(changed)
    assert workspaces.keep(kept)
    workspaces.close()


@pytest.mark.parametrize(("offset", "is_kept"), [(0, False), (4, False), (8, True), (12, False), (16, False)])
def test_directory_with_another_project_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int, is_kept: bool
) -> None:
    """Few file systems have project ids, so this test changes a field of ``struct fsxattr`` (linux/fs.h) itself.

    Only the number of extents, at the offset 8, may change: it does so by itself.
    """
    size_of_fsxattr = 28

    def changed_ioctl(fd: int, request: int, argument: bytes) -> bytes:
        found = bytearray(len(argument))
        if len(argument) == size_of_fsxattr:
            found[offset] = 1
        return bytes(found)

    workspaces = Workspaces(str(tmp_path))
    monkeypatch.setattr(fcntl, "ioctl", lambda fd, request, argument: bytes(len(argument)))
    workspace = workspaces.make()
    monkeypatch.setattr(fcntl, "ioctl", changed_ioctl)
    assert workspaces.keep(workspace) is is_kept
    workspaces.close()


def test_directory_that_could_not_be_examined_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptor(path: str) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    workspaces = Workspaces(str(tmp_path))
    first = workspaces.make()
    with monkeypatch.context() as context:
        for module in (workspace_module, workspaces_module):
            context.setattr(module, "state_of", no_descriptor)
        unknown = workspaces.make()
    assert os.path.dirname(unknown.path) == os.path.dirname(first.path)
    assert not workspaces.keep(unknown)
    known = workspaces.make()
    with monkeypatch.context() as context:
        context.setattr(workspace_module, "state_of", no_descriptor)
        assert not workspaces.keep(known)
    workspaces.close()


def test_nothing_is_kept_where_space_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspaces = Workspaces(str(tmp_path))
    for field in ("f_bavail", "f_favail"):
        workspace = workspaces.make()
        real = os.statvfs(tmp_path)
        scarce = {name: getattr(real, name) for name in ("f_blocks", "f_frsize", "f_bavail", "f_files", "f_favail")}
        with monkeypatch.context() as context:
            context.setattr(
                os,
                "statvfs",
                lambda _, f={**scarce, "f_files": 10**6, "f_favail": 10**6, field: 10}: SimpleNamespace(**f),
            )
            assert not workspaces.keep(workspace)
        assert workspaces.keep(workspace)
    workspaces.close()


def test_nothing_is_kept_where_nothing_is(tmp_path: Path) -> None:
    workspaces = Workspaces(str(tmp_path / "here"))
    (tmp_path / "here").mkdir()
    workspace = workspaces.make()
    remove_tree(str(tmp_path / "here"))
    assert not workspaces.keep(workspace)


def test_a_slow_file_system_is_left_to_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspaces = Workspaces(str(tmp_path))
    first, second, third = (workspaces.make() for _ in range(3))
    for each in (first, second):
        Path(each.output_dir, "x").touch()
    unlink = os.unlink

    def slow(path: str) -> None:
        time.sleep(0.02)
        unlink(path)

    monkeypatch.setattr(workspaces_module, "_SLOW_S", 0.01)
    with monkeypatch.context() as context:
        context.setattr(os, "unlink", slow)
        assert workspaces.keep(first)
        assert workspaces.keep(second)
    assert not workspaces.keep(third)
    workspaces.close()


def test_a_pause_of_the_machine_does_not_count_as_a_slow_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspaces = Workspaces(str(tmp_path))
    monkeypatch.setattr(workspaces_module, "_SLOW_S", -1.0)
    assert workspaces.keep(workspaces.make())
    monkeypatch.setattr(workspaces_module, "_SLOW_S", 60.0)
    assert workspaces.keep(workspaces.make())
    monkeypatch.setattr(workspaces_module, "_SLOW_S", -1.0)
    assert workspaces.keep(workspaces.make())
    assert workspaces.keep(workspaces.make())
    assert not workspaces.keep(workspaces.make())
    workspaces.close()


def test_what_was_kept_and_is_not_what_it_was_is_not_used(tmp_path: Path) -> None:
    workspaces = Workspaces(str(tmp_path))
    first = workspaces.make()
    assert workspaces.keep(first)
    os.rmdir(first.output_dir)
    second = workspaces.make()
    assert second.path != first.path
    assert os.path.isdir(second.output_dir)
    assert workspaces.unused(60.0) == [first]
    assert not workspaces.has_kept
    workspaces.close()


def test_what_nobody_used_is_given_out_to_be_removed(tmp_path: Path) -> None:
    workspaces = Workspaces(str(tmp_path))
    both = [workspaces.make(), workspaces.make()]
    for each in both:
        assert workspaces.keep(each)
    assert workspaces.unused(60.0) == []
    assert workspaces.unused() == both
    assert workspaces.unused() == []
    workspaces.close()


REMOVALS = {
    "keep": "workspaces.keep(workspace)",
    "keep while others run": "workspaces.keep(workspace, others_run=True)",
    "remove": "workspaces.remove_small(workspace)",
}


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("place", ["input", "output", "output/file"])
def test_nothing_is_removed_through_a_mount(tmp_path: Path, place: str, removal: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "directory").mkdir(parents=True)
    (elsewhere / "directory/file").touch()
    (elsewhere / "file").touch()
    code = """
import os, subprocess, sys
from watchdog.workspace.workspaces import Workspaces
workspaces = Workspaces(sys.argv[1])
workspace = workspaces.make()
workspace.input_name = "file"
mounted, source = os.path.join(workspace.path, sys.argv[3]), "directory"
if sys.argv[3] == "output/file":
    open(mounted, "w").close()
    source = "file"
subprocess.run(["mount", "--bind", os.path.join(sys.argv[2], source), mounted], check=True)
print(eval(sys.argv[4]))
"""
    root = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    arguments = [str(tmp_path), str(elsewhere), place, REMOVALS[removal]]
    command = ["unshare", *root, "--mount", sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=60)
    assert done.stdout == "False\n", done.stderr
    assert (elsewhere / "directory/file").exists()
    assert (elsewhere / "file").exists()


def test_a_workspace_that_cannot_be_made_whole_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = os.mkdir

    def two_inodes(path: str, mode: int = 0o777) -> None:
        if path.endswith("/output"):
            raise OSError(errno.ENOSPC, "No space left on device")
        mkdir(path, mode)

    monkeypatch.setattr(os, "mkdir", two_inodes)
    with pytest.raises(OSError, match="No space left"):
        Workspace(str(tmp_path / "1"))
    assert not (tmp_path / "1").exists()


@pytest.mark.parametrize("place", ["input", "output", "."])
@pytest.mark.parametrize("plant", ["a file", "a directory"])
@pytest.mark.parametrize("when", ["while it is kept", "by a script that ran already"])
def test_what_another_script_puts_into_a_kept_directory_is_not_lent(
    tmp_path: Path, place: str, plant: str, when: str
) -> None:
    workspaces = Workspaces(str(tmp_path))
    kept, other = workspaces.make(), workspaces.make()
    assert workspaces.keep(other)
    assert workspaces.keep(kept, others_run=when == "by a script that ran already")
    if when == "while it is kept":
        # Kept ones are lent in the reverse order: the one of this script first.
        assert workspaces.make() is kept
        kept = other
    planted = Path(kept.path) / place / "planted"
    planted.mkdir() if plant == "a directory" else planted.write_text("planted")
    lent = workspaces.make()
    assert [path.name for path in Path(lent.path).rglob("*")] == ["input", "output"]
    assert (lent is kept) is (plant == "a file")
    workspaces.close()


def test_small_directory_is_removed_at_once(tmp_path: Path) -> None:
    workspaces = Workspaces(str(tmp_path), keeps=False)
    workspace = workspaces.make()
    Path(workspace.input_dir, "in").write_bytes(b"x" * 1000)
    Path(workspace.output_dir, "out").touch()
    Path(workspace.response_file).touch()
    assert workspaces.remove_small(workspace)
    assert not os.path.lexists(workspace.path)
    workspaces.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda directory: os.mkdir(directory + "/below"),
        lambda directory: os.truncate(_touched(directory + "/large"), 2 << 20),
        lambda directory: [_touched(f"{directory}/{number}") for number in range(100)],
    ],
    ids=["a directory", "a large file", "many files"],
)
def test_other_directories_are_not_removed_at_once(tmp_path: Path, change: Callable[[str], None]) -> None:
    workspaces = Workspaces(str(tmp_path), keeps=False)
    workspace = workspaces.make()
    change(workspace.output_dir)
    assert not workspaces.remove_small(workspace)
    workspace.remove()
    assert not os.path.lexists(workspace.path)
    workspaces.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda workspace: None,
        lambda workspace: Path(workspace.input_dir, "in").unlink(),
        lambda workspace: Path(workspace.input_dir, "in").rename(workspace.input_dir + "/moved"),
        lambda workspace: Path(workspace.input_dir, "another").touch(),
    ],
    ids=["nothing", "removed", "moved", "one more"],
)
def test_directory_with_a_known_input_is_removed_at_once(tmp_path: Path, change: Callable[[Workspace], object]) -> None:
    workspaces = Workspaces(str(tmp_path), keeps=False)
    workspace = workspaces.make()
    workspace.input_name = "in"
    Path(workspace.input_dir, "in").write_bytes(b"x")
    change(workspace)
    assert workspaces.remove_small(workspace)
    assert not os.path.lexists(workspace.path)
    assert workspaces.make().input_name == ""
    workspaces.close()


def test_large_input_is_not_removed_at_once(tmp_path: Path) -> None:
    workspaces = Workspaces(str(tmp_path), keeps=False)
    workspace = workspaces.make()
    workspace.input_name = "in"
    os.truncate(_touched(workspace.input_dir + "/in"), 2 << 20)
    assert not workspaces.remove_small(workspace)
    workspace.remove()
    workspaces.close()


@pytest.mark.parametrize("input_name", ["", "data"])
@pytest.mark.parametrize("place", ["input_dir", "output_dir", "path"])
def test_nothing_behind_a_link_is_removed_at_once(tmp_path: Path, place: str, input_name: str) -> None:
    workspaces = Workspaces(str(tmp_path), keeps=False)
    workspace = workspaces.make()
    workspace.input_name = input_name
    directory = Path(getattr(workspace, place))
    moved = tmp_path / "moved"
    directory.rename(moved)
    (moved / "data").touch()
    before = sorted(moved.iterdir())
    directory.symlink_to(moved)
    assert not workspaces.remove_small(workspace)
    assert sorted(moved.iterdir()) == before
    workspaces.close()


def test_directory_that_is_not_to_be_kept_is_not_kept(tmp_path: Path) -> None:
    workspaces = Workspaces(str(tmp_path), keeps=False)
    workspace = workspaces.make()
    assert not workspaces.keep(workspace)
    workspace.remove()
    workspaces.close()


def _touched(path: str) -> str:
    Path(path).touch()
    return path
