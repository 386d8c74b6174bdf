"""Secrets stay with the server: not in logs, errors, ``check``, arguments, nor within reach of a script."""

from __future__ import annotations

import hmac
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from running_server import RunningServer, StartServer, problem

from watchdog import server as server_module

TOKEN = "t0ken-that-nobody-may-see"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
# What Docker leaves out of a container's capabilities, and what a process of no privileges has none of.
IN_DOCKER = ("setpriv", "--bounding-set=-sys_ptrace,-sys_admin,-perfmon", "--inh-caps=-all")
LOOK = """
env
echo = environment; tr '\\0' '\\n' < /proc/$PPID/environ
echo = arguments; tr '\\0' '\\n' < /proc/$PPID/cmdline
echo = memory; head -c 1 /proc/$PPID/mem
exit 0
"""


@pytest.mark.guard("hidden-memory", "secret-names")
def test_a_script_cannot_find_the_token(start_server: StartServer) -> None:
    server = start_server(LOOK, has_closed_memory=True, WATCHDOG_AUTH_TOKEN=TOKEN, prefix=IN_DOCKER)
    seen = server.call(b"", headers=BEARER).body
    assert b"= arguments" in seen
    assert TOKEN.encode() not in seen


def test_nor_where_it_comes_from_a_file(start_server: StartServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    server = start_server(LOOK, "--auth-token-file", str(tmp_path / "token"), has_closed_memory=True, prefix=IN_DOCKER)
    assert TOKEN.encode() not in server.call(b"", headers=BEARER).body
    problem(server.call(b""), 401)


@pytest.mark.guard("private-headers")
def test_credentials_of_the_caller_do_not_reach_the_script(start_server: StartServer) -> None:
    server = start_server("env")
    headers = {
        name: f"value-of-{name}" for name in ("Authorization", "Proxy-Authorization", "Cookie", "Proxy", "X-Mine")
    }
    seen = server.call(b"", headers=headers).body
    assert [name for name in headers if f"value-of-{name}".encode() in seen] == ["X-Mine"]


@pytest.mark.guard("masked-values")
def test_no_log_no_error_and_no_check_tells_the_token(start_server: StartServer) -> None:
    environ = {"WATCHDOG_AUTH_TOKEN": TOKEN, "WATCHDOG_LOG_LEVEL": "DEBUG"}
    server = start_server("env >&2; exit 3", **environ)
    told = b""
    for headers in (
        {},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        BEARER,
        BEARER | {"Accept": "@"},
    ):
        answer = server.call(b"QUJD!", headers=headers)
        told += answer.body + str(answer.headers).encode()
    server.stop()
    told += json.dumps(server.logs).encode()
    told += checked(server, **environ)
    told += checked(server, **environ, WATCHDOG_MAX_QUEUE="nonsense")
    told += checked(server, WATCHDOG_AUTH_TOKEN=f"{TOKEN} with spaces")
    assert b"auth_token" in told
    assert TOKEN.encode() not in told


def checked(server: RunningServer, **environ: str) -> bytes:
    """What ``watchdog check`` prints."""
    environ = {"PATH": os.environ["PATH"], "WATCHDOG_SCRIPT_PATH": str(server.script), **environ}
    command = [*server.command_without_serve, "check"]
    done = subprocess.run(command, env=environ, capture_output=True, cwd=Path(__file__).parents[2])
    assert done.returncode in (0, 2), done.stderr
    return done.stdout + done.stderr


def test_a_token_on_the_command_line_is_refused() -> None:
    """Every process could read it there; and argparse must not take it for short of --auth-token-file."""
    for flag in ("--auth-token", "--auth-tok"):
        done = subprocess.run([sys.executable, "-m", "watchdog", "serve", flag, TOKEN], capture_output=True, text=True)
        assert done.returncode == 2
        assert TOKEN not in done.stderr
    assert "WATCHDOG_AUTH_TOKEN" in done.stderr or "ambiguous" in done.stderr


def test_the_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the one function that is made for it, whatever the caller sends, also if the lengths differ."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, wanted: bytes) -> bool:
        compared.append((given, wanted))
        return hmac.compare_digest(given, wanted)

    monkeypatch.setattr(server_module, "compare_digest", compare)
    for given in ("", "x", TOKEN[:-1] + "x", TOKEN, TOKEN + "x", "\u20ac"):
        assert server_module._is_token(f"Bearer {given}", TOKEN) is (given == TOKEN)
    assert len(compared) == 6
    assert not server_module._is_token(f"Basic {TOKEN}", TOKEN)
    assert not server_module._is_token(TOKEN, TOKEN)
