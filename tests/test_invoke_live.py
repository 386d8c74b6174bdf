"""`watchdog invoke --live`: the log while the script runs, the outputs with their checksums, and broken streams."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from client_command import (
    Done,
    answer,
    clean_environment,
    command,
    files_in,
    invoke,
    invoke_on_terminal,
    scripted,
    stderr_of,
)
from guards import changed_program
from running_server import RunningServer, StartServer, on_terminal, read_terminal, until

from watchdog.client.event_stream import EventReader
from watchdog.client.progress import Display, PlainFormat
from watchdog.errors import AnswerBroken
from watchdog.logs.sink import LogWriter

CONTENT = os.urandom(1_000_000)
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def url(server: RunningServer) -> str:
    return f"http://127.0.0.1:{server.port}"


# ------------------------------------------------------------------------------------------------ the real server


def test_lines_are_shown_while_the_script_runs(start_server: StartServer, tmp_path: Path) -> None:
    """The script goes on only after its line was seen."""
    server = start_server(f"echo first; until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo second >&2; echo third")
    with subprocess.Popen(
        command(url(server), "/dev/null", "--live"),
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        assert running.stderr is not None
        assert running.stderr.readline() == b"first\n"
        (tmp_path / "go").touch()
        output, rest = running.communicate(timeout=60)
    assert (running.returncode, output) == (0, b"first\nthird\n")
    assert sorted(rest.splitlines()) == [b"second", b"third"]


def test_outputs_are_kept(shared_server: StartServer, tmp_path: Path) -> None:
    server = shared_server(
        'cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/a.bin"; mkdir "$TMP_OUTPUT_DIR/d"; : > "$TMP_OUTPUT_DIR/d/empty"'
    )
    (tmp_path / "in").write_bytes(CONTENT)
    done = invoke(url(server), "in", "-o", "out", "--live", cwd=tmp_path)
    assert done.returncode == 0, stderr_of(done)
    assert files_in(tmp_path / "out") == {"a.bin": CONTENT, "d/empty": b""}
    assert re.fullmatch(r"ok  .* s  in 1\.0 MB -> out/a\.bin 1\.0 MB, out/d/empty 0 B\n", stderr_of(done))
    done = invoke(url(server), "in", "--live", cwd=tmp_path)
    with zipfile.ZipFile(BytesIO(done.stdout)) as archive:
        assert archive.testzip() is None
        assert (archive.namelist(), archive.read("a.bin")) == (["a.bin", "d/empty"], CONTENT)


def test_one_output_goes_to_stdout(shared_server: StartServer, tmp_path: Path) -> None:
    server = shared_server('cat "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/o"')
    (tmp_path / "in").write_bytes(CONTENT)
    done = invoke(url(server), "in", "--live", cwd=tmp_path, TMPDIR=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, CONTENT, b"")
    assert files_in(tmp_path) == {"in": CONTENT}


def test_the_verdict_of_a_failure_is_that_of_an_ordinary_call(shared_server: StartServer, tmp_path: Path) -> None:
    server = shared_server('echo part > "$TMP_OUTPUT_DIR/o"; echo why >&2; exit 3')
    done = invoke(url(server), "-", "-o", "out", "--live", cwd=tmp_path)
    assert done.returncode == 3
    assert stderr_of(done) == "why\nScript failed: the script ended with exit code 3\n  why\n"
    assert files_in(tmp_path / "out") == {}


def test_warnings_are_explained(shared_server: StartServer, tmp_path: Path) -> None:
    server = shared_server("true")
    done = invoke(url(server), "-", "-o", "out", "--live", cwd=tmp_path)
    assert done.returncode == 0
    assert re.match(r"warning  stdin: no-output: .{20}", stderr_of(done))


def test_several_files_name_themselves_before_each_line(shared_server: StartServer, tmp_path: Path) -> None:
    server = shared_server("echo hello")
    for name in ("a", "b"):
        (tmp_path / name).touch()
    done = invoke(url(server), "a", "b", "-o", "out", "--live", cwd=tmp_path)
    assert done.returncode == 0
    assert stderr_of(done).splitlines()[0] == "a: hello"
    assert "b: hello" in stderr_of(done)
    assert files_in(tmp_path / "out") == {"a.txt": b"hello\n", "b.txt": b"hello\n"}


def test_odd_names_of_several_files_are_escaped_before_each_line(shared_server: StartServer, tmp_path: Path) -> None:
    names = [b"\xff.jpg", b"a\x1b[31m"]
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    server = shared_server("echo hello")
    done = invoke(url(server), *map(os.fsdecode, names), "-o", "out", "--live", cwd=tmp_path)
    assert done.returncode == 0, stderr_of(done)
    assert {"\\xff.jpg: hello", "a\\x1b[31m: hello"} <= set(stderr_of(done).splitlines())


def test_ctrl_c_cancels_the_run_on_the_server(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("echo began; sleep 1000")
    with subprocess.Popen(
        command(url(server), "/dev/null", "--live", "-o", "out"),
        env=clean_environment(),
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    ) as running:
        assert running.stderr is not None
        assert running.stderr.readline() == b"began\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 130
        assert running.stderr.read().startswith(b"Ctrl-C cancelled the call")
    assert server.event("invocation ended")["outcome"] == "caller_gone"
    assert files_in(tmp_path / "out") == {}


def test_a_terminal_shows_the_queue_the_progress_and_colours(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(
        f"""if [ -s "$INPUT_FILE_PATH" ]; then echo began; until [ -e {tmp_path}/go ]; do sleep 0.05; done; exit; fi
