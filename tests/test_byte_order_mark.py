"""Scripts that an editor saved with a byte order mark, or as UTF-16."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
from running_server import StartServer, problem

from watchdog.byte_order_mark import refuse_byte_order_mark
from watchdog.errors import ScriptUnavailable

TEXT = "#!/bin/bash\necho ran\n"
MARKED = TEXT.encode("utf-8-sig")
CASES = {
    "UTF-8": (MARKED, "byte order mark"),
    "UTF-8 without #!": ("echo ran\n".encode("utf-8-sig"), "byte order mark"),
    "UTF-16": (TEXT.encode("utf-16"), "UTF-16"),
    "UTF-16 big-endian": (b"\xfe\xff" + TEXT.encode("utf-16-be"), "UTF-16"),
    "UTF-16 without a mark": (TEXT.encode("utf-16-le"), "UTF-16"),
    "UTF-16 big-endian without a mark": (TEXT.encode("utf-16-be"), "UTF-16"),
}
CASE = pytest.mark.parametrize(("script", "part"), CASES.values(), ids=CASES)


@pytest.mark.guard("script-byte-order-mark")
@CASE
def test_a_script_with_a_byte_order_mark_is_500_that_says_so(
    start_server: StartServer, script: bytes, part: str
) -> None:
    server = start_server("#!/bin/sh\necho ran")
    server.script.write_bytes(script)
    detail = str(problem(server.call(b""), 500)["detail"])
    assert part in detail
    assert str(server.script) in detail
    assert part in server.call(None, "/_/ready", "GET").body.decode()
    server.script.write_text(TEXT)
    assert server.call(b"").body == b"ran\n"


@pytest.mark.parametrize("script", [MARKED, TEXT.encode("utf-16")], ids=["UTF-8", "UTF-16"])
def test_script_of_the_environment_with_a_byte_order_mark(start_server: StartServer, script: bytes) -> None:
    server = start_server(None, SCRIPT=base64.b64encode(script).decode())
    assert "save it as UTF-8 without BOM" in server.event("not ready")["reason"]
    assert "save it as UTF-8 without BOM" in str(problem(server.call(b""), 500)["detail"])


@CASE
@pytest.mark.parametrize("source", ["file", "SCRIPT"])
def test_check_finds_a_byte_order_mark(tmp_path: Path, script: bytes, part: str, source: str) -> None:
    path = tmp_path / "script.sh"
    path.write_bytes(script)
    environ = {"PATH": os.environ["PATH"], "WATCHDOG_SCRIPT_PATH": str(path)}
    if source == "SCRIPT":
        environ["SCRIPT"] = base64.b64encode(script).decode()
    command = [sys.executable, "-m", "watchdog", "check"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=40)
    assert done.returncode == 2
    assert part in done.stdout.partition("problems:")[2]


@pytest.mark.parametrize(
    "start", [b"", b"#", b"#!/bin/sh", b"echo", "é".encode(), b"\xef\xbb", b"\xff\xd8\xff\xe0", b"\0\0"]
)
def test_other_beginnings_are_not_refused(start: bytes) -> None:
    refuse_byte_order_mark(start, "script.sh")


def test_the_advice_works(tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_bytes(MARKED)
    with pytest.raises(ScriptUnavailable) as caught:
        refuse_byte_order_mark(MARKED, "script.sh")
    command = str(caught.value).partition("remove the mark: ")[2].replace("FILE", str(script))
    subprocess.run(["sh", "-c", command], check=True)
    assert script.read_text() == TEXT
