"""`watchdog invoke` against the real server: what is sent, where answers go, and the exit codes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import threading
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from client_command import ROOT, Done, clean_environment, command, files_in, invoke, invoke_on_terminal, stderr_of
from running_server import RunningServer, StartServer, until

from watchdog import errors
from watchdog.cli import exit_code_of
from watchdog.client.names import distinct

SCRIPT = """
name=${INPUT_FILE_PATH##*/}
case $name in
fail*) echo "no picture" >&2; exit 3 ;;
kill*) kill -9 $$ ;;
two*) cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/a.txt"; mkdir "$TMP_OUTPUT_DIR/d"
      echo second > "$TMP_OUTPUT_DIR/d/b.txt" ;;
one*) cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/out.bin" ;;
empty*) : > "$TMP_OUTPUT_DIR/empty.txt" ;;
quiet*) ;;
png*) printf '\\211PNG\\r\\n\\032\\n' ;;
odd*) cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/ä b%41.txt" ;;
base64*) printf QUJD ;;
missing*) echo 'Status: 404' > "$HTTP_RESPONSE_FILE"; echo "no plant" ;;
moved*) printf 'Status: 302\\nLocation: https://elsewhere.example/\\n' > "$HTTP_RESPONSE_FILE" ;;
*) printf '%s:' "$name"; cat "$INPUT_FILE_PATH" ;;
esac
"""
ALL_BYTES = bytes(range(256)) * 3 + b"x"


@pytest.fixture
def server(shared_server: StartServer) -> RunningServer:
    return shared_server(SCRIPT)


def url(server: RunningServer) -> str:
    return f"http://127.0.0.1:{server.port}"


def write(directory: Path, *names: str, content: bytes = ALL_BYTES) -> None:
    for name in names:
        (directory / name).write_bytes(content)


def check(done: Done, exit_code: int = 0) -> str:
    assert done.returncode == exit_code, stderr_of(done)
    return stderr_of(done)


# ------------------------------------------------------------------------------------------------ one file


def test_printed_text_goes_to_stdout_and_nothing_to_stderr(server: RunningServer, tmp_path: Path) -> None:
    write(tmp_path, "words.txt", content=b"three short words")
    done = invoke(url(server), "words.txt", cwd=tmp_path)
    assert check(done) == ""
    assert done.stdout == b"words.txt:three short words"


def test_stdin_is_sent_without_a_name(server: RunningServer, tmp_path: Path) -> None:
    done = invoke(url(server), "-", cwd=tmp_path, stdin=ALL_BYTES)
    check(done)
    assert re.fullmatch(rb"event-file-[0-9a-f-]+", done.stdout.partition(b":")[0])
    assert done.stdout.partition(b":")[2] == ALL_BYTES


def test_a_pipe_of_the_shell_is_sent(server: RunningServer, tmp_path: Path) -> None:
    read, write_end = os.pipe()
    os.write(write_end, b"from a pipe")
    os.close(write_end)
    done = subprocess.run(
        command(url(server), f"/dev/fd/{read}"),
        env=clean_environment(),
        pass_fds=[read],
        capture_output=True,
        timeout=60,
        check=True,
        cwd=tmp_path,
    )
    os.close(read)
    assert done.stdout.endswith(b":from a pipe")


@pytest.mark.parametrize("size_bytes", [0, 1, 2, 3, 192 * 1024, 192 * 1024 + 1, 1_000_000])
def test_every_byte_arrives_and_comes_back(server: RunningServer, tmp_path: Path, size_bytes: int) -> None:
    content = (ALL_BYTES * (size_bytes // len(ALL_BYTES) + 1))[:size_bytes]
    write(tmp_path, "one", content=content)
    done = invoke(url(server), "one", "-o", "new/out", cwd=tmp_path)
    assert re.fullmatch(r"ok  \S+ s  one .+ -> new/out/out\.bin .+B\n", check(done))
    assert files_in(tmp_path / "new") == {"out/out.bin": content}
    assert invoke(url(server), "one", cwd=tmp_path).stdout == content


def test_input_is_sent_raw_with_input_raw(server: RunningServer, tmp_path: Path) -> None:
    write(tmp_path, "one")
    check(invoke(url(server), "one", "--input", "raw", "-o", "out", cwd=tmp_path))
    assert files_in(tmp_path / "out") == {"out.bin": ALL_BYTES}
    event = server.event("invocation ended", input_encoding="raw")
    assert event["input_bytes"] == len(ALL_BYTES)


def test_several_outputs_become_files_in_their_folders(server: RunningServer, tmp_path: Path) -> None:
    write(tmp_path, "two")
    text = check(invoke(url(server), "two", "-o", "out", cwd=tmp_path))
    assert files_in(tmp_path / "out") == {"a.txt": ALL_BYTES, "d/b.txt": b"second\n"}
    assert "-> out/a.txt 769 B, out/d/b.txt 7 B\n" in text


def test_several_outputs_are_a_zip_on_stdout(server: RunningServer, tmp_path: Path) -> None:
    write(tmp_path, "two")
    done = invoke(url(server), "two", cwd=tmp_path)
    check(done)
    with zipfile.ZipFile(BytesIO(done.stdout)) as archive:
        assert archive.namelist() == ["a.txt", "d/b.txt"]


@pytest.mark.parametrize(
    ("form", "name", "start"), [("zip", "one.zip", b"PK"), ("json", "one.json", b"{"), ("raw", "out.bin", b"\0\1")]
)
def test_the_form_of_the_answer_can_be_chosen(
    server: RunningServer, tmp_path: Path, form: str, name: str, start: bytes
) -> None:
    write(tmp_path, "one")
    check(invoke(url(server), "one", "--output", form, "-o", "out", cwd=tmp_path))
    ((kept, content),) = files_in(tmp_path / "out").items()
    assert (kept, content[: len(start)]) == (name, start)


def test_a_printed_answer_is_named_after_the_input_and_its_type(server: RunningServer, tmp_path: Path) -> None:
    write(tmp_path, "words", "png", content=b"x")
    check(invoke(url(server), "words", "-o", "out", cwd=tmp_path))
    check(invoke(url(server), "png", "-o", "out", cwd=tmp_path))
    check(invoke(url(server), "-", "-o", "out", cwd=tmp_path, stdin=b"y"))
    assert files_in(tmp_path / "out").keys() == {"words.txt", "png.png", "stdin.txt"}


def test_printed_base64_is_not_decoded(server: RunningServer, tmp_path: Path) -> None:
    write(tmp_path, "base64")
    assert invoke(url(server), "base64", cwd=tmp_path).stdout == b"QUJD"


def test_an_empty_file_is_kept_and_no_output_is_a_warning(server: RunningServer, tmp_path: Path) -> None:
    write(tmp_path, "empty", "quiet", content=b"x")
    check(invoke(url(server), "empty", "-o", "out", cwd=tmp_path))
    assert files_in(tmp_path / "out") == {"empty.txt": b""}
    text = check(invoke(url(server), "quiet", "-o", "out", cwd=tmp_path))
    assert "warning  quiet: no-output" in text
    assert files_in(tmp_path / "out") == {"empty.txt": b""}


def test_names_keep_their_bytes_in_both_directions(server: RunningServer, tmp_path: Path) -> None:
    write(tmp_path, "odd ü%20.txt", "words ü%20.txt")
    done = invoke(url(server), "words ü%20.txt", cwd=tmp_path)
    assert done.stdout.startswith("words ü%20.txt:".encode())
    check(invoke(url(server), "odd ü%20.txt", "-o", "out", cwd=tmp_path))
    assert files_in(tmp_path / "out") == {"ä b%41.txt": ALL_BYTES}


def test_a_name_that_the_server_would_refuse_is_changed(server: RunningServer, tmp_path: Path) -> None:
    write(tmp_path, "words \udcff\n\x1b.txt", content=b"abc")
    done = invoke(url(server), "words \udcff\n\x1b.txt", "-o", "out", cwd=tmp_path)
    assert "words \\xff\\n\\x1b.txt 3 B -> " in check(done)
    assert list(files_in(tmp_path / "out").values()) == ["words \ufffd__.txt:abc".encode()]


# ------------------------------------------------------------------------------------------------ existing files


@pytest.mark.guard("existing-files")
def test_a_file_that_exists_is_not_overwritten_and_the_answer_is_not_lost(
    server: RunningServer, tmp_path: Path, removed_guard: str | None
) -> None:
    write(tmp_path, "one")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "out.bin").write_bytes(b"old")
    text = check(invoke(url(server), "one", "-o", "out", cwd=tmp_path, without=removed_guard), 73)
    assert text == "out/out.bin exists, so the answer is in out/out-2.bin\nuse --force to replace files\n"
    assert files_in(tmp_path / "out") == {"out.bin": b"old", "out-2.bin": ALL_BYTES}
    check(invoke(url(server), "one", "-o", "out", "--force", cwd=tmp_path))
    assert files_in(tmp_path / "out") == {"out.bin": ALL_BYTES, "out-2.bin": ALL_BYTES}


@pytest.mark.guard("links-in-the-folder")
@pytest.mark.parametrize("replaces", [False, True])
def test_a_symbolic_link_is_neither_written_through_nor_followed(
    server: RunningServer, tmp_path: Path, replaces: bool, removed_guard: str | None
) -> None:
    write(tmp_path, "one", "two")
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    out.mkdir()
    (outside / "victim").write_bytes(b"old")
    (out / "out.bin").symlink_to(outside / "victim")
    (out / "d").symlink_to(outside)
    flags = ["--force"] if replaces else []
    check(invoke(url(server), "one", "-o", "out", *flags, cwd=tmp_path), 0 if replaces else 73)
    text = check(invoke(url(server), "two", "-o", "out", *flags, cwd=tmp_path, without=removed_guard), 73)
    assert "out/d is a symbolic link or a file, and not a directory" in text
    assert files_in(outside) == {"victim": b"old"}
    assert list(out.glob(".invoke-*")) == []


def test_new_directory_with_the_name_of_a_file_is_refused_before_the_call(
    server: RunningServer, tmp_path: Path
) -> None:
    write(tmp_path, "one")
    text = check(invoke(url(server), "one", "-o", "gray.jpg", cwd=tmp_path), 73)
    assert "gray.jpg looks like a file; write the answer to it with > gray.jpg" in text
    assert not (tmp_path / "gray.jpg").exists()
    check(invoke(url(server), "one", "-o", "gray.jpg/", cwd=tmp_path))
    check(invoke(url(server), "one", "-o", "gray.jpg", "--force", cwd=tmp_path))


def test_a_directory_that_cannot_be_used_is_reported_before_the_call(server: RunningServer, tmp_path: Path) -> None:
    write(tmp_path, "one", "file")
    ended = len(server.logs)
    for words in (["-o", "file"], ["-o", "file/below"]):
        text = check(invoke(url(server), "one", *words, cwd=tmp_path), 73)
        assert f"the directory {words[1]} (-o) cannot be used" in text
        assert "give a directory, or write the answer to a file with > FILE" in text
    server.call(b"", headers={"X-Call-Id": "afterwards"})
    server.event("invocation ended", call_id="afterwards")
    assert [event for event in server.logs[ended:] if event.get("file") == "one"] == []


# ------------------------------------------------------------------------------------------------ several files


def test_a_file_that_does_not_report_its_size_is_sent_whole(server: RunningServer, tmp_path: Path) -> None:
    done = invoke(url(server), "/proc/version", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.endswith(Path("/proc/version").read_bytes())


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_named_pipe_without_a_writer_stops_neither_other_calls_nor_a_signal(
    server: RunningServer, tmp_path: Path, is_cancelled: bool
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "in").write_bytes(b"abc")
    with subprocess.Popen(
        command(url(server), "pipe", "in", "-o", "out", "-j", "2"),
        cwd=tmp_path,
        env=clean_environment(),
        stderr=subprocess.PIPE,
    ) as running:
        assert running.stderr is not None
        try:
            assert select.select([running.stderr], [], [], 60)[0], "the other call waits for the writer"
            assert b" in " in running.stderr.readline()
            if is_cancelled:
                running.send_signal(signal.SIGINT)
                assert running.wait(timeout=60) == 130
            else:
                (tmp_path / "pipe").write_bytes(b"late")
                assert running.wait(timeout=60) == 0
                assert b"2 ok, 0 failed" in running.stderr.read()
        finally:
            running.kill()


@pytest.mark.guard("signals-wake-the-command", never="the command to end")
def test_a_signal_that_does_not_interrupt_the_wait_for_events_ends_the_command(
    server: RunningServer, tmp_path: Path, removed_guard: str | None
) -> None:
    """The signal goes to another thread. A signal just before the main thread waits has the same effect."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "in").write_bytes(b"abc")
    line = command(url(server), "pipe", "in", "-o", "out", "-j", "2", without=removed_guard)
    with subprocess.Popen(line, cwd=tmp_path, env=clean_environment(), stderr=subprocess.PIPE) as running:
        assert running.stderr is not None
        try:
            assert b" in " in running.stderr.readline()
            wait_channel = Path(f"/proc/{running.pid}/wchan")
            until(lambda: "poll" in wait_channel.read_text(), "the main thread to wait for events")
            (other, *_) = {int(name) for name in os.listdir(f"/proc/{running.pid}/task")} - {running.pid}
            assert ctypes.CDLL(None).tgkill(running.pid, other, int(signal.SIGINT)) == 0
            until(lambda: running.poll() is not None, "the command to end")
            assert running.returncode == 130
        finally:
            running.kill()


