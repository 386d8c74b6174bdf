"""Calls that are answered 200 although the result is doubtful. Each has a warning in the answer and in the log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from control_groups import joining, made_control_group
from running_server import Answer, RunningServer, StartServer, problem

from watchdog.output import call_warning
from watchdog.output.call_warning import files_elsewhere
from watchdog.process.command import has_crlf, is_shell_script

# Writes a file until it is newer than the start of the script, because file systems have a coarse clock.
WRITE_LATER = 'touch "$TMP_INPUT_DIR/.start"; until [ {file} -nt "$TMP_INPUT_DIR/.start" ]; do echo x > {file}; done\n'


def warned(server: RunningServer, answer: Answer, *names: str) -> list[str]:
    """Check that the answer is a success with these warnings, and that each is in the log; return their details."""
    assert answer.status == 200, answer.body
    assert answer.headers.get_all("X-Warning") == [", ".join(names)]
    call_id = answer.headers["X-Call-Id"]
    return [
        server.event("doubtful success", call_id=call_id, warning=name, level="warning")["reason"] for name in names
    ]


# ---- nothing left, nothing printed


@pytest.mark.guard("empty-answer")
def test_a_script_that_leaves_and_prints_nothing_is_warned_of(start_server: StartServer) -> None:
    server = start_server("echo only to stderr >&2")
    answer = server.call(b"abc")
    (detail,) = warned(server, answer, "no-output")
    assert "TMP_OUTPUT_DIR" in detail
    assert answer.body == b""
    outcome = server.call(b"abc", "/?output=json").json
    assert outcome["warnings"] == [{"name": "no-output", "detail": detail}]


@pytest.mark.parametrize(
    "script",
    [
        "echo answer",
        'echo answer > "$TMP_OUTPUT_DIR/a.txt"',
        'true > "$TMP_OUTPUT_DIR/empty.txt"',
        "echo 'Status: 204' > $HTTP_RESPONSE_FILE",
        "echo 'Location: /elsewhere' > $HTTP_RESPONSE_FILE",
        # It prints its answer, and its temporary files lie beside the input or in its working directory.
        'cp "$INPUT_FILE_PATH" "$TMP_INPUT_DIR/temporary"; echo answer',
        "rmdir $TMP_OUTPUT_DIR; echo answer",
        "#!/bin/sh\ncat <<END\nHTTP/1.1 200 OK\r\nServer: x\r\n\r\nEND\n",
        f"#!{sys.executable}\r\nprint('answer')\r\n",
    ],
)
def test_a_correct_script_is_not_warned_of(start_server: StartServer, script: str) -> None:
    server = start_server(None)
    server.script.write_text(script, newline="")
    answer = server.call(b"abc")
    assert answer.status in (200, 204), answer.body
    assert answer.headers["X-Warning"] is None
    assert server.stop() == 0
    assert [event for event in server.logs if event["event"] == "doubtful success"] == []


def test_a_script_that_failed_has_no_warning_of_a_success(start_server: StartServer) -> None:
    server = start_server("exit 3", WATCHDOG_ERROR_STATUS="false")
    answer = server.call(b"")
    assert (answer.status, answer.headers["X-Exit-Code"], answer.headers["X-Warning"]) == (200, "3", None)


def test_a_classic_function_may_print_nothing(start_server: StartServer) -> None:
    server = start_server(None, fprocess="true")
    answer = server.call(b"")
    assert (answer.status, answer.headers["X-Warning"]) == (200, None)


def test_the_script_may_choose_the_header_itself(start_server: StartServer) -> None:
    server = start_server("#!/bin/sh\r\ntrue\r\necho 'X-Warning: mine' > \"$HTTP_RESPONSE_FILE\" #\r\necho a #\r\n")
    server.script.write_bytes(server.script.read_bytes().replace(b"\n", b"\r\n"))
    assert server.call(b"").headers.get_all("X-Warning") == ["mine"]


# ---- files in the wrong place


def test_files_beside_the_input_are_named(start_server: StartServer) -> None:
    script = WRITE_LATER.format(file="$TMP_INPUT_DIR/z.txt") + 'for n in a b c; do cp "$TMP_INPUT_DIR/z.txt" '
    server = start_server(script + '"$TMP_INPUT_DIR/$n.txt"; done; mv "$INPUT_FILE_PATH" "$INPUT_FILE_PATH.jpg"')
    _, detail = warned(server, server.call(b"abc"), "no-output", "files-elsewhere")
    assert "'a.txt' in TMP_INPUT_DIR, 'b.txt' in TMP_INPUT_DIR, 'c.txt' in TMP_INPUT_DIR and 1 more;" in detail


def test_files_in_the_working_directory_are_named(start_server: StartServer, tmp_path: Path) -> None:
    directory = tmp_path / "cwd"
    directory.mkdir()
    (directory / "old.txt").touch()
    server = start_server(WRITE_LATER.format(file="out.txt"), prefix=("env", "-C", str(directory)))
    _, detail = warned(server, server.call(b"abc"), "no-output", "files-elsewhere")
    assert f"'out.txt' in the working directory {directory};" in detail
    assert "old.txt" not in detail


def newer(path: Path, than_ns: int) -> Path:
    """Write to a file until it is newer than ``than_ns``, because file systems have a coarse clock."""
    while not path.exists() or path.stat().st_mtime_ns <= than_ns:
        path.write_text("x")
    return path


def test_what_is_not_a_file_of_the_script_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    input_dir, cwd = tmp_path / "input", tmp_path / "cwd"
    input_dir.mkdir()
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    (input_dir / "the input").write_text("input")
    since_ns = time.time_ns()
    assert files_elsewhere(str(input_dir), since_ns) is None
    newer(cwd / ".hidden", since_ns)
    newer(cwd / "folder-of-another-program", since_ns).unlink()
    (cwd / "folder-of-another-program").mkdir()
    (cwd / "link").symlink_to("/etc/hostname")
    assert files_elsewhere(str(input_dir), since_ns) is None
    (input_dir / "results").mkdir()
    found = files_elsewhere(str(input_dir), since_ns)
    assert found is not None
    assert "'results' in TMP_INPUT_DIR" in found.detail


def test_directories_that_cannot_be_read_name_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert files_elsewhere(str(tmp_path / "missing"), 0) is None


def test_a_huge_directory_is_not_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_warning, "_MOST_ENTRIES", 5)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    (tmp_path / "input").mkdir()
    for number in range(20):
        (tmp_path / "input" / f"{number}.txt").touch()
    found = files_elsewhere(str(tmp_path / "input"), 0)
    assert found is not None
    assert "and 2 more" in found.detail


def test_the_log_of_the_server_is_not_named(tmp_path: Path) -> None:
    """As with ``watchdog serve 2> server.log``."""
    program = (
        "import os, sys, time; from watchdog.output.call_warning import files_elsewhere\n"
        "since_ns = time.time_ns()\n"
        "while os.fstat(2).st_mtime_ns <= since_ns: os.write(2, b'x')\n"
        "while os.fstat(1).st_mtime_ns <= since_ns: os.write(1, b'x')\n"
        "sys.exit(str(files_elsewhere('input', since_ns)))\n"
    )
    with (tmp_path / "server.log").open("w") as log, (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, stdout=out, stderr=log, check=False)
    assert (tmp_path / "server.log").read_text().lstrip("x") == "None\n"


# ---- out of memory


@pytest.mark.guard("oom-count")
@pytest.mark.parametrize("is_classic", [False, True], ids=["script", "classic"])
def test_a_killed_part_of_a_script_is_warned_of(start_server: StartServer, tmp_path: Path, is_classic: bool) -> None:
    command = f"{sys.executable} -c 'bytearray(300 << 20)' | cat; echo done"
    with made_control_group("memory", ("memory.limit_in_bytes", "memory.max"), str(100 << 20)) as group:
        if is_classic:
            (tmp_path / "function.sh").write_text(command)
            server = start_server(None, fprocess=f"/bin/sh {tmp_path}/function.sh", prefix=joining(group))
        else:
            server = start_server(command, prefix=joining(group))
        try:
            answer = server.call(b"")
            (detail,) = warned(server, answer, "out-of-memory")
            assert answer.body == b"done\n"
            assert "the kernel killed a process" in detail
            server.script.write_text("echo fine")
            if not is_classic:
                assert server.call(b"").headers["X-Warning"] is None
        finally:
            server.kill()


@pytest.mark.guard("oom-count")
def test_a_failure_after_a_part_was_killed_says_that_memory_ran_out(start_server: StartServer) -> None:
    """A program whose child is killed usually fails with an exit code of its own."""
    script = f"{sys.executable} -c 'bytearray(300 << 20)' || exit 3"
    with made_control_group("memory", ("memory.limit_in_bytes", "memory.max"), str(100 << 20)) as group:
        server = start_server(script, prefix=joining(group))
        try:
            document = problem(server.call(b""), 500)
            assert document["exit_code"] == 3
            assert "while it ran, the kernel killed a process of this container: out of memory, limit 100 MiB" in str(
                document["detail"]
            )
            server.script.write_text("exit 3")
            assert "memory" not in str(problem(server.call(b""), 500)["detail"])
        finally:
            server.kill()


# ---- line ends of Windows


CRLF_SCRIPT = "#!/bin/sh\r\necho a > $TMP_OUTPUT_DIR/a\r\n"


@pytest.mark.guard("line-ends")
def test_a_shell_script_with_crlf_is_warned_of(start_server: StartServer) -> None:
    server = start_server("echo fine")
    server.script.write_text(CRLF_SCRIPT, newline="")
    for _ in range(2):
        (detail,) = warned(server, server.call(b""), "crlf")
        assert "dos2unix" in detail
    server.script.write_text("echo fine")
    assert server.call(b"").headers["X-Warning"] is None


def test_what_is_known_of_a_script_is_known_of_its_line_ends_too(start_server: StartServer) -> None:
    """A script that has not changed for some seconds is not read again."""
    server = start_server("echo fine")
    for text, warning in ((CRLF_SCRIPT, "crlf"), ("echo fine", None)):
        server.script.write_text(text, newline="")
        long_ago_s = time.time() - 3600
        os.utime(server.script, (long_ago_s, long_ago_s))
        for _ in range(2):
            assert server.call(b"").headers["X-Warning"] == warning


def test_crlf_in_the_variable_script_is_warned_of(start_server: StartServer) -> None:
    server = start_server(None, SCRIPT="IyEvYmluL3NoDQplY2hvIGENCg==")  # "#!/bin/sh\r\necho a\r\n"
    server.event("the script will not work as intended", level="warning")
    warned(server, server.call(b""), "crlf")


@pytest.mark.guard("line-ends", never="the event 'the script will not work as intended'")
def test_crlf_is_in_the_log_before_the_first_call(start_server: StartServer, tmp_path: Path) -> None:
    script = tmp_path / "crlf.sh"
    script.write_text(CRLF_SCRIPT, newline="")
    server = start_server(None, WATCHDOG_SCRIPT_PATH=str(script))
    event = server.event("the script will not work as intended", level="warning")
    assert "CRLF" in event["reason"]


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        (b"#!/bin/sh\r\necho a\r\n", True),
        (b"#!/usr/bin/env bash\r\necho a\r\n", True),
        (b"#!/usr/bin/env -S bash -e\r\necho a\r\n", True),
        (b"#! /bin/dash -e\r\necho a\r\n", True),
        (b"echo a\r\necho b\r\n", True),
        (b"#!/bin/sh\necho a\n", False),
        (b"#!/bin/sh\r\necho a\necho b\necho c\n", False),
        (b"#!/bin/sh\ncat <<END\r\na\r\nb\r\nEND\n", False),
        (b"#!/usr/bin/env python3\r\nprint(1)\r\n", False),
        (b"#!/usr/bin/Rscript\r\n1\r\n", False),
        (b"#!/opt/trash/perl\r\n1\r\n", False),
        (b"\x7fELF\r\n\r\n", False),
        (b"", False),
        (b"echo a", False),
    ],
)
def test_line_ends_that_a_shell_would_misread(text: bytes, is_found: bool) -> None:
    assert has_crlf(text) is is_found


def test_the_hint_of_a_failed_script_names_line_ends_only_to_shells(start_server: StartServer) -> None:
    server = start_server("true")
    server.script.write_text(f"#!{sys.executable}\r\nraise SystemExit(3)\r\n", newline="")
    detail = server.call(b"").json["detail"]
    assert detail.endswith("exit code 3")
    assert not is_shell_script(server.script.read_bytes())


# ---- siblings: incomplete outputs


def test_outputs_that_are_skipped_are_counted(start_server: StartServer) -> None:
    server = start_server('cd "$TMP_OUTPUT_DIR"; echo a > a; ln -s /etc/hostname b; mkfifo c; ln -s missing d')
    (detail,) = warned(server, server.call(b"", "/?output=raw"), "outputs-skipped")
    assert detail.startswith("3 entries of TMP_OUTPUT_DIR are not in the answer")


def test_one_output_that_is_skipped_is_counted(start_server: StartServer) -> None:
    server = start_server('cd "$TMP_OUTPUT_DIR"; echo a > a; mkfifo b')
    (detail,) = warned(server, server.call(b"", "/?output=raw"), "outputs-skipped")
    assert detail.startswith("1 entry of TMP_OUTPUT_DIR is not in the answer")


# ---- without HTTP


def test_run_and_check_show_the_warnings(tmp_path: Path) -> None:
    (tmp_path / "script.sh").write_text("#!/bin/sh\r\ntrue #\r\n", newline="")
    environ = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), "WATCHDOG_SCRIPT_PATH": str(tmp_path / "script.sh")}
    command = [sys.executable, "-m", "watchdog"]
    done = subprocess.run([*command, "run", "/dev/null"], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert {event.get("warning") for event in events if event["event"] == "doubtful success"} == {"no-output", "crlf"}
    done = subprocess.run([*command, "check"], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "script.sh: its lines end as on Windows (CRLF)" in done.stdout
