"""A server that a test discards leaves no process behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from lifeline import Lifeline
from running_server import RunningServer, StartServer, is_guardian, until

from watchdog.system import proc


def test_a_server_that_is_discarded_takes_its_guardian_along(start_server: StartServer) -> None:
    server = start_server("")
    assert server.call().status == 200
    pid = server.process.pid
    [guardian] = [each.pid for each in proc.processes() if each.parent == pid and is_guardian(each.pid, pid)]
    with server._lone_guardian():
        pass  # it has been found, so it is ended at once
    server.discard()
    until(lambda: not is_alive(guardian), "the guardian to end")


def test_what_a_script_left_ends_with_a_server_that_is_discarded(
    start_server: StartServer, lifeline: Lifeline, tmp_path: Path
) -> None:
    server = start_server(f"{lifeline.script_line}setsid sleep 600 & touch {tmp_path}/up; sleep 600")
    with server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        until((tmp_path / "up").exists, "the script to run")
        assert lifeline.is_held()
        server.discard()
    until(lambda: not lifeline.is_held(), "the processes of the script to end")


def test_a_server_that_does_not_start_in_time_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stall(server: RunningServer) -> None:
        until((tmp_path / "pid").read_text, "the program to run")
        raise AssertionError("the server does not listen")

    (tmp_path / "pid").touch()
    monkeypatch.setattr(RunningServer, "_wait_until_it_listens", stall)
    program = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    with pytest.raises(AssertionError, match="does not listen"):
        RunningServer(tmp_path, None, program=("-c", program), has_logs=False)
    assert not is_alive(int((tmp_path / "pid").read_text()))


def is_alive(pid: int) -> bool:
    process = proc.process(pid)
    return process is not None and process.is_alive