def test_several_files_have_a_verdict_each_a_summary_and_a_place_of_their_own(
    server: RunningServer, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, "one.x", "sub/one.x", "two", "words", "fail", content=b"abc")
    done = invoke(url(server), "one.x", "sub/one.x", "two", "words", "fail", "-o", "out", "-j", 3, cwd=tmp_path)
    lines = check(done, 1).splitlines()
    assert done.stdout == b""
    assert files_in(tmp_path / "out") == {
        "one.x/out.bin": b"abc",
        "one-2.x/out.bin": b"abc",
        "two/a.txt": b"abc",
        "two/d/b.txt": b"second\n",
        "words.txt": b"words:abc",
    }
    assert re.fullmatch(r"4 ok, 1 failed, in .+ s", lines.pop())
    verdicts = sorted(re.sub(r"  \S+ s  ", "  T  ", line) for line in lines)
    assert verdicts == [
        "failed  T  fail: Script failed: the script ended with exit code 3: no picture",
        "ok  T  one-2.x 3 B -> out/one-2.x/out.bin 3 B",
        "ok  T  one.x 3 B -> out/one.x/out.bin 3 B",
        "ok  T  two 3 B -> out/two/a.txt 3 B, out/two/d/b.txt 7 B",
        "ok  T  words 3 B -> out/words.txt 9 B",
    ]


