"""Scripts that an editor saved with a byte order mark, or as UTF-16."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
from running_server import RunningServer, StartServer, problem

from watchdog.process.byte_order_mark import MARK_HINT, refuse_utf16

TEXT = "#!/bin/bash\necho ran\n"
MARKED = TEXT.encode("utf-8-sig")
PYTHON = "#!/usr/bin/env python3\nprint('ran')\n".encode("utf-8-sig")
UTF16 = {
    "with a mark": TEXT.encode("utf-16"),
    "big-endian": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "without a mark": TEXT.encode("utf-16-le"),
    "big-endian without a mark": TEXT.encode("utf-16-be"),
}
SOURCES = pytest.mark.parametrize("source", ["file", "SCRIPT"])
IN_UTF16 = pytest.mark.parametrize("script", UTF16.values(), ids=UTF16)


def started(start_server: StartServer, script: bytes, source: str) -> RunningServer:
    if source == "SCRIPT":
        return start_server(None, SCRIPT=base64.b64encode(script).decode())
    server = start_server("true")
    server.script.write_bytes(script)
    return server


def checked(tmp_path: Path, script: bytes, source: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "script.sh"
    path.write_bytes(script)
    environ = {"PATH": os.environ["PATH"], "WATCHDOG_SCRIPT_PATH": str(path)}
    if source == "SCRIPT":
        environ["SCRIPT"] = base64.b64encode(script).decode()
    command = [sys.executable, "-m", "watchdog", "check"]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=40)


@pytest.mark.guard("script-byte-order-mark")
@SOURCES
@pytest.mark.parametrize("script", [PYTHON, MARKED.replace(b"ran", b"r${BASH:+a}n")], ids=["Python", "bash"])
def test_a_marked_script_runs_by_its_own_interpreter(start_server: StartServer, script: bytes, source: str) -> None:
    server = started(start_server, script, source)
    for _ in range(2):
        answer = server.call(b"")
        assert (answer.status, answer.body) == (200, b"ran\n")
        assert answer.headers["X-Warning"] == "byte-order-mark"


def test_a_script_that_lost_its_mark_is_not_warned_of(start_server: StartServer) -> None:
    server = started(start_server, MARKED, "file")
    assert server.call(b"").headers["X-Warning"] == "byte-order-mark"
    server.script.write_text(TEXT)
    answer = server.call(b"")
    assert (answer.body, answer.headers["X-Warning"]) == (b"ran\n", None)


@SOURCES
def test_a_failure_of_a_marked_script_has_the_hint(start_server: StartServer, source: str) -> None:
    server = started(start_server, "#!/bin/sh -e\necho ran\n".encode("utf-8-sig"), source)
    assert "begins with a byte order mark" in str(problem(server.call(b""), 500)["detail"])


def test_a_byte_order_mark_is_in_the_log_before_the_first_call(start_server: StartServer) -> None:
    server = start_server(None, SCRIPT=base64.b64encode(MARKED).decode())
    assert "begins with a byte order mark" in server.event("the script may not work as intended")["reason"]


@SOURCES
def test_check_warns_of_a_byte_order_mark(tmp_path: Path, source: str) -> None:
    done = checked(tmp_path, MARKED, source)
    assert done.returncode == 0
    assert "begins with a byte order mark" in done.stdout.partition("warnings:")[2]


@pytest.mark.guard("script-utf16")
@IN_UTF16
def test_a_script_in_utf_16_is_500_that_says_so(start_server: StartServer, script: bytes) -> None:
    server = started(start_server, script, "file")
    detail = str(problem(server.call(b""), 500)["detail"])
    assert "UTF-16" in detail
    assert str(server.script) in detail
    assert "UTF-16" in server.call(None, "/_/ready", "GET").body.decode()
    server.script.write_text(TEXT)
    assert server.call(b"").body == b"ran\n"


def test_script_of_the_environment_in_utf_16(start_server: StartServer) -> None:
    server = started(start_server, UTF16["with a mark"], "SCRIPT")
    assert "save it as UTF-8 without BOM" in server.event("not ready")["reason"]
    assert "save it as UTF-8 without BOM" in str(problem(server.call(b""), 500)["detail"])


@IN_UTF16
@SOURCES
def test_check_refuses_utf_16(tmp_path: Path, script: bytes, source: str) -> None:
    done = checked(tmp_path, script, source)
    assert done.returncode == 2
    assert "UTF-16" in done.stdout.partition("problems:")[2]


@pytest.mark.parametrize(
    "start", [b"", b"#", b"#!/bin/sh", b"echo", "é".encode(), b"\xef\xbb", b"\xff\xd8\xff\xe0", b"\0\0", MARKED]
)
def test_other_beginnings_are_not_refused(start: bytes) -> None:
    refuse_utf16(start, "script.sh")


def test_the_advice_works(tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_bytes(MARKED)
    command = MARK_HINT.partition("remove the mark: ")[2].replace("FILE", str(script))
    subprocess.run(["sh", "-c", command], check=True)
    assert script.read_text() == TEXT
