"""Commands that look like shell commands, but are started without a shell."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running_server import StartServer

from watchdog.settings.shell_syntax import advice_on_shell_syntax, unquoted_shell_syntax


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("sort | uniq -c", ["|"]),
        ("sort|uniq", ["|"]),
        ("a && b || c", ["&&", "||"]),
        ("a; b", [";"]),
        ("a > /tmp/x", [">"]),
        ("a >> /tmp/x", [">>"]),
        ("a 2>&1", [">"]),
        ("a < /tmp/x", ["<"]),
        ("a &", ["&"]),
        ("echo $HOME ${HOME} $(date) $1", ["$HOME", "${HOME}", "$(date)", "$1"]),
        ("echo `date`", ["`date`"]),
        ("ls *.py", ["*"]),
        ("~/bin/run", ["~"]),
        ("LANG=C sort", ["LANG="]),
        ("cat | cat | cat", ["|"]),
        ("sh -c cat | wc", ["|"]),
        ("echo 'a' | b", ["|"]),
        ('echo "a\\"" | b', ["|"]),
        # Syntax that is quoted, escaped, or has no meaning for a shell.
        ("sh -c 'sort | uniq -c'", []),
        ('sh -c "a && b > c; $X `y` *"', []),
        (r"echo \| \$HOME \*", []),
        ("awk '{print $1}'", []),
        ("curl http://127.0.0.1/?a=1&b=2", []),
        ("python3 -u index.py --level=3 a~b 50% $ #1 {x} [y] x@y", []),
        ("cat", []),
    ],
)
def test_unquoted_shell_syntax(command: str, found: list[str]) -> None:
    assert unquoted_shell_syntax(command) == found


@given(st.text(alphabet="ab |&;<>$`*~='\"\\\n(){}", max_size=40))
def test_the_command_that_is_shown_is_one_argument_of_sh(command: str) -> None:
    advice = advice_on_shell_syntax(command)
    if advice is not None:
        shown = advice.partition("write: ")[2].removesuffix("; else quote it")
        assert shlex.split(shown) == ["sh", "-c", command]


def check(fprocess: str) -> str:
    environ = {"PATH": os.environ["PATH"], "fprocess": fprocess}
    command = [sys.executable, "-m", "watchdog", "check"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=40)
    assert done.returncode == 0, done.stdout
    return done.stdout.partition("warnings:")[2]


def test_check_warns_of_shell_syntax() -> None:
    warnings = check("""sort -k 'a b' | uniq""")
    assert "environment fprocess has | outside quotes" in warnings
    assert """write: sh -c 'sort -k '"'"'a b'"'"' | uniq'""" in warnings
    assert "none" in check("sh -c 'sort | uniq'")


def test_the_log_at_the_start_warns_of_shell_syntax(start_server: StartServer) -> None:
    server = start_server(fprocess="cat | wc -c", WATCHDOG_LOG_LEVEL="INFO")
    server.stop()
    warnings = [event["event"] for event in server.logs if event["level"] == "warning"]
    assert len([warning for warning in warnings if "write: sh -c 'cat | wc -c'" in warning]) == 1


def test_the_command_that_is_shown_works(start_server: StartServer) -> None:
    advice = advice_on_shell_syntax("tr a b | tr b c")
    assert advice is not None
    shown = advice.partition("write: ")[2].removesuffix("; else quote it")
    assert start_server(fprocess=shown).call(b"aaa").body == b"ccc"
