"""`watchdog invoke` through replacements for OSCAR's manager, OpenFaaS's gateway and Knative's queue-proxy."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_command import clean_environment, command, files_in, invoke, stderr_of
from gateway import Gateway
from queue_proxy import QueueProxy
from running_server import StartServer, until
from test_oscar import NAME, TOKEN, Service

SCRIPT = """
case ${INPUT_FILE_PATH##*/} in
fail*) echo "no picture" >&2; exit 3 ;;
two*) echo second > "$TMP_OUTPUT_DIR/b.txt" ;;
esac
cat "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/grün.bin"
"""
CONTENT = os.urandom(1_500_001)
Call = tuple[str, list[object]]


@pytest.fixture(params=["oscar", "openfaas", "knative"])
def call(request: pytest.FixtureRequest, start_server: StartServer, tmp_path: Path) -> Iterator[Call]:
    """Return the URL and the flags for the service behind one of the platforms."""
    with contextlib.ExitStack() as stack:
        if request.param == "oscar":
            service = stack.enter_context(Service(tmp_path / "pod", SCRIPT))
            (tmp_path / "token").write_text(TOKEN)
            yield f"{service.manager.url}/run/{NAME}", ["--token-file", tmp_path / "token"]
        elif request.param == "openfaas":
            gateway = stack.enter_context(Gateway(start_server(SCRIPT).port))
            yield f"http://127.0.0.1:{gateway.port}/function/fn", []
        else:
            proxy = stack.enter_context(QueueProxy(start_server(SCRIPT).port))
            yield f"http://127.0.0.1:{proxy.port}", []


def test_files_names_and_verdicts_pass_each_platform(call: Call, tmp_path: Path) -> None:
    url, flags = call
    work = tmp_path / "work"
    work.mkdir()
    for name in ("one", "two", "fail"):
        (work / name).write_bytes(CONTENT)
    for more in ([], ["--live"]):
        directory = f"out{len(more)}"
        done = invoke(url, "one", "two", "fail", "-o", directory, *flags, *more, cwd=work)
        assert done.returncode == 1, stderr_of(done)
        assert files_in(work / directory) == {
            "one/grün.bin": CONTENT,
            "two/grün.bin": CONTENT,
            "two/b.txt": b"second\n",
        }
        assert "fail: Script failed: the script ended with exit code 3: no picture" in stderr_of(done)
        assert "2 ok, 1 failed" in stderr_of(done)


@pytest.mark.parametrize("name", ["openfaas", "knative"])
def test_a_cancelled_call_is_cancelled_behind_each_platform(
    start_server: StartServer, tmp_path: Path, name: str
) -> None:
    server = start_server("echo began; sleep 1000")
    with (Gateway if name == "openfaas" else QueueProxy)(server.port) as platform:
        url = f"http://127.0.0.1:{platform.port}/function/fn"
        with subprocess.Popen(command(url, "/dev/null"), cwd=tmp_path, env=clean_environment()) as running:
            server.event("began")
            running.terminate()
            assert running.wait(timeout=60) == 143
        assert server.event("invocation ended")["outcome"] == "caller_gone"
        until(lambda: not server.leftovers_of_calls(), "the files of the call to be removed")