echo "progress 0.5 half of it" >&4; echo "ERROR: bad" >&2; until [ -e {tmp_path}/end ]; do sleep 0.05; done""",
        WATCHDOG_MAX_INFLIGHT="1",
    )
    first = subprocess.Popen(
        command(url(server), "-"), env=clean_environment(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert first.stdin is not None
    first.stdin.write(b"x")
    first.stdin.close()
    server.event("began")
    words = command(url(server), "/dev/null", "--live", "-o", "out")
    with on_terminal(words, cwd=tmp_path, env=clean_environment(TERM="xterm")) as (second, terminal):
        read_terminal(terminal, through=b"waiting in the queue, position 1")
        (tmp_path / "go").touch()
        shown = read_terminal(terminal, through=b"half of it")
        assert b"[############............]  50%  half of it" in shown
        (tmp_path / "end").touch()
        shown += read_terminal(terminal)
    assert b"\x1b[31mERROR: bad\x1b[0m" in shown
    assert (first.wait(timeout=60), second.wait(timeout=60)) == (0, 0)


def test_a_call_that_waited_in_vain_for_its_place_is_sent_again(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(
        f"""if [ -s "$INPUT_FILE_PATH" ]; then echo began; until [ -e {tmp_path}/go ]; do sleep 0.05; done; fi
