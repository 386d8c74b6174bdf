"""The log for people: what a terminal shows, line by line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running_server import RunningServer, StartServer, on_terminal, read_terminal

from watchdog.logs import readable
from watchdog.logs.console import ConsoleFormat
from watchdog.logs.script_log import ScriptLog
from watchdog.logs.sink import LogWriter

ROOT = Path(__file__).parent.parent
ID = "24c0868da967f63b67597a178e5dd22e"
TIME = re.compile(r"^\d\d:\d\d:\d\d  ", re.MULTILINE)


def shown(level: str, event: str, logger: str = "invocation", form: ConsoleFormat | None = None, **fields: Any) -> str:
    """The text of an event without its time."""
    form = form or ConsoleFormat(colors=False)
    text = form.event(level, {"logger": logger, "event": event, **fields}).decode()
    assert TIME.match(text), text
    return text[len("12:37:30  ") :]


def ended(level: str = "info", **fields: Any) -> str:
    """The text of the end of a call, after the column of the id."""
    text = shown(level, "invocation ended", call_id=ID, **fields)
    assert text.startswith("24c0868d  ")
    return text.removeprefix("24c0868d  ")


# ---- A real server


def start_console(start_server: StartServer, script: str, **environ: str) -> RunningServer:
    return start_server(script, has_logs=False, WATCHDOG_LOG_FORMAT="console", **environ)


def line_with(server: RunningServer, part: str) -> str:
    """The next line of the log that has this part, without its time."""
    while part not in (line := server.event("not json")["text"]):
        pass
    return str(line[len("12:37:30  ") :].rstrip("\n"))


def all_lines(server: RunningServer) -> str:
    assert server.stop() == 0
    return "".join(event["text"] for event in server.logs)


def test_a_call_that_succeeds_has_a_start_its_own_lines_and_one_summary(start_server: StartServer) -> None:
    server = start_console(start_server, 'echo reading >&2; printf 123 > "$TMP_OUTPUT_DIR/gray.jpg"')
    answer = server.call(b"abcde", "/?input=raw&filename=photo.jpg")
    assert answer.status == 200
    short = answer.headers["X-Call-Id"][:8]
    text = all_lines(server)
    assert f"listening on http://127.0.0.1:{server.port}, runs {server.script} (" in text
    of_call = [line[len("12:37:30  ") :] for line in text.splitlines() if short in line]
    assert of_call[:2] == [f"{short}  start  photo.jpg 5 B", f"{short}  | reading"]
    assert re.fullmatch(rf"{short}  ok  <?\d+\.\d\d s  photo\.jpg 5 B -> gray\.jpg 3 B", of_call[2])
    assert len(of_call) == 3


def test_a_call_that_fails_has_its_reason_once(start_server: StartServer) -> None:
    server = start_console(start_server, "echo no picture >&2; exit 3")
    server.call(b"abcde", "/?input=raw&filename=photo.jpg")
    server.call(b"abc!")
    text = all_lines(server)
    assert re.search(r"  failed  exit code 3  <?\d+\.\d\d s  photo\.jpg 5 B\n", text)
    assert "ended with exit code 3" not in text
    assert text.count("is not base64") == 1


def test_a_call_that_waits_says_so_and_how_long_it_waited(start_server: StartServer, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = f'mkdir "{tmp_path}/first" 2>/dev/null || exit 0; read line < "{gate}"'
    server = start_console(start_server, script, WATCHDOG_MAX_INFLIGHT="1")
    first, second = (
        threading.Thread(target=server.call, args=(b"", path)) for path in ("/?filename=a", "/?filename=b")
    )
    first.start()
    line_with(server, "start")
    second.start()
    waiting = line_with(server, "wait")
    short = waiting.split()[0]
    assert waiting == f"{short:<8}  wait  position 1 in the queue"
    gate.write_text("go\n")
    assert re.fullmatch(rf"{short}  start  b 0 B  after <?\d+\.\d+ s in the queue", line_with(server, "start"))
    first.join()
    second.join()


def test_a_call_that_comes_before_a_worker_has_loaded_says_so(start_server: StartServer, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    serve = 'while IFS= read -r call <&3; do echo "done 0" >&4; done'
    server = start_console(start_server, f'read line < "{gate}"; echo "ready sh" >&4; {serve}', WATCHDOG_WARM="1")
    calls = [threading.Thread(target=server.call, args=(b"",)) for _ in range(2)]
    calls[0].start()
    assert line_with(server, "start").endswith("  start  as soon as a worker has loaded")
    gate.write_text("go\n")
    line_with(server, "worker ready")
    line_with(server, "ok")
    calls[1].start()
    assert line_with(server, "start").endswith("  start")
    for each in calls:
        each.join()


@pytest.mark.guard("terminal-escapes")
def test_no_control_character_of_a_caller_or_a_script_reaches_the_terminal(start_server: StartServer) -> None:
    script = """printf 'bell \\007 \\033[2J\\n' >&2; : > "$TMP_OUTPUT_DIR/$(printf 'a\\033[2Jb')"; exit 0"""
    server = start_console(start_server, script)
    server.call(b"abcde", "/?input=raw&filename=%C2%9B2J%E2%80%AEphoto.jpg", headers={"X-Call-Id": "mine"})
    text = all_lines(server)
    assert re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text) is None, text
    assert "mine" in text
    assert "bell \\x07" in text


@pytest.mark.guard("no-narration-for-programs")
def test_a_log_of_json_has_one_event_of_a_call_without_names_of_files(start_server: StartServer) -> None:
    server = start_server('echo 1 > "$TMP_OUTPUT_DIR/a.txt"')
    server.call(b"abcde", "/?input=raw&filename=photo.jpg")
    server.stop()
    of_call = [event for event in server.logs if "call_id" in event]
    assert [event["event"] for event in of_call] == ["invocation ended"]
    assert not {"input_name", "outputs", "printed_bytes"} & of_call[0].keys()


# ---- Colours


COLORED = """
import sys
from watchdog.logs.setup import configure, get_logger
from watchdog.logs.script_log import ScriptLog
sink = configure(level="INFO", format=sys.argv[1])
get_logger("server").info("listening", port=8080, address="::", script="s.sh", max_inflight=2, max_queue=20)
try: 1/0
except Exception: get_logger("server").exception("internal error", reason="ZeroDivisionError('division by zero')")
log = ScriptLog(sink, stream="stdout", call_id="c-1")
log.feed(b"ERROR: bad \\x07 bell\\n")
log.close()
sink.close(5)
"""


def test_a_console_without_a_terminal_has_no_colors() -> None:
    command = [sys.executable, "-c", COLORED, "console"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, cwd=ROOT)
    text = TIME.sub("", done.stderr.decode())
    lines = text.splitlines()
    assert "\x1b" not in text
    assert lines[0] == "listening on http://localhost:8080, runs s.sh (2 calls at a time, 20 may wait)"
    assert lines[1] == "error: internal error"
    # The traceback is on separate lines, and ends with the reason.
    assert lines[2].strip() == "Traceback (most recent call last):"
    assert lines[-2].strip() == "ZeroDivisionError: division by zero"
    assert text.count("division by zero") == 1
    assert lines[-1] == "c-1       | ERROR: bad \\x07 bell"


@pytest.mark.parametrize(
    ("no_color", "term", "has_colors"), [("", "xterm", True), ("1", "xterm", False), ("", "dumb", False)]
)
def test_a_terminal_gets_colors_unless_the_environment_says_no(no_color: str, term: str, has_colors: bool) -> None:
    environ = os.environ | {"NO_COLOR": no_color, "TERM": term}
    command = [sys.executable, "-c", COLORED, "auto"]
    with on_terminal(command, stdin=subprocess.DEVNULL, stdout=None, cwd=ROOT, env=environ) as (process, terminal):
        text = read_terminal(terminal)
    assert process.returncode == 0
    assert b"ERROR: bad \\x07 bell" in text
    assert (b"\x1b[" in text) is has_colors


def test_each_color_ends_on_its_line_and_its_text_is_the_same_without_colors() -> None:
    texts = ["| a", "WARNING: b", "Traceback (most recent call last):\n  File\nValueError: c"]
    colored, plain = (
        ConsoleFormat(colors=each).script_lines([20, 30, 40], texts, "stderr", ID).decode() for each in (True, False)
    )
    for line in colored.splitlines():
        assert line.count("\x1b[") == 2 * line.count("\x1b[0m"), line
    assert re.sub(r"\x1b\[[\d;]*m", "", colored)[8:] == plain[8:]


# ---- Single events


def test_a_traceback_of_a_script_is_aligned_on_real_lines() -> None:
    text = ConsoleFormat(colors=False).script_lines([40], ["Traceback:\n  File\nE: x"], "stderr", ID).decode()
    assert [line[8:] for line in text.splitlines()] == [
        "  24c0868d  | Traceback:",
        "            |   File",
        "            | E: x",
    ]


def test_a_line_that_is_cut_shows_how_long_it_was(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        sink = LogWriter(file.fileno(), ConsoleFormat(colors=False))
        log = ScriptLog(sink, stream="stdout", call_id=None)
        log.feed(b"x" * 70_000 + b"\n")
        log.close()
        assert sink.close(20)
    first, second = (tmp_path / "log").read_text().splitlines()
    assert first[10:].startswith("worker    | xxxx")
    assert second.strip() == "(cut: 70 kB in all)"


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("::", "http://localhost:8080"),
        ("0.0.0.0", "http://localhost:8080"),
        ("127.0.0.1", "http://127.0.0.1:8080"),
        ("::1", "http://[::1]:8080"),
        ("10.1.2.3", "http://10.1.2.3:8080"),
    ],
)
def test_the_listening_line_shows_an_address_that_works_in_a_browser(address: str, url: str) -> None:
    text = shown("info", "listening", "server", address=address, port=8080, fprocess="cat", max_inflight=0)
    assert text == f"listening on {url}, runs the command cat (no limit of calls)\n"


def test_the_listening_line_shows_the_port_of_metrics() -> None:
    text = shown(
        "info",
        "listening",
        "server",
        address="::",
        port=1,
        script="SCRIPT",
        max_inflight=1,
        max_queue=0,
        metrics_port=2,
    )
    assert text == (
        "listening on http://localhost:1, runs the script in the variable SCRIPT "
        "(1 call at a time, 0 may wait; metrics on port 2)\n"
    )


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"outcome": "ok", "duration_s": 0.0213, "input_name": "photo.jpg", "input_bytes": 1078}
            | {"outputs": [("gray.jpg", 585)], "printed_bytes": 9},
            "ok  0.02 s  photo.jpg 1.1 kB -> gray.jpg 585 B\n",
        ),
        ({"outcome": "ok", "duration_s": 1, "input_bytes": 18, "outputs": [], "printed_bytes": 2}, "2 B printed\n"),
        ({"outcome": "ok", "duration_s": 1, "input_bytes": 0, "outputs": []}, "ok  1.00 s  no input -> nothing\n"),
        ({"outcome": "ok", "outputs": [(f"{n}.png", 1000) for n in range(4)]}, "-> 4 files 4.0 kB\n"),
        ({"outcome": "ok", "outputs": [("a", 1), ("b\n", 2)]}, "-> a 1 B, b\\n 2 B\n"),
        (
            {"outcome": "failed", "exit_code": 3, "duration_s": 0.02, "input_name": "photo.jpg", "input_bytes": 1078}
            | {"outputs": [], "reason": "the script ended with exit code 3"},
            "failed  exit code 3  0.02 s  photo.jpg 1.1 kB\n",
        ),
        (
            {"outcome": "killed", "signal": "SIGSEGV", "duration_s": 2, "reason": "the script was ended by SIGSEGV"},
            "killed  SIGSEGV  2.00 s\n",
        ),
        (
            {
                "outcome": "failed",
                "exit_code": 126,
                "reason": "the script ended with exit code 126: make it executable",
            },
            "failed\n                    the script ended with exit code 126: make it executable\n",
        ),
        (
            {"outcome": "out_of_memory", "signal": "SIGKILL", "total_s": 70, "reason": "no memory"},
            "out of memory  1 min 10 s\n                    no memory\n",
        ),
    ],
)
def test_the_summary_of_a_call(fields: dict[str, Any], text: str) -> None:
    assert ended(**fields).endswith(text)


@pytest.mark.parametrize(
    ("call_id", "column"),
    [
        (ID, "24c0868d"),
        ("0f8fad5b-d9cb-469f-a165-70867728950e", "0f8fad5b"),
        ("job-1", "job-1   "),
        ("batch-2026-11-28-0001", "batch-2026-11-28-0001"),
        ("a\x1b[2J", "a\\x1b[2J"),
    ],
)
def test_only_a_generated_id_is_shortened(call_id: str, column: str) -> None:
    assert shown("info", "call started", call_id=call_id) == f"{column}  start\n"


def test_a_reason_that_an_event_of_the_call_has_shown_is_not_shown_again() -> None:
    form = ConsoleFormat(colors=False)
    reason = "object 1 of 2: not found"
    first = shown("error", "object of an event failed", form=form, call_id=ID, reason=reason)
    last = shown("error", "invocation ended", form=form, call_id=ID, outcome="no_object", reason=reason)
    assert first == f"24c0868d  error: object of an event failed: {reason}\n"
    assert last == "24c0868d  no object\n"
    again = shown("error", "invocation ended", form=form, call_id=ID, outcome="no_object", reason=reason)
    assert reason in again, "the next call with the same id has its own reasons"


def test_reasons_of_calls_without_an_end_take_bounded_memory() -> None:
    form = ConsoleFormat(colors=False)
    for number in range(1000):
        shown("warning", "output skipped", form=form, call_id=str(number), reason="it is a link")
    assert len(form._said) <= 100


def test_other_events_show_their_fields_in_words() -> None:
    text = shown("info", "worker ready", "workers", pid=12, load_s=0.312, size_bytes=1078, names=["a", "b\x1b"])
    assert text == "worker ready (pid 12, load 0.31 s, size 1.1 kB, names a, b\\x1b)\n"
    text = shown("warning", "metrics are off", "server", reason="the port is taken")
    assert text == "warning: metrics are off: the port is taken\n"


# ---- Sizes and times


@pytest.mark.parametrize(
    ("write", "number", "text"),
    [
        (readable.size, 0, "0 B"),
        (readable.size, 999, "999 B"),
        (readable.size, 1078, "1.1 kB"),
        (readable.size, 9_960, "10 kB"),
        (readable.size, 999_499, "999 kB"),
        (readable.size, 999_501, "1.0 MB"),
        (readable.size, 52_428_800, "52 MB"),
        (readable.size, 10**16, "10000 TB"),
        (readable.seconds, 0.0001, "<0.01 s"),
        (readable.seconds, 0.0149, "0.01 s"),
        (readable.seconds, 9.996, "10.0 s"),
        (readable.seconds, 59.96, "1 min 0 s"),
        (readable.seconds, 125, "2 min 5 s"),
        (readable.seconds, 3600 + 125, "1 h 2 min"),
    ],
)
def test_numbers_are_rounded(write: Callable[[float], str], number: float, text: str) -> None:
    assert write(number) == text
