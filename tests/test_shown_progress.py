"""The progress of a script under `watchdog run`: a line on a terminal, and events in any other log."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from client_command import clean_environment
from own_events import logged_events
from running_server import on_terminal, read_terminal

from watchdog.commands.shown_progress import ShownProgress
from watchdog.logs.sink import LogWriter
from watchdog.logs.text import fitted

COMMAND = [sys.executable, "-m", "watchdog", "run", "/dev/null", "--script-path", "script.sh"]
# It goes on only after the progress was seen.
WAITS = 'echo "progress 0.5 half of it" >&4; until [ -e go ]; do sleep 0.05; done; echo the answer'


def script(tmp_path: Path, text: str) -> dict[str, str]:
    """Write the script, and return the environment."""
    (tmp_path / "script.sh").write_text(f"cd {tmp_path}\n{text}\n")
    (tmp_path / "tmp").mkdir()
    return clean_environment(TMPDIR=str(tmp_path / "tmp"), TERM="xterm")


def run(tmp_path: Path, text: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    environ = script(tmp_path, text) | more
    return subprocess.run(COMMAND, cwd=tmp_path, env=environ, capture_output=True, timeout=60, check=False)


def progress_in(log: bytes) -> list[tuple[float, str]]:
    """The events of progress, which come before the end of the call."""
    events = [json.loads(line) for line in log.splitlines()]
    names = [event["event"] for event in events]
    assert "progress" not in names[names.index("invocation ended") :]
    return [(event["fraction"], event["text"]) for event in events if event["event"] == "progress"]


def test_a_terminal_shows_a_line_while_the_script_runs(tmp_path: Path) -> None:
    environ = script(tmp_path, WAITS)
    options = {"cwd": tmp_path, "env": environ, "stdout": subprocess.PIPE}
    with on_terminal(COMMAND, **options) as (running, terminal):
        shown = read_terminal(terminal, through=b"half of it")
        assert shown.endswith(b"[############............]  50%  half of it")
        (tmp_path / "go").touch()
        assert running.stdout is not None
        assert running.stdout.read() == b"the answer\n"
        rest = read_terminal(terminal)
    assert running.returncode == 0
    assert b"\r\x1b[K" in rest
    assert b"half of it" not in rest.rpartition(b"\r\x1b[K")[2], "the line is not removed"


def test_the_line_is_gone_before_the_answer_comes_to_the_same_terminal(tmp_path: Path) -> None:
    environ = script(tmp_path, WAITS)
    with on_terminal(COMMAND, cwd=tmp_path, env=environ) as (running, terminal):
        read_terminal(terminal, through=b"half of it")
        (tmp_path / "go").touch()
        rest = read_terminal(terminal)
    assert running.returncode == 0
    before, answer, _ = rest.rpartition(b"the answer\r\n")
    assert answer
    assert b"half of it" not in before.rpartition(b"\r\x1b[K")[2]


def test_a_log_that_is_not_a_terminal_has_the_progress_as_an_event(tmp_path: Path) -> None:
    environ = script(tmp_path, WAITS)
    with subprocess.Popen(
        COMMAND, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stderr is not None
        event = json.loads(running.stderr.readline())
        del event["timestamp"]
        assert event == {
            "level": "info",
            "event": "progress",
            "logger": "invocation",
            "call_id": "local",
            "fraction": 0.5,
            "text": "half of it",
        }
        (tmp_path / "go").touch()
        output, _ = running.communicate(timeout=60)
    assert (running.returncode, output) == (0, b"the answer\n")


def test_a_text_for_people_has_no_control_characters(tmp_path: Path) -> None:
    done = run(tmp_path, r"printf 'progress 1 a\r\033[2Jb\007\377\n' >&4", WATCHDOG_LOG_FORMAT="console")
    (line,) = (line for line in done.stderr.splitlines() if b"progress" in line)
    assert line.endswith(rb"local     progress  100%  a\rb\x07\xff")
    assert b"\x1b" not in done.stderr
    assert b"\r" not in done.stderr


@pytest.mark.parametrize("end", ["exit 3", "kill -9 $$", "exit 0"])
def test_the_last_progress_is_logged_before_the_end(tmp_path: Path, end: str) -> None:
    done = run(tmp_path, f'for at in 1 2 3 4; do echo "progress 0.$at" >&4; done; echo "progress 0.9 last" >&4; {end}')
    assert progress_in(done.stderr)[-1] == (0.9, "last")


def test_lines_that_are_not_progress_are_ignored(tmp_path: Path) -> None:
    done = run(tmp_path, r"printf 'progress 25\nprogress 50%%\nhello\nprogress 0.5' >&4; echo out")
    assert progress_in(done.stderr) == []
    assert (done.returncode, done.stdout) == (0, b"out\n")


def test_a_descriptor_of_the_user_stays(tmp_path: Path) -> None:
    environ = script(tmp_path, 'echo "progress 0.5" >&4')
    command = ["sh", "-c", 'exec "$@" 4>lines', "sh", *COMMAND]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, timeout=60, check=True)
    assert (tmp_path / "lines").read_text() == "progress 0.5\n"
    assert progress_in(done.stderr) == []


def test_a_warm_script_shows_its_progress(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        'echo "ready sh" >&4; while read -r call <&3; do echo "progress 0.5 half" >&4; echo done >&4; done',
        WATCHDOG_WARM="1",
    )
    assert progress_in(done.stderr) == [(0.5, "half")]


def test_a_script_that_reports_each_step_does_not_flood_the_log() -> None:
    async def report() -> None:
        shown = ShownProgress(LogWriter(-1), "c", has_line=False)
        for step in range(1000):
            shown.progress(step / 1000, str(step))
        shown.ended()
        shown.ended()

    with logged_events() as events:
        asyncio.run(report())
    assert [event["text"] for event in events] == ["0", "999"]


def test_the_progress_of_each_run_of_a_call_is_shown_at_once() -> None:
    async def report() -> None:
        shown = ShownProgress(LogWriter(-1), "c", has_line=False)
        for run in ("first", "second"):
            shown.progress(0.1, f"{run} begins")
            shown.progress(0.9, f"{run} ends")
            shown.ended()

    with logged_events() as events:
        asyncio.run(report())
    assert [event["text"] for event in events] == ["first begins", "first ends", "second begins", "second ends"]


def test_a_line_that_is_too_wide_is_cut() -> None:
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 20))
    sink = LogWriter(theirs)
    try:
        sink.show_status("x" * 100)
        assert sink.flush(15)
    finally:
        sink.close(15)
        os.close(theirs)
        shown = read_terminal(ours)
        os.close(ours)
    assert shown == b"\r\x1b[K" + b"x" * 19


@pytest.mark.parametrize(
    ("text", "columns", "cut"),
    [
        ("", 3, ""),
        ("abc", 3, "abc"),
        ("abcd", 3, "abc"),
        ("日本", 4, "日本"),
        ("日本語", 5, "日本"),
        ("e\u0301e\u0301e\u0301", 3, "e\u0301e\u0301e\u0301"),
        ("abc", 0, ""),
        ("é", -1, ""),
    ],
)
def test_the_part_of_a_text_that_fits(text: str, columns: int, cut: str) -> None:
    assert fitted(text, columns) == cut