def test_odd_names_of_files_are_shown_with_escapes(server: RunningServer, tmp_path: Path) -> None:
    write(tmp_path, "words\udcff", content=b"x")
    done = invoke(url(server), "words\udcff", "missing\udcff\x1b", "-o", "out", cwd=tmp_path)
    assert b"words\\xff 1 B -> " in done.stderr
    assert b"missing\\xff\\x1b cannot be read" in done.stderr
    assert (done.returncode, done.stderr.count(b"\x1b")) == (1, 0)


def test_a_long_name_leaves_room_for_the_ending(server: RunningServer, tmp_path: Path) -> None:
    write(tmp_path, "w" * 255, content=b"x")
    check(invoke(url(server), "w" * 255, "-o", "out", cwd=tmp_path))
    assert list(files_in(tmp_path / "out")) == ["w" * 251 + ".txt"]


def test_each_name_is_there_once() -> None:
    assert distinct(["a.b", "a.b", "a-2.b", "a.b", "c", "c", ".x", ".x"]) == [
        *("a.b", "a-2.b", "a-2-2.b", "a-3.b", "c", "c-2", ".x", ".x-2")
    ]
    assert len(set(distinct(["x.jpg"] * 100_000))) == 100_000


def test_as_many_calls_run_at_a_time_as_j_says(start_server: StartServer, tmp_path: Path) -> None:
    """Each run waits until two have begun, so one at a time would never end."""
    server = start_server(
        f"""echo > {tmp_path}/began-${{INPUT_FILE_PATH##*/}}
while [ $(ls {tmp_path} | grep -c began) -lt 2 ]; do sleep 0.05; done""",
        WATCHDOG_MAX_INFLIGHT="4",
    )
    write(tmp_path, "a", "b")
    check(invoke(url(server), "a", "b", "-o", "out", "-j", 2, cwd=tmp_path))


