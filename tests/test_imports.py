"""The modules that a plain server has imported when it listens. Each import makes every start slower.

At 0.2 CPU, which OSCAR gives a service by default, 1 ms of processor time at the start is 5 ms.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
# The libraries that serving needs. Their own imports are not counted, because these change with each release.
LIBRARIES = ["asyncio", "msgspec", "multidict", "pybase64", "httptools"]
# Further modules that the program itself imports: packages, and modules that are in no package.
ALLOWED = {
    "watchdog",
    # The standard library
    "__main__",
    "array",
    "bisect",
    "concurrent",
    "ctypes",
    "http",
    "mmap",
    "queue",
    "random",
    "resource",
    "shlex",
    "struct",
    "sysconfig",  # ctypes of Python 3.14 imports it
    "termios",
    "unicodedata",
    "zlib",
}
# Packages and modules that have been imported at the start, with their cost in ms, or that would be easy to import.
NEVER = {
    "aiohttp": 65,
    "argparse": 5,
    "attr": 5,
    "dataclasses": 1,
    "email": 8,
    "hashlib": 1,
    "hmac": 1,
    "hypothesis": 300,
    "multipart": 1,
    "opentelemetry": 100,
    "prometheus_client": 20,
    "rich": 25,
    "ssl": 5,
    "structlog": 11,
    "tempfile": 2,
    "urllib": 2,
    "watchdog.http.openapi": 2,
    "watchdog.input.multipart": 1,
    "watchdog.storage.event": 1,
    "watchdog.storage.s3": 70,
    "yaml": 12,
    "yarl": 4,
}
# Runs the server, and ends it at the event `listening`.
CODE = """
import gc, json, os, signal, sys
before = set(sys.modules)
from watchdog.logs import sink
def put_own(self, data):
    if b'"listening"' in data:
        print(json.dumps([[name for name in sys.modules if name not in before], gc.isenabled()]), flush=True)
        os._exit(0)
sink.LogWriter.put_own = put_own
sys.argv[1:] = ["serve", "--port", "0"]
from watchdog.__main__ import main
main()
"""


def at_listening(tmp_path: Path, **variables: str) -> tuple[set[str], bool]:
    """The imported modules, and whether the garbage collector runs."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "script.sh").write_text("cat\n")
    modules, collects = run(
        CODE,
        TMPDIR=str(tmp_path / "tmp"),
        WATCHDOG_BIND="127.0.0.1",
        WATCHDOG_METRICS_PORT="0",
        WATCHDOG_LOG_FORMAT="json",
        WATCHDOG_SCRIPT_PATH=str(tmp_path / "script.sh"),
        **variables,
    )
    return set(modules), collects


def run(code: str, **variables: str) -> Any:
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def of_libraries() -> set[str]:
    """The modules that the libraries import themselves, on this Python."""
    lines = ["import json, sys", "sys.modules['ssl'] = None", "import asyncio", "del sys.modules['ssl']"]
    lines += [f"import {name}" for name in LIBRARIES]
    return set(run("\n".join([*lines, "print(json.dumps(list(sys.modules)))"])))


def roots(modules: set[str]) -> set[str]:
    return {name.split(".")[0] for name in modules}


def test_a_plain_server_imports_only_what_serving_needs(tmp_path: Path) -> None:
    imported, collects = at_listening(tmp_path)
    assert collects, "the garbage collector does not run, so the memory of the server would grow"
    unavoidable = of_libraries()
    new = {name for name in imported - unavoidable if not name.split(".")[0].startswith("_")}
    more = sorted(roots(new) - ALLOWED - roots(set(LIBRARIES)))
    assert more == [], (
        f"the start now imports {', '.join(more)}. If an ordinary call does not need it, import it in the "
        "function that needs it. `python -X importtime -m watchdog serve` shows which module imports it, and the "
        "time. If serving needs it, add it to ALLOWED"
    )
    never = {name: NEVER[name] for name in NEVER.keys() & (imported - unavoidable)}
    assert never == {}, "an earlier change moved these imports out of the start; the numbers are their cost in ms"


@pytest.mark.parametrize("has_output", [False, True])
def test_the_client_of_a_storage_is_imported_at_the_start_if_the_service_uses_it(
    tmp_path: Path, has_output: bool
) -> None:
    definition = {
        "name": "plants",
        "storage_providers": {"s3": {"a": {"access_key": "a", "secret_key": "b", "region": "eu-west-1"}}},
        "output": [{"storage_provider": "s3.a", "path": "bucket/out"}] if has_output else [],
    }
    path = tmp_path / "service.json"
    path.write_text(json.dumps(definition))
    imported, _ = at_listening(tmp_path, WATCHDOG_SERVICE_DEFINITION=str(path))
    assert "ssl" in imported, "the connection to the storage could not use TLS"
    assert ("watchdog.storage.s3" in imported) is has_output
