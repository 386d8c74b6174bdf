"""The shell helper of warm functions, in each shell that an image may have as /bin/sh."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from warm_worker import HELPERS, WarmWorker

HELPER = HELPERS / "watchdog_warm.sh"
SHELLS = {"dash": ["dash"], "bash": ["bash"], "bash-posix": ["bash", "--posix"], "busybox": ["busybox", "sh"]}
Start = Callable[..., WarmWorker]


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> list[str]:
    words = SHELLS[request.param]
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    return words


@pytest.fixture
def start(shell: list[str], tmp_path: Path) -> Iterator[Start]:
    """Start a script that sources the helper, and then contains this text."""
    workers: list[WarmWorker] = []

    def start(script: str, *, is_warm: bool = True, environ: dict[str, str] | None = None) -> WarmWorker:
        (tmp_path / "script.sh").write_text(f". {HELPER}\n{script}\n")
        worker = WarmWorker([*shell, str(tmp_path / "script.sh")], tmp_path, environ=environ, is_warm=is_warm)
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.close()


def call(worker: WarmWorker, line: str) -> str:
    worker.send(line.encode() + b"\n")
    return worker.answer()


def test_a_function_gets_the_variables_of_each_call_and_what_was_prepared_once(start: Start) -> None:
    worker = start('model=$$; call() { printf "%s\\n" "$model $A $1 $(printenv B)"; }; serve call "x y"; echo end')
    assert worker.answer() == "ready sh"
    assert call(worker, "A='1' B='a b'") == "done 0"
    assert call(worker, r"A='it'\''s' B='$(id) \n'; unset C") == "done 0"
    assert worker.end() == 0
    assert worker.printed() == f"{worker.pid} 1 x y a b\n{worker.pid} it's x y $(id) \\n\nend\n"
    assert worker.complained() == ""


def test_a_command_can_be_served_too(start: Start) -> None:
    worker = start("serve printenv A")
    assert worker.answer() == "ready sh"
    assert call(worker, "A='1'") == "done 0"
    assert call(worker, "B='1'; unset A") == "done 1"
    assert worker.printed() == "1\n"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("true", 0),
        ("false", 1),
        ("exit 7", 7),
        ("return 8", 8),
        ("no_such_command", 127),
        ("kill -9 $(sh -c 'echo $PPID')", 137),
    ],
)
def test_the_exit_code_of_the_function_is_reported(start: Start, command: str, code: int) -> None:
    worker = start(f"call() {{ {command}; }}; serve call")
    assert worker.answer() == "ready sh"
    for _ in range(2):
        assert call(worker, "A='1'") == f"done {code}"


@pytest.mark.parametrize("options", ["-e", "-eu"])
def test_set_e_ends_the_call_but_not_the_script(start: Start, options: str) -> None:
    worker = start(f'set {options}; call() {{ echo one; "$A"; echo two; }}; serve call; echo "$-"; false; echo no')
    assert worker.answer() == "ready sh"
    assert call(worker, "A='false'") == "done 1"
    assert worker.printed() == "one\n"
    assert call(worker, "A='true'") == "done 0"
    assert worker.printed() == "one\ntwo\n"
    assert worker.end() == 1
    assert worker.printed().count("e") >= 1
    assert "no" not in worker.printed()


def test_without_set_e_a_call_continues_after_a_command_that_fails(start: Start) -> None:
    worker = start("call() { false; echo two; }; serve call")
    assert worker.answer() == "ready sh"
    assert call(worker, "A='1'") == "done 0"
    assert worker.printed() == "two\n"


def test_nothing_of_a_call_reaches_the_next_one(start: Start) -> None:
    worker = start(
        'call() { pwd; echo "$A$NEW$IFS$-"; cd /; A=2; NEW=x; IFS=:; set -f; trap "echo t" EXIT; }; A=0; serve call'
    )
    assert worker.answer() == "ready sh"
    printed = set()
    for _ in range(3):
        assert call(worker, "B='1'") == "done 0"
        printed.add(worker.printed())
    assert len(printed) == 1


def test_the_exit_trap_of_the_script_runs_once_at_its_end(start: Start) -> None:
    worker = start("trap 'echo cleaned' EXIT; call() { exit 3; }; serve call")
    assert worker.answer() == "ready sh"
    assert [call(worker, "A='1'") for _ in range(2)] == ["done 3"] * 2
    assert worker.printed() == ""
    assert worker.end() == 0
    assert worker.printed() == "cleaned\n"


def test_no_process_of_a_call_has_the_pipes(start: Start) -> None:
    worker = start("call() { ls -l /proc/self/fd; }; serve call")
    assert worker.answer() == "ready sh"
    assert call(worker, "A='1'") == "done 0"
    printed = worker.printed()
    assert "stdout" in printed
    assert "pipe:" not in printed


def test_a_line_of_200_kb_arrives(start: Start) -> None:
    value = 'é\\$`" ' * 30_000
    worker = start('call() { printf %s "$A"; }; serve call')
    assert worker.answer() == "ready sh"
    assert call(worker, f"A='{value}'") == "done 0"
    assert worker.printed() == value


def test_a_line_without_its_end_is_not_a_call(start: Start) -> None:
    worker = start("call() { echo called; }; serve call")
    assert worker.answer() == "ready sh"
    worker.send(b"A='1")
    assert worker.end() == 0
    assert worker.printed() == worker.complained() == ""


@pytest.mark.parametrize("options", ["+e", "-e"])
@pytest.mark.parametrize("code", [0, 6])
def test_without_descriptors_the_function_runs_once(start: Start, options: str, code: int) -> None:
    worker = start(
        f'set {options}; call() {{ echo "$A $1"; return {code}; }}; serve call x', is_warm=False, environ={"A": "1"}
    )
    assert worker.wait() == code
    assert worker.printed() == "1 x\n"
    assert worker.complained() == ""


def test_serve_without_a_function_is_an_error(shell: list[str]) -> None:
    done = subprocess.run([*shell, "-c", f". {HELPER}; serve"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "serve: name a function or a command: serve my_function\n"