@pytest.mark.parametrize(
    ("limit", "flags", "exit_code", "first"),
    [
        ("-n 8", [], 71, "the limit of open files is 8, and a call needs 24; raise it (ulimit -n)"),
        ("-n 24", ["--live"], 0, "1 call at a time, because of the limit of open files (ulimit -n)"),
        ("-n 33", [], 0, "2 calls at a time, because of the limit of open files (ulimit -n)"),
        ("-S -n 24", ["--live"], 0, "ok  "),
    ],
)
def test_as_many_calls_run_at_a_time_as_the_limit_of_open_files_allows(
    server: RunningServer, tmp_path: Path, limit: str, flags: list[str], exit_code: int, first: str
) -> None:
    names = [f"two{number}" for number in range(4)]
    write(tmp_path, *names)
    line = ["sh", "-c", f'ulimit {limit}; exec "$@"', "sh", *command(url(server), *names, "-o", "out", "-j", 4, *flags)]
    done = subprocess.run(line, cwd=tmp_path, env=clean_environment(), capture_output=True, timeout=60, check=False)
    assert check(done, exit_code).startswith(first)


# ------------------------------------------------------------------------------------------------ failures


def test_the_exit_code_is_that_of_the_script(server: RunningServer, tmp_path: Path) -> None:
    write(tmp_path, "fail", "kill")
    done = invoke(url(server), "fail", "-o", "out", cwd=tmp_path)
    assert check(done, 3) == "Script failed: the script ended with exit code 3\n  no picture\n"
    assert files_in(tmp_path / "out") == {}
    assert check(invoke(url(server), "kill", cwd=tmp_path), 137).startswith("Script killed: ")


