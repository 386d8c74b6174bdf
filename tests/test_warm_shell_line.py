"""The line of a call for a worker that is a shell, read by real shells that live as long as the test."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import string
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from watchdog.warm import shell_line
from watchdog.warm.shell_line import ShellLine

SHELLS = {
    "dash": ("dash",),
    "bash": ("bash",),
    "bash-posix": ("bash", "--posix"),
    "busybox": ("busybox", "sh"),
}
# The loop of the docs. `env` is a process of its own, so it prints what a program of the script would get.
LOOP = """
echo ready sh >&4
while IFS= read -r call <&3; do eval "export $call"
  /usr/bin/env -0 >&4
  echo "done $?" >&4
done
"""
# A shell sets these itself.
OF_THE_SHELL = {"PWD", "OLDPWD", "SHLVL", "_"}
OWN = {"Http_Own": "it's the worker's \\ own", "CE_OWN": "", "CE_LINES": "two\nlines", "OTHER": "$(touch canary)"}
ANSWER_S = 30


class Shell:
    """A shell that runs ``LOOP`` in a directory of its own, and the lines for it."""

    def __init__(self, directory: Path, command: tuple[str, ...], locale: str) -> None:
        directory.mkdir()
        self.directory = directory
        self.own = {**OWN, "PATH": os.environ["PATH"], "LC_ALL": locale}
        self.lines = ShellLine()
        # Variables that the last call set, and variables of the worker that no line can give back after that.
        self.last: set[str] = set()
        self.lost: set[str] = set()
        calls, self._calls = os.pipe()
        self._answers, answers = os.pipe()
        # Above 3 and 4, so that neither replaces the other.
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (calls, answers)]
        os.close(calls)
        os.close(answers)
        self._output = directory.with_suffix(".log")
        output = os.open(self._output, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]]
        actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        actions += [(os.POSIX_SPAWN_DUP2, ends[0], 3), (os.POSIX_SPAWN_DUP2, ends[1], 4)]
        actions += [(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
        code = f"cd '{directory}' || exit\n{LOOP}"
        self._pid = os.posix_spawnp(command[0], [*command, "-c", code], self.own, file_actions=actions)
        for fd in (*ends, output):
            os.close(fd)
        self._unread = b""
        assert self._until(b"\n") == b"ready sh"

    def call(self, variables: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
        """Return the environment of a call, and the names that the line left out."""
        line, left_out = self.lines.line(variables, self.own)
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        self._write(line)
        environment = {}
        while not (entry := self._until(b"\0", b"done ")).startswith(b"done "):
            name, equals, value = entry.partition(b"=")
            assert equals, f"{entry!r} is not a variable"
            environment[os.fsdecode(name)] = os.fsdecode(value)
        assert entry == b"done 0"
        assert os.listdir(self.directory) == [], "something was executed"
        assert self._output.read_bytes() == b""
        return {k: v for k, v in environment.items() if k not in OF_THE_SHELL}, left_out

    def check(self, variables: Mapping[str, str]) -> list[str]:
        """Assert that a call has its variables and those of the worker, and no others. Return the names left out."""
        environment, left_out = self.call(variables)
        assert len(left_out) == len(set(left_out))
        carried = {name: value for name, value in variables.items() if name not in left_out}
        self.lost |= {name for name in self.last - carried.keys() if "\n" in self.own.get(name, "")}
        self.lost -= carried.keys()
        self.last = set(carried)
        expected = {**{k: v for k, v in self.own.items() if k not in self.lost}, **carried}
        assert environment == expected
        for name in set(left_out) & variables.keys():
            is_odd = not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name) or name in HOSTILE_NAMES
            assert is_odd or re.search("\n|\x01", variables[name]), f"{name} was left out"
        return left_out

    def close(self) -> int:
        os.close(self._calls)
        os.close(self._answers)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        return os.waitpid(self._pid, 0)[1]

    def _write(self, line: bytes) -> None:
        """Write a line that may be longer than a pipe: the shell answers only when it has read the whole line."""
        rest = memoryview(line)
        while rest:
            _, writable, _ = select.select([], [self._calls], [], ANSWER_S)
            assert writable, "the shell does not read its call"
            rest = rest[os.write(self._calls, rest[:4096]) :]

    def _until(self, end: bytes, last: bytes = b"") -> bytes:
        """Return the bytes before ``end``, or a line that begins with ``last``."""
        while True:
            if last and self._unread.startswith(last) and b"\n" in self._unread:
                line, _, self._unread = self._unread.partition(b"\n")
                return line
            if end in self._unread and not (last and self._unread.startswith(last)):
                found, _, self._unread = self._unread.partition(end)
                return found
            readable, _, _ = select.select([self._answers], [], [], ANSWER_S)
            assert readable, f"the shell does not answer: {self._output.read_bytes()!r}"
            data = os.read(self._answers, 1 << 16)
            assert data, f"the shell has ended: {self._output.read_bytes()!r}"
            self._unread += data


@contextlib.contextmanager
def shell_at(directory: Path, name: str, locale: str = "C.UTF-8") -> Iterator[Shell]:
    shell = Shell(directory, SHELLS[name], locale)
    try:
        yield shell
    finally:
        shell.close()


# Bytes of a value are lone surrogates, as in `os.environ`.
def text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


FRAGMENTS: list[str] = [
    "'", "''", "'\\''", '"', "\\", "\\\\", "\\n", "`touch canary`", "$(touch canary)", "${x:=$(touch canary)}",
    "'; touch canary; '", "'\ntouch canary\n'", "; touch canary #", "& touch canary &", "| touch canary", "$((x[0]))",
    "x[$(touch canary)]", "\\'; touch canary; \\'", "$'\\n'", "$HOME", "~", "*", "?", "[a-z]", "{a,b}", "!", "!!", "#",
    " ", "\t", "\r", "\n", "\x01", "\x7f", "\x1b[31m", "%s", "=", "-n", "--", "é", "日本", "😀", "\u2028", "a",
    "b" * 300,
    *(text(bytes([byte])) for byte in (0x80, 0x81, 0x82, 0x84, 0x88, 0x9F, 0xC3, 0xE2, 0xF0, 0xFF)),
]  # fmt: skip
# Names that a shell uses itself, from its manual. A caller cannot choose one of them, because the server puts `Http_`
# or `CE_` before the names that callers choose.
HOSTILE_NAMES = (
    "_ ATTY BASH BASHOPTS BASHPID BASH_ALIASES BASH_ARGC BASH_ARGV BASH_ARGV0 BASH_CMDS BASH_COMMAND BASH_COMPAT "
    "BASH_ENV BASH_LINENO BASH_REMATCH BASH_SOURCE BASH_SUBSHELL BASH_VERSINFO BASH_XTRACEFD CHILD_MAX COLUMNS "
    "COMP_WORDBREAKS COPROC DIRSTACK ENV EPOCHREALTIME EPOCHSECONDS EUID EXECIGNORE FUNCNAME FUNCNEST GLOBIGNORE "
    "GROUPS HISTCMD HISTFILE HISTSIZE IFS LINENO LINES MAPFILE OLDPWD OPTARG OPTERR OPTIND PIPESTATUS POSIXLY_CORRECT "
    "PPID PROMPT_COMMAND PS1 PS2 PS4 PWD RANDOM REPLY SECONDS SHELLOPTS SHLVL SRANDOM TIMEFORMAT TMOUT UID"
).split()

values = st.one_of(
    # Two halves of a character in a row are a character.
    st.lists(st.sampled_from(FRAGMENTS), max_size=12).map(lambda parts: text(os.fsencode("".join(parts)))),
    st.binary(max_size=60).map(lambda data: text(data.replace(b"\0", b""))),
)
names = st.one_of(
    st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=8).map("Http_".__add__),
    st.sampled_from(["Http_A", "Http_B", "CE_A", "CALL_ID", "INPUT_FILE_PATH", *OWN]),
    st.sampled_from(HOSTILE_NAMES),
    st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=4).map(lambda parts: "Http_" + "".join(parts)),
    st.sampled_from(
        ["", "1A", "A-B", "A.B", "Http_A=$(touch canary)", "é", "A ", "A\n", "-p", "-f Http_A", "A;touch x"]
    ),
)
calls = st.lists(st.dictionaries(names, values, max_size=8), min_size=1, max_size=6)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize("name", SHELLS)
def test_hostile_names_and_values_arrive_byte_for_byte_or_are_reported(name: str, locale: str, tmp_path: Path) -> None:
    shells: list[Shell] = []

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(calls)
    @example([{"Http_A": "".join(FRAGMENTS).translate({1: None, 10: None})}, {}, {"Http_A": "'"}])
    @example([{"CE_LINES": "x", "Http_Own": "x"}, {"Http_Own": "a\nb"}, {}])
    @example([{"CE_LINES": "x"}, {"CE_LINES": "a\nb"}, {"CE_LINES": "y"}, {}])
    def check(calls: list[dict[str, str]]) -> None:
        if not shells:
            shells.append(Shell(tmp_path / f"shell-{len(os.listdir(tmp_path))}", SHELLS[name], locale))
        try:
            for variables in calls:
                shells[0].check(variables)
        except BaseException:
            # The next example needs a shell without the fault of this one.
            shells.pop().close()
            raise

    try:
        check()
    finally:
        for shell in shells:
            shell.close()


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize("name", SHELLS)
def test_every_byte_arrives_beside_every_kind_of_neighbour_in_a_line_of_200_kb(
    name: str, locale: str, tmp_path: Path
) -> None:
    around = [b"", b"a", b"'", b"\\", b" ", b"\x01", b"\x81", b"\x88", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"$("]
    variables = {
        f"Http_{byte}_{index}_{times}": text(neighbour + bytes([byte]) * times + neighbour)
        for byte in range(1, 256)
        if byte != ord("\n")
        for index, neighbour in enumerate(around)
        for times in (1, 2)
    }
    variables["Http_Long"] = "'x\\" * 33_000
    with shell_at(tmp_path / "shell", name, locale) as shell:
        left_out = shell.check(variables)
        assert shell.check({}) == []
    assert left_out == [name for name, value in variables.items() if "\x01" in value and not value.isascii()]


@pytest.mark.parametrize("value", ["", "zz", "-1", "4", "x[$(touch canary)]", ":"])
@pytest.mark.parametrize("name", SHELLS)
def test_a_name_that_the_shell_uses_itself_is_left_out(name: str, value: str, tmp_path: Path) -> None:
    with shell_at(tmp_path / "shell", name) as shell:
        for used in HOSTILE_NAMES:
            assert shell.check({used: value, "Http_A": value}) == [used]
        assert shell.check({}) == []


def test_every_variable_that_bash_has_at_its_start_is_left_out_unless_programs_use_it_too() -> None:
    run = subprocess.run(["bash", "-c", "compgen -v"], env={}, capture_output=True, text=True, check=True, timeout=60)
    for_programs = {"HOSTNAME", "HOSTTYPE", "MACHTYPE", "OSTYPE", "PATH", "SHELL", "TERM"}
    found = set(run.stdout.split())
    assert {"RANDOM", "IFS"} < found
    _, left_out = ShellLine().line(dict.fromkeys(found, "x"), {})
    assert set(left_out) == found - for_programs


@pytest.mark.parametrize("name", SHELLS)
def test_a_variable_of_the_last_call_is_removed_or_has_the_value_of_the_worker_again(name: str, tmp_path: Path) -> None:
    with shell_at(tmp_path / "shell", name) as shell:
        shell.check({"Http_A": "1", "Http_B": "2", "Http_Own": "3", "CE_OWN": "4"})
        environment, left_out = shell.call({"Http_B": "5"})
    assert left_out == []
    assert "Http_A" not in environment
    assert (environment["Http_B"], environment["Http_Own"], environment["CE_OWN"]) == ("5", OWN["Http_Own"], "")


@pytest.mark.parametrize("name", SHELLS)
def test_a_variable_whose_own_value_has_a_newline_is_removed_and_reported(name: str, tmp_path: Path) -> None:
    with shell_at(tmp_path / "shell", name) as shell:
        shell.check({"CE_LINES": "of a call"})
        environment, left_out = shell.call({})
    assert left_out == ["CE_LINES"]
    assert "CE_LINES" not in environment


@pytest.mark.parametrize("name", SHELLS)
def test_a_value_with_a_newline_is_left_out_and_that_of_the_last_call_is_removed(name: str, tmp_path: Path) -> None:
    with shell_at(tmp_path / "shell", name) as shell:
        shell.check({"Http_A": "of another caller"})
        environment, left_out = shell.call({"Http_A": "a\nb", "Http_B": "kept"})
    assert left_out == ["Http_A"]
    assert "Http_A" not in environment
    assert environment["Http_B"] == "kept"


def test_the_line_is_as_documented() -> None:
    lines = ShellLine()
    assert lines.line({"CALL_ID": "1", "Http_Name": "it's"}, {}) == (b"CALL_ID='1' Http_Name='it'\\''s'\n", [])
    assert lines.line({"CALL_ID": "2"}, {}) == (b"CALL_ID='2'; unset -v Http_Name\n", [])
    assert lines.line({"CALL_ID": "3", "Http_Nul": "a\0b", "a-b": "", "X": "\n"}, {}) == (
        b"CALL_ID='3'\n",
        ["Http_Nul", "a-b", "X"],
    )


@pytest.mark.parametrize("name", SHELLS)
def test_a_call_without_variables_prints_nothing(name: str, tmp_path: Path) -> None:
    """``export`` without a name would print the environment, and what a script prints may be its answer."""
    with shell_at(tmp_path / "shell", name) as shell:
        assert shell.check({}) == []
        assert shell.check({"UID": "0"}) == ["UID"]


# ---- these tests can fail ----


def test_without_the_quotes_a_command_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_line, "_quoted", lambda value: f"'{value}'")
    with shell_at(tmp_path / "shell", "dash") as shell, pytest.raises(AssertionError, match="something was executed"):
        shell.check({"Http_A": "'; touch canary; : '"})


def test_without_the_list_of_names_bash_would_run_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_line, "_USED_BY_SHELLS", frozenset())
    with shell_at(tmp_path / "shell", "bash") as shell, pytest.raises(AssertionError, match="something was executed"):
        shell.check({"RANDOM": "x[$(touch canary)]"})


def test_without_the_check_of_names_a_command_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_line, "_can_carry", lambda name, value: True)
    with shell_at(tmp_path / "shell", "dash") as shell, pytest.raises(AssertionError, match="something was executed"):
        shell.check({"Http_A;touch canary;B": ""})
