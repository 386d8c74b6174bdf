"""The launcher starts the program under any name and from any place, and passes the environment on byte for byte."""

from __future__ import annotations

import ctypes
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from running_server import AS_PID_1, RunningServer, until

from image.tree_checks import SEEN_AT, in_root, linked_copy, write

pytestmark = [pytest.mark.image, pytest.mark.timeout(300, func_only=True)]

_NAMES = ("watchdog", "fwatchdog", "supervisor")
_OF_THE_CONTRACT = frozenset(
    [b"INPUT_FILE_PATH", b"TMP_INPUT_DIR", b"TMP_OUTPUT_DIR", b"CALL_ID", b"HTTP_RESPONSE_FILE", b"WATCHDOG_WARM_PY"]
)
_PROJECT = Path(__file__).parents[2]
_WAIT_S = 60
# The program opens /dev/null in place of closed standard streams. In an empty root, all of them are closed.
_WITH_DEV_NULL = 'mkdir "$root/dev"; touch "$root/dev/null"; mount --bind /dev/null "$root/dev/null"'
_LINK = re.compile(r" (\d+) -> (.*)$")
_BAD = b"bad\xff\xc3"


def _run(*command: str | Path, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    result: subprocess.CompletedProcess[str] = subprocess.run(  # type: ignore[call-overload]
        command, capture_output=True, text=True, errors="backslashreplace", timeout=_WAIT_S, **options
    )
    assert result.returncode == 0 or not check, result
    return result


def _execute(program: Path, arguments: list[bytes], environ: list[bytes]) -> subprocess.CompletedProcess[bytes]:
    """Execute a program with arguments (its name is the first) and an environment that Python itself may refuse."""

    # Make these before the fork, because few operations are safe after it.
    execve = ctypes.CDLL(None).execve
    vectors = [(ctypes.c_char_p * (len(each) + 1))(*each, None) for each in (arguments, environ)]
    path = os.fsencode(program)

    def execute() -> None:
        execve(path, *vectors)
        os._exit(125)

    return subprocess.run([program], preexec_fn=execute, capture_output=True, stdin=subprocess.DEVNULL, timeout=_WAIT_S)


# ------------------------------------------------------------------------------------------------- names and places


@pytest.fixture(scope="module")
def version(tree: Path) -> str:
    text = _run(tree / "bin/watchdog", "--version").stdout
    assert re.fullmatch(r"oscar-watchdog \d+\.\d+\.\d+\S*\n", text)
    return text


@pytest.mark.parametrize("name", _NAMES)
def test_it_starts_under_each_name(name: str, tree: Path, version: str, tmp_path: Path) -> None:
    link = tmp_path / name
    link.symlink_to(tree / name)
    by_relative_path = os.path.relpath(tree / "bin" / name, tmp_path)
    for program in (tree / "bin" / name, tree / name, link, by_relative_path, f"./{name}"):
        assert _run(program, "--version", cwd=tmp_path).stdout == version
    environ = {"PATH": f"/nowhere:{tree / 'bin'}"}
    assert _run("/bin/sh", "-c", f"{name} --version", env=environ, cwd="/").stdout == version


def test_it_starts_where_copying_made_files_of_links(tree: Path, version: str, tmp_path: Path) -> None:
    _run("cp", "-rL", tree, tmp_path / "copy")
    for name in (*_NAMES, *(f"bin/{name}" for name in _NAMES), "alpine/supervisor"):
        assert _run(tmp_path / "copy" / name, "--version").stdout == version


@pytest.mark.parametrize("delay_s", [0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05])
def test_no_signal_is_lost_at_the_start_of_pid_1(delay_s: float, tree: Path) -> None:
    """If PID 1 has not blocked the signal and has no handler, the kernel discards it. `docker stop` would then wait.

    This is also true for the microseconds between the launcher's execve and its first statement.
    """
    command = [*AS_PID_1, tree / "bin/watchdog", "serve", "--port", "0", "--bind", "127.0.0.1", "--metrics-port", "0"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        try:
            until(
                lambda: any(_is_of(tree, pid) and _expects_sigterm(pid) for pid in children.read_text().split()),
                "the launcher's first step",
            )
            time.sleep(delay_s)
            os.kill(int(children.read_text()), signal.SIGTERM)
            assert process.wait(timeout=_WAIT_S) in (0, 128 + signal.SIGTERM)
        finally:
            process.kill()


def _is_of(tree: Path, pid: str) -> bool:
    return os.readlink(f"/proc/{pid}/exe").startswith(str(tree))


def _expects_sigterm(pid: str) -> bool:
    """Return whether a process has blocked SIGTERM or has a handler for it (proc_pid_status(5))."""
    masks = re.findall(r"^Sig(?:Blk|Cgt):\t([0-9a-f]{16})$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return any(int(mask, 16) & 1 << signal.SIGTERM - 1 for mask in masks)


@pytest.mark.parametrize("name", [b"", b"/", b"-watchdog", b"other\xff", b"x" * 5000, b"a/python3x"])
def test_it_starts_whatever_it_is_called(name: bytes, tree: Path, version: str) -> None:
    result = _execute(tree / "bin/watchdog", [name, b"--version"], [])
    assert (result.returncode, result.stdout.decode()) == (0, version), result


def test_arguments_arrive_as_they_are(tree: Path, tmp_path: Path) -> None:
    """A file's name may have any bytes."""
    program = "print(ascii(sys.argv), int(sys.argv[1]) > 2)"
    altered = _with_start(tree, tmp_path / "tree", f"import sys; {program}")
    arguments = [b"", _BAD, b"two words", b"-c", b"--", b"$(echo)\n"]
    result = _execute(altered / "bin/watchdog", [b"./fwatchdog", *arguments], [])
    start = str(altered / "libexec/start.py")
    descriptor = int(re.findall(rb"'(\d+)'", result.stdout)[0])
    expected = [start, str(descriptor), "fwatchdog", *map(os.fsdecode, arguments)]
    assert result.stdout.decode() == f"{expected!a} True\n"


@pytest.mark.parametrize("way", ["copied", "mounted elsewhere", "in an empty root"])
def test_it_starts_from_any_place(way: str, tree: Path, version: str, tmp_path: Path) -> None:
    if way == "copied":
        place = tmp_path / "with spaces, ümläuts and \u4e2d"
        shutil.copytree(tree, place, symlinks=True)
        assert _run(place / "bin/watchdog", "--version").stdout == version
        return
    seen_at = "/oscar/bin" if way == "mounted elsewhere" else SEEN_AT
    script = f'{_WITH_DEV_NULL}; inside "$seen_at/watchdog" --version && inside "$seen_at/supervisor" --version'
    result = in_root(tree, script, seen_at=seen_at)
    assert (result.stdout, result.stderr) == (2 * version, "")


def test_a_path_that_the_loader_would_misread_is_named(tree: Path, tmp_path: Path) -> None:
    """The loader would then use the libraries of the image."""
    for name in ("a:b", "a;b", "$LIB"):
        place = linked_copy(tree, tmp_path / name, lambda copy: None)
        result = _run(place / "bin/watchdog", "--version", check=False)
        assert (result.returncode, result.stdout) == (126, "")
        assert f"cannot run from a path that contains ':', ';' or '$': {place}:" in result.stderr


@pytest.mark.parametrize("part", ["lib/ld.so", "libexec/cpython", "libexec/start.py"])
def test_a_part_that_is_missing_is_named(part: str, tree: Path, tmp_path: Path) -> None:
    altered = linked_copy(tree, tmp_path / "tree", lambda copy: (copy / part).unlink())
    result = _run(altered / "bin/watchdog", "--version", check=False)
    assert (result.returncode, result.stdout) == (126, "")
    assert result.stderr == f"watchdog: cannot start {altered / part}: No such file or directory\n"


def test_without_proc_it_says_so(tree: Path) -> None:
    result = in_root(tree, 'umount "$root/proc"; inside "$seen_at/bin/watchdog" --version')
    assert (result.returncode, result.stdout) == (126, "")
    assert result.stderr == "watchdog: cannot find its own files through /proc/self/exe: No such file or directory\n"


@pytest.mark.skipif(
    not Path("/proc/sys/vm/memfd_noexec").exists(), reason="before Linux 6.3, memory files cannot be forbidden"
)
def test_it_starts_where_memory_files_must_not_be_executed(tree: Path, version: str) -> None:
    forbid = 'echo 2 >"$root/proc/sys/vm/memfd_noexec"'
    make_one = "import os; os.memfd_create('executable', 0x10)"  # MFD_EXEC
    result = in_root(tree, f'{forbid}; inside "$seen_at/libexec/python3" -c "$1"', make_one)
    assert "PermissionError" in result.stderr
    result = in_root(tree, f'{_WITH_DEV_NULL}; {forbid}; inside "$seen_at/bin/watchdog" --version')
    assert (result.stdout, result.stderr) == (version, "")


def test_it_starts_with_closed_standard_streams(tree: Path, tmp_path: Path) -> None:
    """The memory file must not get the number of a closed stream. Otherwise printed text would go into the file."""
    script = tmp_path / "script.sh"
    script.write_text('cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/copy"; echo printed >&2\n')
    for closed in ("<&-", "<&- 2>&-", "<&- >&- 2>&-"):
        output = tmp_path / "output"
        command = f'exec "$@" {closed}'
        _run(
            *("/bin/sh", "-c", command, "sh", tree / "bin/watchdog", "run", script),
            *("--script-path", script, "-o", output),
            env={"TMPDIR": str(tmp_path)},
        )
        assert output.read_text() == script.read_text()
        output.unlink()
    program = "print(sys.argv[1], os.readlink('/proc/self/fd/' + sys.argv[1]), file=open(sys.argv[3], 'w'))"
    altered = _with_start(tree, tmp_path / "tree", f"import os, sys; {program}")
    _run("/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", altered / "bin/watchdog", output)
    assert output.read_text() == "3 /memfd:image-environment (deleted)\n"


# --------------------------------------------------------------------------------------------------- the interpreter


def test_the_interpreter_is_the_trees_and_has_nothing_of_the_environment(tree: Path, tmp_path: Path) -> None:
    program = (
        "import json, os, sys; print(json.dumps([dict(os.environ), sys.executable, sys.path, sys.flags.isolated]))"
    )
    foreign = {"PYTHONHOME": "/", "PYTHONPATH": "/", "LD_PRELOAD": "/none.so", "LC_ALL": "xx", "HOME": "/", "A": "1"}
    result = _run(tree / "libexec/python3", "-c", program, env=foreign)
    environ, executable, path, isolated = json.loads(result.stdout)
    assert environ.keys() == {"LC_ALL", "OPENSSL_CONF", "OPENSSL_MODULES"}
    assert executable == str(tree / "libexec/python3")
    assert all(each.startswith(f"{tree}/lib/python3") for each in path)
    assert isolated == 1
    assert result.stderr == ""

    # The program has the same executable.
    altered = _with_start(tree, tmp_path / "tree", "import sys; print(sys.executable)")
    assert _run(altered / "bin/watchdog").stdout == f"{altered / 'libexec/python3'}\n"
    assert os.readlink(tree / "libexec/python3") == "../bin/watchdog"


def test_the_program_keeps_the_time_of_the_images_zone(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ZIP has local times. The interpreter begins without the image's TZ."""
    # The server is started with the variable TZ.
    monkeypatch.setattr(sys, "executable", str(tree / "bin/watchdog"))
    script = '#!/bin/sh\ntouch -d @1000000000 "$TMP_OUTPUT_DIR/a" "$TMP_OUTPUT_DIR/b"\n'
    server = RunningServer(tmp_path / "server", script, program=(), TZ="JST-9")
    try:
        answer = server.call(path="/?output=zip")
    finally:
        server.kill()
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        # 01:46:40 of UTC
        assert {entry.date_time for entry in archive.infolist()} == {(2001, 9, 9, 10, 46, 40)}


# --------------------------------------------------------------------------------------------------- the environment

_ENVIRONMENTS: dict[str, list[bytes]] = {
    "empty": [],
    "not UTF-8": [b"A=" + _BAD, _BAD + b"=value", b"\xed\xa0\x80=\xed\xb0\x80", "ü=ä".encode()],
    "empty values": [b"A=", b"B=", b"C==", b"D=a=b"],
    "white space": [b"A= ", b" B=\n\t", b"C=two\nlines\n", b"D'\"$=`'\""],
    "of libraries": [
        *(
            b"LD_PRELOAD=/none.so",
            b"LD_LIBRARY_PATH=/none",
            b"LD_AUDIT=/none.so",
            b"GLIBC_TUNABLES=glibc.malloc.check=3",
        ),
        *(b"LC_ALL=xx", b"LANG=de_DE", b"MALLOC_PERTURB_=165", b"OPENSSL_CONF=/none", b"PYTHONHOME=/none", b"TZ=JST-9"),
    ],
    "3,000": [b"VARIABLE_%d=%d" % (number, number) for number in range(3000)],
    "100 KiB": [b"A=" + 25 * 1024 * b"\xffabc", b"B=b"],
}


def _seen_by_a_script(tree: Path, environ: list[bytes], directory: Path) -> Counter[bytes]:
    """Return the environment with which the script starts, without the variables of the contract."""
    script = directory / "script.sh"
    # Read the first environment of the interpreter, because a shell changes the environment of its children.
    script.write_text('#!/bin/sh\n/bin/cat /proc/$$/environ >"${0%/*}/environ"\n')
    arguments = [b"watchdog", b"run", b"/dev/null", b"--script-path", os.fsencode(script)]
    result = _execute(tree / "bin/watchdog", arguments, environ)
    assert result.returncode == 0, result
    entries = (directory / "environ").read_bytes().split(b"\0")[:-1]
    contract = [entry for entry in entries if entry.partition(b"=")[0] in _OF_THE_CONTRACT]
    assert len(contract) == len(_OF_THE_CONTRACT)
    return Counter(entries) - Counter(contract)


@pytest.mark.parametrize("kind", _ENVIRONMENTS)
def test_a_script_has_the_environment_as_it_was(kind: str, tree: Path, tmp_path: Path) -> None:
    environ = _ENVIRONMENTS[kind]
    assert _seen_by_a_script(tree, environ, tmp_path) == Counter(environ)


def test_an_entry_that_is_not_a_variable_is_not_passed_on(tree: Path, tmp_path: Path) -> None:
    """If a name appears twice, the first value counts, as for getenv(3)."""
    environ = [b"NOTHING", b"A=1", b"", b"A=2", b"B=3", b"A=1"]
    assert _seen_by_a_script(tree, environ, tmp_path) == Counter([b"A=1", b"B=3"])


@pytest.mark.parametrize(
    ("right", "wrong", "kind"),
    [
        (
            "environ.setdefault(os.fsdecode(name), os.fsdecode(value))",
            "environ[os.fsdecode(name)] = 'x'",
            "empty values",
        ),
        ("os.fsdecode(name)", "name.decode('utf-8', 'replace')", "not UTF-8"),
        ("if equals:", "if value:", "empty values"),
        ('.split(b"\\0")', ".split()", "white space"),
        ("file.read()", "file.read(4096)", "3,000"),
        ("main(environ)", "main()", "of libraries"),
    ],
)
def test_a_start_file_that_alters_the_environment_is_found(
    right: str, wrong: str, kind: str, tree: Path, tmp_path: Path
) -> None:
    text = (tree / "libexec/start.py").read_text()
    assert text.count(right) == 1
    altered = _with_start(tree, tmp_path / "tree", text.replace(right, wrong))
    with pytest.raises(AssertionError):
        test_a_script_has_the_environment_as_it_was(kind, altered, tmp_path)


@pytest.mark.parametrize("keeps", [False, True], ids=["as it is", "with a start file that leaves it open"])
def test_a_script_inherits_no_descriptor(keeps: bool, tree: Path, tmp_path: Path) -> None:
    """A script has the same descriptors as with the program that pip installs."""
    if keeps:
        right, wrong = "_image_environment(descriptor)\n", "_image_environment(os.dup(descriptor))\n"
        text = (tree / "libexec/start.py").read_text()
        assert text.count(right) == 1
        tree = _with_start(tree, tmp_path / "tree", text.replace(right, wrong))
    script = tmp_path / "script.sh"
    script.write_text('#!/bin/sh\nls -l /proc/$$/fd >"${0%/*}/descriptors"\n')
    found = []
    for program in ((sys.executable, "-m", "watchdog"), (tree / "bin/watchdog",)):
        environ = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
        _run(*program, "run", "/dev/null", "--script-path", script, env=environ, cwd=_PROJECT, stdin=subprocess.DEVNULL)
        lines = (tmp_path / "descriptors").read_text().splitlines()[1:]
        found.append({int(match[1]): re.sub(r"\d+", "N", match[2]) for line in lines if (match := _LINK.search(line))})
    assert (found[0] == found[1]) != keeps, found
    if keeps:
        assert "/memfd:image-environment (deleted)" in found[1].values()


def _with_start(tree: Path, directory: Path, text: str) -> Path:
    """Return a tree with another start file."""
    return linked_copy(tree, directory, lambda copy: write(copy / "libexec/start.py", text.encode()))