@pytest.mark.parametrize("flags", [[], ["--live"]])
def test_the_answer_of_a_script_that_chose_a_status_itself_is_kept_with_a_warning(
    server: RunningServer, tmp_path: Path, flags: list[str]
) -> None:
    write(tmp_path, "missing", "moved")
    done = invoke(url(server), "missing", *flags, cwd=tmp_path)
    assert "warning  missing: the script chose the status 404 Not Found\n" in check(done)
    assert done.stdout == b"no plant\n"
    done = invoke(url(server), "moved", *flags, cwd=tmp_path)
    assert "warning  moved: the script chose the status 302 Found\n" in check(done)
    assert done.stdout == b""


def test_the_answer_of_a_server_that_hides_failures_is_kept_with_the_exit_code(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server("echo partial; exit 4", WATCHDOG_ERROR_STATUS="false")
    done = invoke(url(server), "-", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (4, b"partial\n")
    assert "exit code 4" in stderr_of(done)


def test_the_statuses_of_the_server_have_exit_codes(start_server: StartServer, tmp_path: Path) -> None:
    write(tmp_path, "in", content=b"abc")
    (tmp_path / "token").write_text("secret\n")
    server = start_server(
        "sleep 100",
        WATCHDOG_MAX_INPUT_SIZE="2",
        WATCHDOG_AUTH_TOKEN="secret",
        WATCHDOG_EXEC_TIMEOUT="0.2",
    )
    text = check(invoke(url(server), "in", cwd=tmp_path), 77)
    assert text.startswith("Unauthorized: ")
    assert "--token-file" in text
    assert check(invoke(url(server), "in", "--token-file", "token", cwd=tmp_path), 65).startswith("Input too large: ")
    (tmp_path / "in").write_bytes(b"a")
    done = invoke(url(server), "in", "--token-file", "token", cwd=tmp_path)
    assert check(done, 124).startswith("Script timed out: ")


def test_a_full_server_is_tried_again_until_it_has_a_place(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(
        f"""if [ -s "$INPUT_FILE_PATH" ]; then
echo > {tmp_path}/began; until [ -e {tmp_path}/go ]; do sleep 0.05; done
fi; echo done""",
        WATCHDOG_MAX_INFLIGHT="1",
        WATCHDOG_MAX_QUEUE="0",
    )
    blocker = threading.Thread(target=server.call, args=(b"QUJD",))
    blocker.start()
    until((tmp_path / "began").exists, "the first call to run")
    done = invoke(url(server), "-", "--retry-for", "0", cwd=tmp_path)
    text = check(done, 75)
    assert text.startswith("Too many calls: ")
    assert "try again in 1.00 s" in text
    with subprocess.Popen(
        command(url(server), "-"), env=clean_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as waiting:
        server.event("invocation ended", outcome="overloaded")  # the outcome of the earlier call
        server.event("invocation ended", outcome="overloaded")
        server.event("invocation ended", outcome="overloaded")
        (tmp_path / "go").touch()
        output, _ = waiting.communicate(timeout=60)
    blocker.join()
    assert (waiting.returncode, output) == (0, b"done\n")


def test_a_script_that_a_stopping_server_ends_is_not_run_again(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(
        "echo began; sleep 1000",
        WATCHDOG_MAX_INFLIGHT="2",
        WATCHDOG_WRITE_TIMEOUT="0.2",
        WATCHDOG_HEALTHCHECK_INTERVAL="0",
    )
    with contextlib.ExitStack() as stack:
        called = [
            stack.enter_context(
                subprocess.Popen(
                    command(url(server), "-", *flags),
                    env=clean_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
            )
            for flags in ([], ["--live"])
        ]
        for _ in called:
            server.event("began")
        server.signal(signal.SIGTERM)
        for each in called:
            _, text = each.communicate(timeout=60)
            assert each.returncode == 75, text
            assert b"Server is stopping: the server is stopping and ended the script" in text


def test_nothing_that_listens_is_unreachable(tmp_path: Path, free_port: int) -> None:
    done = invoke(f"http://127.0.0.1:{free_port}", "-", cwd=tmp_path)
    assert check(done, 69) == (
        f"127.0.0.1:{free_port} cannot be reached: Connection refused; check the URL, and that the service runs\n"
    )
    text = check(invoke("http://nowhere.invalid", "-", cwd=tmp_path), 69)
    assert text == "the host nowhere.invalid is not known; check the URL\n"


def test_an_input_that_cannot_be_read_is_named(server: RunningServer, tmp_path: Path) -> None:
    text = check(invoke(url(server), "missing", cwd=tmp_path), 66)
    assert text == "the file missing cannot be read: No such file or directory\n"
    text = check(invoke(url(server), tmp_path, cwd=tmp_path), 66)
    assert text == f"{tmp_path} is a directory; give the files in it\n"
    text = check(invoke(url(server), "-", cwd=tmp_path, stdin=b"x", TMPDIR=str(tmp_path / "missing")), 66)
    assert "set TMPDIR" in text


@pytest.mark.parametrize("flags", [[], ["-o", "out"]])
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cancels_the_run_on_the_server_and_leaves_no_file(
    start_server: StartServer, tmp_path: Path, number: signal.Signals, exit_code: int, flags: list[str]
) -> None:
    server = start_server("echo began; sleep 1000")
    with subprocess.Popen(
        command(url(server), "/dev/null", *flags), env=clean_environment(), stderr=subprocess.PIPE, cwd=tmp_path
    ) as running:
        assert running.stderr is not None
        server.event("began")
        running.send_signal(number)
        assert running.wait(timeout=60) == exit_code
        name = b"Ctrl-C" if number == signal.SIGINT else b"SIGTERM"
        assert running.stderr.read() == name + b" cancelled the call, so the service ends the script\n"
    assert server.event("invocation ended")["outcome"] == "caller_gone"
    until(lambda: not server.leftovers_of_calls(), "the files of the call to be removed")
    assert [path for path in tmp_path.rglob("*") if path.is_file() and "server-" not in str(path)] == []


def test_a_signal_cancels_all_calls_that_run_at_the_time(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(
        "case $INPUT_FILE_PATH in *quick) echo done ;; *) echo began; sleep 1000 ;; esac", WATCHDOG_MAX_INFLIGHT="2"
    )
    write(tmp_path, "quick", "a", "b", "c", content=b"x")
    words = command(url(server), "quick", "a", "b", "c", "-o", "out", "-j", 2)
    with subprocess.Popen(words, env=clean_environment(), stderr=subprocess.PIPE, cwd=tmp_path) as running:
        server.event("began")
        server.event("began")
        running.send_signal(signal.SIGINT)
        _, shown = running.communicate(timeout=60)
    assert running.returncode == 130
    assert re.fullmatch(rb"ok  .* s  quick 1 B -> out/quick\.txt 5 B\nCtrl-C cancelled the call, .*\n", shown)
    for _ in range(2):
        server.event("invocation ended", outcome="caller_gone")
    assert files_in(tmp_path / "out") == {"quick.txt": b"done\n"}


def test_a_service_on_ipv6_is_called(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("echo six", WATCHDOG_BIND="::1", has_closed_memory=True)
    done = invoke(f"http://[::1]:{server.port}?x=1", "-", cwd=tmp_path, http_proxy="http://127.0.0.1:1", no_proxy="::1")
    assert (done.returncode, done.stdout) == (0, b"six\n"), stderr_of(done)


def test_a_command_of_nohup_survives_the_end_of_the_terminal(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(f"echo began; until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo done")
    with subprocess.Popen(
        ["nohup", *command(url(server), "/dev/null")],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        server.event("began")
        running.send_signal(signal.SIGHUP)
        (tmp_path / "go").touch()
        output, _ = running.communicate(timeout=60)
    assert (running.returncode, output) == (0, b"began\ndone\n")


def test_a_timeout_cancels_the_run_on_the_server(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("sleep 1000")
    done = invoke(url(server), "-", "--timeout", "3s", cwd=tmp_path)
    assert check(done, 124) == "the call took longer than 3 s (--timeout), and was cancelled\n"
    # On a slow machine, the call has possibly not begun yet.
    server.call(b"", headers={"X-Timeout": "0.1", "X-Call-Id": "last"})
    server.event("invocation ended", call_id="last")
    ended = [event for event in server.logs if event["event"] == "invocation ended" and event["call_id"] != "last"]
    assert [event["outcome"] for event in ended] in ([], ["caller_gone"])


def test_a_closed_stdout_ends_the_command_quietly(server: RunningServer, tmp_path: Path) -> None:
    write(tmp_path, "one", content=bytes(3_000_000))
    with subprocess.Popen(
        command(url(server), "one"),
        cwd=tmp_path,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.read(10) == bytes(10)
        running.stdout.close()
        assert running.wait(timeout=60) == 141
        assert running.stderr.read() == b""


# ------------------------------------------------------------------------------------------------ on a terminal


def test_on_a_terminal_text_is_shown_and_other_answers_become_files(server: RunningServer, tmp_path: Path) -> None:
    write(tmp_path, "words", "one", content=b"abc")
    exit_code, shown = invoke_on_terminal(url(server), "words", cwd=tmp_path, TERM="xterm")
    assert exit_code == 0
    # The line for progress is removed before the answer is written, and nothing comes after it.
    assert shown.endswith(b"\r\x1b[Kwords:abc")
    exit_code, shown = invoke_on_terminal(url(server), "one", cwd=tmp_path, TERM="xterm")
    assert (exit_code, (tmp_path / "out.bin").read_bytes()) == (0, b"abc")
    assert b"one 3 B -> ./out.bin 3 B" in shown


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
@pytest.mark.parametrize("flags", [[], ["--live"]])
def test_on_a_terminal_a_directory_that_cannot_be_written_is_reported_before_the_call(
    server: RunningServer, tmp_path: Path, flags: list[str]
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(here)], check=True)
    try:
        code, shown = invoke_on_terminal(url(server), "/dev/null", *flags, cwd=here)
        assert (code, b"use -o DIR, or -o - if the answer is text" in shown) == (73, True), shown
        code, shown = invoke_on_terminal(url(server), "/dev/null", "-o", "-", *flags, cwd=here)
        assert (code, b"null:" in shown) == (0, True), shown
    finally:
        subprocess.run(["umount", "--lazy", str(here)], check=True)


def test_binary_data_is_not_written_to_a_terminal(server: RunningServer, tmp_path: Path) -> None:
    write(tmp_path, "one", content=b"abc")
    exit_code, shown = invoke_on_terminal(url(server), "one", "-o", "-", cwd=tmp_path, TERM="xterm")
    assert exit_code == 73
    assert b"redirect stdout to a file (> FILE), or use -o DIR" in shown
    assert b"abc" not in shown


# ------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["localhost:8080", "f"], "use http://localhost:8080"),
        (["cluster.org/run/x", "f"], "use https://cluster.org/run/x"),
        (["", "f"], "the URL is empty; give the URL of the service"),
        (["http:/host:80/x", "f"], "only one slash after http:; use http://host:80/x"),
        ([__file__, "http://host"], "is the name of a file; give the URL before the files"),
        (["ftp://host", "f"], "use http:// or https://"),
        (["http://", "f"], "has no host"),
        (["http://host:99999", "f"], "cannot be read"),
        (["http://user:s3cret@host", "f"], "--token-file"),
        (["http://host/a b", "f"], "percent-encode"),
        (["http://host?output=zip", "f"], "use --output"),
        (["http://host", "a", "b"], "several files need -o DIR"),
        (["http://host", "a", "b", "-o", "-"], "several files need -o DIR"),
        (["http://host"], "FILE"),
        (["http://host", "-", "-", "-o", "x"], "only once"),
        (["http://host", "f", "--output", "out"], "use -o DIR"),
        (["http://host", "f", "--live", "--output", "zip"], "cannot be used together"),
        (["http://host", "f", "-j", "0"], "1 to 1000"),
        (["http://host", "f", "--timeout", "soon"], "duration"),
        (["http://host", "f", "--token", "s3cret"], "--token-file"),
        (["http://host", "f", "--token-file", "missing"], "missing"),
        (["http://host", "f", "--token-file", "/dev/null"], "is empty"),
        (["http://host", "f", "--token-file", "/dev/zero"], "has over 65536 bytes"),
        (["https://host", "f", "--ca-file", "missing"], "--ca-file"),
        (["https://host", "f", "--ca-file", "/dev/null"], "PEM"),
    ],
)
def test_wrong_arguments_exit_2_with_a_hint(tmp_path: Path, words: list[str], reason: str) -> None:
    done = invoke(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert reason in " ".join(stderr_of(done).split())
    assert "s3cret" not in stderr_of(done)
    assert list(tmp_path.iterdir()) == []


def test_the_settings_of_a_server_have_no_effect(server: RunningServer, tmp_path: Path) -> None:
    done = invoke(url(server), "-", cwd=tmp_path, WATCHDOG_PORT="nonsense", WATCHDOG_SERVICE_DEFINITION="/missing")
    assert check(done) == ""


def test_help_lists_only_the_flags_of_the_command(tmp_path: Path) -> None:
    done = invoke("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert b"--retry-for" in done.stdout
    assert b"--max-queue" not in done.stdout


def test_the_parameters_of_the_url_reach_the_script(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server('printf "%s %s" "$Http_Path" "$Http_Query"', WATCHDOG_CGI_HEADERS="true")
    done = invoke(f"{url(server)}/a%2Fb?x=%20y#part", "-", cwd=tmp_path)
    assert done.stdout == b"/a%2Fb x=%20y&output=base64"


def test_a_classic_function_gets_the_bytes_with_input_raw(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(None, WATCHDOG_FPROCESS="rev")
    assert invoke(url(server), "-", "--input", "raw", cwd=tmp_path, stdin=b"abc").stdout == b"cba"
    server = start_server(None, WATCHDOG_FPROCESS="false")
    done = invoke(url(server), "-", "--input", "raw", cwd=tmp_path)
    assert check(done, 1).startswith("Script failed: ")


def test_the_docs_list_each_exit_code() -> None:
    page = (ROOT / "docs" / "guide" / "command-line.md").read_text()
    table = page.partition("## Exit codes")[2].partition("\n## ")[0]
    listed = {
        int(number) for cell in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for number in cell.split(",")
    }
    codes = {exit_code_of(error("x")) for error in CLIENT_ERRORS}
    assert codes | {0, 1, 2, 129, 130, 143} == listed


CLIENT_ERRORS: tuple[Callable[[str], errors.WatchdogError], ...] = (
    errors.BadInput,
    errors.OutOfResources,
    errors.FileUnreadable,
    errors.ServiceUnreachable,
    errors.AnswerNotKept,
    errors.StdoutUnwritable,
    errors.RefusedForNow,
    errors.AnswerBroken,
    errors.Unauthorized,
    errors.CallTookTooLong,
    errors.ScriptTimedOut,
    errors.StdoutClosed,
    errors.ServiceError,
)
