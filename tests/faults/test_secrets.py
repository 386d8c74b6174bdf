"""Secrets stay in the server. No log, error, ``check`` or argument contains them, and no script can read them."""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from running_server import RunningServer, StartServer, problem, read_all, read_answer

from watchdog.http import request as request_module

TOKEN = "t0ken-that-nobody-may-see"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
# Docker gives none of these capabilities to a container. A process without privileges has none of them, either.
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


def test_a_script_cannot_find_the_token_of_a_file(start_server: StartServer, tmp_path: Path) -> None:
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
def test_no_log_error_or_check_contains_the_token(start_server: StartServer) -> None:
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
    """Return the output of ``watchdog check``."""
    environ = {"PATH": os.environ["PATH"], "WATCHDOG_SCRIPT_PATH": str(server.script), **environ}
    command = [*server.command_without_serve, "check"]
    done = subprocess.run(command, env=environ, capture_output=True, cwd=Path(__file__).parents[2])
    assert done.returncode in (0, 2), done.stderr
    return done.stdout + done.stderr


def test_a_token_on_the_command_line_is_refused() -> None:
    """Every process could read it there. And argparse must not read it as an abbreviation of --auth-token-file."""
    for flag in ("--auth-token", "--auth-tok"):
        done = subprocess.run([sys.executable, "-m", "watchdog", "serve", flag, TOKEN], capture_output=True, text=True)
        assert done.returncode == 2
        assert TOKEN not in done.stderr
    assert "WATCHDOG_AUTH_TOKEN" in done.stderr or "ambiguous" in done.stderr


def test_the_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server always uses the function for this purpose, also if the lengths differ."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, wanted: bytes) -> bool:
        compared.append((given, wanted))
        return compare_digest(given, wanted)

    compare_digest = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)
    for given in ("", "x", TOKEN[:-1] + "x", TOKEN, TOKEN + "x", "\u20ac"):
        assert request_module.is_token(f"Bearer {given}", TOKEN) is (given == TOKEN)
    assert len(compared) == 6
    assert not request_module.is_token(f"Basic {TOKEN}", TOKEN)
    assert not request_module.is_token(TOKEN, TOKEN)


@pytest.mark.guard("wrong-token-rate")
def test_wrong_tokens_are_answered_at_a_limited_rate(start_server: StartServer) -> None:
    server = start_server("echo in", WATCHDOG_AUTH_TOKEN=TOKEN)
    request = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n%b\r\n"
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(server.connect()) for _ in range(300)]
        for sock in socks:
            sock.sendall(request % b"Authorization: Bearer wrong\r\n")
        # Calls with the right token, and calls without a token, are answered meanwhile.
        assert server.call(b"", headers=BEARER).body == b"in\n"
        problem(server.call(b""), 401)
        statuses = Counter(read_all(sock).split()[1] for sock in socks)
    assert statuses.keys() == {b"401", b"429"}
    assert statuses[b"401"] >= 20
    server.stop()
    refusals = [event["status"] for event in server.logs if event["event"] == "call refused"]
    assert refusals == [401] * (statuses[b"401"] + 1)


def test_too_many_wrong_tokens_close_the_connection(start_server: StartServer) -> None:
    server = start_server("echo in", WATCHDOG_AUTH_TOKEN=TOKEN)
    wrong = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nAuthorization: Bearer wrong\r\n\r\n"
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(server.connect()) for _ in range(300)]
        for sock in socks:
            sock.sendall(wrong)
        answers = [read_answer(sock) for sock in socks]
        refused = [sock for sock, answer in zip(socks, answers, strict=True) if b" 429 " in answer.split(b"\r\n")[0]]
        assert refused
        assert [sock.recv(1) for sock in refused] == [b""] * len(refused)
    assert any(b"\r\nRetry-After: 2\r\n" in answer for answer in answers)


def test_metrics_and_description_need_the_token_if_asked(start_server: StartServer, free_port: int) -> None:
    for environ, status in (({}, 200), ({"WATCHDOG_AUTH_ALL": "true"}, 401)):
        server = start_server("true", WATCHDOG_AUTH_TOKEN=TOKEN, WATCHDOG_METRICS_PORT=str(free_port), **environ)
        for path, port in (("/_/openapi.json", server.port), ("/metrics", free_port)):
            for method in ("GET", "HEAD"):
                assert server.call(None, path, method, port=port).status == status
                assert server.call(None, path, method, BEARER, port=port).status == 200
        for path in ("/_/health", "/_/ready"):
            assert server.call(None, path, "GET").status == 200
        server.stop()