echo done""",
        WATCHDOG_MAX_INFLIGHT="1",
        WATCHDOG_QUEUE_TIMEOUT="0.2",
    )
    with subprocess.Popen(
        command(url(server), "-"), env=clean_environment(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as first:
        assert first.stdin is not None
        first.stdin.write(b"x")
        first.stdin.close()
        server.event("began")
        with subprocess.Popen(
            command(url(server), "/dev/null", "--live"), env=clean_environment(), stdout=subprocess.PIPE
        ) as second:
            server.event("invocation ended", outcome="overloaded")
            server.event("invocation ended", outcome="overloaded")
            (tmp_path / "go").touch()
            output, _ = second.communicate(timeout=60)
    assert (second.returncode, output) == (0, b"done\n")


def shown_on_a_terminal(server: RunningServer, tmp_path: Path, without: str | None, *words: str) -> bytes:
    """Return what a terminal shows of a call with ``--live``."""
    words = (url(server), "/dev/null", "--live", *words)
    code, shown = invoke_on_terminal(*words, cwd=tmp_path, without=without, NO_COLOR="1")
    assert code == 0, shown
    return shown


@pytest.mark.guard("one-answer")
@pytest.mark.parametrize("words", [[], ["-o", "-"]])
@pytest.mark.parametrize(
    ("script", "times"),
    [
        ("echo marker", 1),
        ("printf 'marker without a line end'", 1),
        ("printf 'marker\\n\\n  \\nend\\n\\n'", 1),
        ("printf 'marker\\r\\nend\\r\\n'", 1),
        (r"printf '\033[31mmarker\033[0m\n'", 1),
        ("printf 'Traceback (most recent call last):\\n  File \"x\", line 1\\nmarker: e\\n'", 1),
        ("echo marker; echo marker >&2; echo marker", 3),
    ],
)
def test_printed_text_is_shown_once(
    start_server: StartServer, tmp_path: Path, script: str, times: int, words: list[str], removed_guard: str | None
) -> None:
    server = start_server(script)
    shown = shown_on_a_terminal(server, tmp_path, removed_guard, *words)
    assert shown.count(b"marker") == times, shown


# The log has room only in the first second of a call, however long its script takes on a slow machine.
ONE_SECOND = """
from watchdog.logs.log_rate import LogRate
real = LogRate.has_room
replace(LogRate, "has_room", lambda self: self._left_bytes > 0 if self._second_ends_s else real(self))
"""


@pytest.mark.guard("whole-answer")
@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("echo marker", {"WATCHDOG_LOG_LEVEL": "WARNING"}),
        ("echo other; echo DEBUG marker", {}),
        ("head -c 70000 /dev/zero | tr '\\0' x; echo marker", {}),
        ("seq 10000; echo marker", {"WATCHDOG_MAX_LOG_RATE": "1000", "program": changed_program(ONE_SECOND, None)}),
        ("printf '\\n \\n'; cat >&2 /dev/null; printf 'DEBUG marker'", {}),
    ],
)
def test_an_answer_that_the_log_has_not_shown_whole_is_written(
    start_server: StartServer, tmp_path: Path, script: str, options: dict[str, Any], removed_guard: str | None
) -> None:
    server = start_server(script, **options)
    assert b"marker" in shown_on_a_terminal(server, tmp_path, removed_guard)


def test_the_answer_is_written_if_the_log_goes_elsewhere(shared_server: StartServer, tmp_path: Path) -> None:
    server = shared_server("echo hello")
    words = command(url(server), "/dev/null", "--live")
    options = {"cwd": tmp_path, "env": clean_environment(), "stderr": subprocess.PIPE}
    with on_terminal(words, **options) as (running, terminal):
        shown = read_terminal(terminal)
        _, log = running.communicate(timeout=60)
    assert (shown, log) == (b"hello\r\n", b"hello\n")


# ------------------------------------------------------------------------------------------------ broken streams


def event(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def output(name: str | None, content: bytes, offset: int = 0, size: int | None = None) -> bytes:
    data = {"name": name, "content_type": "text/plain", "size": len(content) if size is None else size}
    return event("output", data | {"offset": offset, "data": base64.b64encode(content).decode()})


def completed(*outputs: tuple[str, bytes], **more: Any) -> bytes:
    listed = [
        {"name": name, "size": len(content), "content_type": "x", "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in outputs
    ]
    members = {"status": 200, "outcome": "ok", "exit_code": 0, "outputs": listed, "warnings": [], "error": None}
    return event("completed", members | more)


def call(tmp_path: Path, *events: bytes, flags: tuple[str, ...] = (), without: str | None = None) -> Done:
    (tmp_path / "in").write_bytes(b"abc")
    with scripted([STREAM, *map(chunk, events)]) as service:
        done = invoke(service.url, "in", "--live", "-o", "out", *flags, cwd=tmp_path, without=without)
        assert len(service.requests) == 1
    assert list((tmp_path / "out").glob(".*")) == [], "a part of an answer was left"
    return done


def test_events_may_be_cut_anywhere_and_unknown_ones_are_ignored(tmp_path: Path) -> None:
    stream = b": hello\n\n" + event("later", {"x": 1}) + event("queued", {"position": 2, "more": 1})
    stream += b'event: log\r\ndata: {"text":\r\ndata:"two"}\r\n\r\n'
    stream += output("a", b"abc", size=5) + output("a", b"de", 3, 5) + completed(("a", b"abcde"))
    done = call(tmp_path, *(stream[at : at + 1] for at in range(len(stream))))
    assert done.returncode == 0, stderr_of(done)
    assert stderr_of(done).startswith("two\n")
    assert files_in(tmp_path / "out") == {"a": b"abcde"}


WHOLE = [output("a", CONTENT[:99], size=150), output("a", CONTENT[99:150], 99, 150), output("b", b"x")]
VERDICT = completed(("a", CONTENT[:150]), ("b", b"x"))


@pytest.mark.parametrize("end", [0, 1, 2, 3])
@pytest.mark.parametrize("is_ended", [True, False])
def test_a_stream_without_its_verdict_is_an_error_and_nothing_is_kept(tmp_path: Path, end: int, is_ended: bool) -> None:
    (tmp_path / "in").write_bytes(b"abc")
    parts = [STREAM, *map(chunk, WHOLE[:end]), b"0\r\n\r\n" if is_ended else b""]
    with scripted(parts) as service:
        done = invoke(service.url, "in", "--live", "-o", "out", cwd=tmp_path)
    assert done.returncode == 76
    assert "cut off" in stderr_of(done)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_verdict_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    for cut in (10, 40, len(VERDICT) - 1):
        done = call(tmp_path, *WHOLE, VERDICT[:cut])
        assert done.returncode == 76, stderr_of(done)
        assert files_in(tmp_path / "out") == {}
    assert call(tmp_path, *WHOLE, VERDICT).returncode == 0


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ([output("a", b"abc"), completed(("a", b"abd"))], "checksum"),
        ([output("a", b"abc"), completed(("a", b"abcd"))], "checksum"),
        ([output("a", b"abc"), completed()], "not those"),
        ([completed(("a", b"abc"))], "not those"),
        ([output("a", b"abc"), completed(("b", b"abc"))], "not those"),
        ([output("a", b"abc", size=4), completed(("a", b"abc"))], "3 bytes and not 4"),
        ([output("a", b"abcd", size=3), completed(("a", b"abcd"))], "4 bytes and not 3"),
        ([output("a", b"abc", size=9), output("a", b"ghi", 6, 9), completed(("a", b"abcghi"))], "missing at byte 3"),
        ([output("a", b"abc", 3, 6), completed(("a", b"abc"))], "missing at byte 0"),
        ([output("a", b"x"), output("b", b"x"), output("a", b"x"), completed()], "comes twice"),
        ([output("../a", b"x"), completed(("../a", b"x"))], "not the path of a file"),
        ([output("/a", b"x"), completed(("/a", b"x"))], "not the path of a file"),
        ([event("output", {"name": "a", "size": 3, "data": "QU!D"}), completed(("a", b"abc"))], "damaged"),
        ([event("output", {"name": 7, "size": 3, "data": ""})], "cannot read"),
        ([event("completed", {"status": "200"})], "cannot read"),
        ([b"event: completed\ndata: nonsense\n\n"], "cannot read"),
        ([b'event: log\ndata: {"text": "", "x": ' + b"[" * 100_000 + b"\n\n"], "cannot read"),
    ],
)
def test_a_stream_that_contradicts_itself_is_an_error_and_nothing_is_kept(
    tmp_path: Path, events: list[bytes], text: str
) -> None:
    done = call(tmp_path, *events)
    assert done.returncode == 76, stderr_of(done)
    assert text in stderr_of(done)
    assert files_in(tmp_path) == {"in": b"abc"}


def test_a_failure_after_a_part_of_the_outputs_is_reported_as_the_server_says(tmp_path: Path) -> None:
    problem = {"title": "Outputs cannot be sent", "detail": "why", "status": 500}
    done = call(tmp_path, output("a", b"abc", size=9), completed(status=500, error=problem))
    assert (done.returncode, stderr_of(done)) == (1, "Outputs cannot be sent: why\n")
    assert files_in(tmp_path / "out") == {}


def test_an_output_that_cannot_have_its_name_does_not_lose_the_others(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path)
    outputs = {"a": b"1", "sub/b": b"2", "c": b"3"}
    done = call(tmp_path, *(output(name, content) for name, content in outputs.items()), completed(*outputs.items()))
    assert done.returncode == 73
    assert "out/sub is a symbolic link" in stderr_of(done)
    assert "2 other files are kept in out\n" in stderr_of(done)
    assert files_in(tmp_path / "out") == {"a": b"1", "c": b"3"}


def test_a_verdict_that_the_input_came_too_slowly_is_not_tried_again(tmp_path: Path) -> None:
    error = {"title": "Request timed out", "detail": "no byte of the body arrived"}
    verdict = completed(status=408, exit_code=None, error=error)
    done = call(tmp_path, event("started", {}), verdict, flags=("--retry-for", "2"))
    assert (done.returncode, stderr_of(done)) == (75, "Request timed out: no byte of the body arrived\n")


def test_control_characters_of_the_log_do_not_reach_the_terminal(tmp_path: Path) -> None:
    hostile = "\x1b]0;title\x07\x1b[2J\u202eabc\rx"
    done = call(
        tmp_path,
        event("log", {"text": hostile + "\nnext", "level": "\x1b[1m"}),
        event("progress", {"fraction": 7e300, "text": hostile}),
        event("dropped", {"lines": 812}),
        output(None, b"x"),
        completed(),
    )
    assert done.returncode == 0, stderr_of(done)
    assert "\\x1b]0;title\\x07\\x1b[2J\\u202eabc\\rx\nnext\n" in stderr_of(done)
    assert "812 lines" in stderr_of(done)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", stderr_of(done))


def test_an_answer_that_is_not_a_stream_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"abc")
    with scripted(answer(b"printed", Content_Type="text/plain")) as service:
        done = invoke(service.url, "in", "--live", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (76, b"")
    assert "call it without --live" in stderr_of(done)


def test_an_event_without_end_is_an_error(tmp_path: Path) -> None:
    def endless(connection: socket.socket) -> None:
        connection.sendall(STREAM + chunk(b"event: log\ndata: "))
        while True:
            connection.sendall(chunk(bytes(65536)))

    (tmp_path / "in").write_bytes(b"abc")
    with scripted(endless) as service:
        done = invoke(service.url, "in", "--live", cwd=tmp_path)
    assert done.returncode == 76
    assert "an event of over" in stderr_of(done)


def test_many_short_lines_of_one_event_are_bounded_too() -> None:
    reader = EventReader()
    piece = b"data: x\n" * 100_000
    assert list(reader.feed(piece)) == []
    with pytest.raises(AnswerBroken):
        list(itertools.chain.from_iterable(reader.feed(piece) for _ in range(10)))


def test_the_files_wait_in_a_hidden_directory_until_the_verdict(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"abc")

    def half(connection: socket.socket) -> None:
        connection.sendall(STREAM + chunk(output("a", CONTENT[:300])))
        until(lambda: any(files_in(tmp_path / "out").values()), "the output to arrive")
        assert re.fullmatch(r"\.invoke-[0-9a-f]{8}\.part/0", next(iter(files_in(tmp_path / "out"))))
        connection.sendall(chunk(completed(("a", CONTENT[:300]))))

    with scripted(half) as service:
        assert invoke(service.url, "in", "--live", "-o", "out", cwd=tmp_path).returncode == 0
    assert files_in(tmp_path / "out") == {"a": CONTENT[:300]}


@pytest.mark.guard("checksums-of-answers")
def test_an_output_with_another_checksum_is_not_kept(tmp_path: Path, removed_guard: str | None) -> None:
    done = call(tmp_path, output("a", b"abc"), completed(("a", b"abd")), without=removed_guard)
    assert (done.returncode, files_in(tmp_path)) == (76, {"in": b"abc"})


def test_a_log_that_nobody_reads_does_not_stop_the_call(tmp_path: Path) -> None:
    """20 MB of log, more than the client holds. The stream ends only after the client has read it."""
    line = event("log", {"text": "x" * 1000})
    (tmp_path / "in").write_bytes(b"abc")
    parts = [STREAM, *[chunk(line * 1000)] * 20, chunk(output(None, b"printed") + completed())]
    with (
        scripted(parts) as service,
        subprocess.Popen(
            command(service.url, "in", "--live"),
            cwd=tmp_path,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as running,
    ):
        assert running.stdout is not None
        assert running.stdout.read() == b"printed"
        assert running.wait(timeout=60) == 0


def test_lines_that_are_dropped_are_counted() -> None:
    read, write = os.pipe()
    sink = LogWriter(write, PlainFormat(), limit_bytes=1000)
    display = Display(sink, has_status=False, has_colors=False)
    for _ in range(1000):
        display.log("info", "x" * 999)
    os.set_blocking(read, False)
    shown = b""

    def are_all_accounted_for() -> bool:
        nonlocal shown
        with contextlib.suppress(BlockingIOError):
            shown += os.read(read, 65536)
        missing = re.findall(rb"\((\d+) lines of the log are missing here", shown)
        return bool(missing) and shown.count(b"x" * 999) + sum(map(int, missing)) == 1000

    until(are_all_accounted_for, "each line to be shown or counted")
    assert sink.close(60)
    os.close(read)
    os.close(write)
