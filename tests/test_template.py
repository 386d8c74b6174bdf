"""A program that a template forks has the same surroundings as an executed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import template as template_module
from running_server import StartServer
from template import Template, can_fork

# The template has imported ctypes, and a newer libffi then keeps a file open. So this program imports ctypes, too.
LOOK = """
import ctypes, json, os, resource, signal, sys, threading
print(json.dumps({
    "name": __name__,
    "arguments": sys.argv,
    "path": sys.path,
    "environ": dict(os.environ),
    "directory": os.getcwd(),
    "descriptors": sorted(os.listdir("/proc/self/fd")),
    "signals": {number.name: str(signal.getsignal(number)) for number in signal.Signals},
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "limits": [resource.getrlimit(number) for number in range(16)],
    "threads": threading.active_count(),
    "group": os.getpgrp(),
    "session": os.getsid(0),
    "own modules": [name for name in sys.modules if name.partition(".")[0] in ("watchdog", "template", "guards")],
    "is_main": vars(sys.modules["__main__"]) is globals(),
    "stdin": os.read(0, 1).decode(),
}), file=sys.stderr)
sys.exit(3)
"""


@pytest.fixture
def template() -> Iterator[Template]:
    """Return a template with the current limits of the process of pytest, because other tests change them."""
    template = Template()
    yield template
    template.close()


@pytest.mark.parametrize("how", ["-c", "-m", "file"])
def test_a_forked_program_finds_what_an_executed_one_finds(template: Template, tmp_path: Path, how: str) -> None:
    (tmp_path / "look.py").write_text(LOOK)
    first = {"-c": ["-c", LOOK], "-m": ["-m", "look"], "file": [str(tmp_path / "look.py")]}[how]
    arguments = [*first, "serve", "--port", "0"]
    environ = {**os.environ, "WATCHDOG_SCRIPT_PATH": "/x", "TMPDIR": str(tmp_path)}
    executed = subprocess.run(
        [sys.executable, *arguments],
        env=environ,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    program = template.start(arguments, environ, tmp_path)
    with program.stderr:
        forked = program.stderr.read()
    assert json.loads(forked) == json.loads(executed.stderr)
    assert program.wait() == executed.returncode == 3


LIST_MODULES = """
import sys
specs = [getattr(module, "__spec__", None) for module in sys.modules.values()]
print(*[spec.name for spec in specs if spec], file=sys.stderr)
"""
STORAGES = {
    "name": "plants",
    "storage_providers": {
        "minio": {"default": {"endpoint": "https://127.0.0.1:1", "access_key": "a", "secret_key": "b"}}
    },
    "output": [{"storage_provider": "minio.default", "path": "bucket/out"}],
}


@pytest.mark.parametrize("imports", ["", template_module.PLAIN_SERVER, template_module.SERVER_WITH_STORAGES])
def test_a_template_imports_only_what_each_server_imports(
    template: Template, start_server: StartServer, tmp_path: Path, imports: str
) -> None:
    program = template.with_imports(imports).start(["-c", LIST_MODULES], os.environ, "/")
    with program.stderr:
        in_fork = set(program.stderr.read().decode().split())
    command = [sys.executable, "-c", LIST_MODULES]
    in_python = set(subprocess.run(command, capture_output=True, text=True, check=True).stderr.split())
    environ = {}
    if imports == template_module.SERVER_WITH_STORAGES:
        (tmp_path / "service.json").write_text(json.dumps(STORAGES))
        environ["WATCHDOG_SERVICE_DEFINITION"] = str(tmp_path / "service.json")
    server = start_server("", program=("-X", "importtime", "-m", "watchdog"), template=None, **environ)
    texts = [event["text"] for event in server.logs if event["event"] == "not json"]
    in_server = {text.rpartition("|")[2].strip() for text in texts if text.startswith("import time:")}
    assert {"httptools", "msgspec"} <= in_fork & in_server
    assert in_fork - in_python - in_server == set()
    assert ("watchdog.http.server" in in_fork) is bool(imports)
    assert ("ssl" in in_fork) is (imports == template_module.SERVER_WITH_STORAGES)


COMMANDS = {
    template_module.INVOKE: ["-m", "watchdog", "invoke", "http://127.0.0.1:1", "/dev/null"],
    template_module.JOB: [str(Path(sys.executable).parent / "supervisor")],
}


@pytest.mark.parametrize("imports", COMMANDS)
def test_a_template_imports_only_what_each_command_imports(template: Template, tmp_path: Path, imports: str) -> None:
    """In addition to the libraries of a server, which each template has."""
    (tmp_path / "service.json").write_text(json.dumps(STORAGES))
    environ = {**os.environ, "WATCHDOG_SERVICE_DEFINITION": str(tmp_path / "service.json")}
    assert template_module.imports_of(COMMANDS[imports], environ) == imports
    in_template, in_fork = (
        set(each.run(["-c", LIST_MODULES], os.environ, "/", b"", timeout_s=60).stderr.decode().split())
        for each in (template, template.with_imports(imports))
    )
    executed = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMANDS[imports]],
        input="{}",
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = executed.stderr.splitlines()
    in_command = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert {"aiohttp", "watchdog.cli"} <= in_fork & in_command
    assert in_fork - in_template - in_command == set()


def test_a_program_that_is_run_to_its_end_has_pipes(template: Template, tmp_path: Path) -> None:
    code = """
import ctypes, os, stat, sys
assert all(stat.S_ISFIFO(os.fstat(fd).st_mode) for fd in (0, 1, 2))
print(sorted(os.listdir("/proc/self/fd")))
sys.stdout.write(sys.stdin.read()[::-1])
sys.exit(os.getcwd())
"""
    executed = subprocess.run(
        [sys.executable, "-c", code], input=b"x" * 200_000 + b"y", cwd=tmp_path, capture_output=True, check=False
    )
    done = template.run(["-c", code], os.environ, tmp_path, b"x" * 200_000 + b"y", timeout_s=60)
    assert (done.returncode, done.stdout, done.stderr) == (1, executed.stdout, executed.stderr)
    assert done.stdout.endswith(b"\nyx" + b"x" * 199_999)
    assert done.stderr == f"{tmp_path}\n".encode()


def test_a_program_that_reads_no_input_is_run_to_its_end(template: Template) -> None:
    done = template.run(["-c", "print('out')"], os.environ, "/", bytes(1 << 20), timeout_s=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"out\n", b"")


def test_a_program_that_does_not_end_in_time_is_killed(template: Template) -> None:
    code = "import os, signal; os.write(1, str(os.getpid()).encode()); signal.pause()"
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        template.run(["-c", code], os.environ, "/", b"", timeout_s=1)
    assert raised.value.output == b"" or not Path(f"/proc/{raised.value.output.decode()}").exists()


@pytest.mark.parametrize("variable", ["WATCHDOG_SERVICE_DEFINITION", "FUNCTION_CONFIG"])
def test_a_server_with_a_service_definition_has_imported_ssl_before_asyncio(variable: str) -> None:
    server = ["-m", "watchdog", "serve", "--port", "0"]
    assert template_module.imports_of(server, {variable: "x"}) == template_module.SERVER_WITH_STORAGES
    assert template_module.imports_of(server, {variable: ""}) == template_module.PLAIN_SERVER
    assert template_module.imports_of(["/tests/guards.py", "drain", "serve"], {}) == template_module.PLAIN_SERVER
    assert template_module.imports_of(["-c", "import watchdog", "serve"], {}) == ""


def test_the_end_by_a_signal_is_seen(template: Template) -> None:
    program = template.start(["-c", "import signal; signal.pause()"], os.environ, "/")
    assert program.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(timeout=0.01)
    program.kill()
    assert program.wait(timeout=60) == program.poll() == -signal.SIGKILL
    program.send_signal(signal.SIGTERM)
    program.stderr.close()


def test_several_threads_see_the_end_of_a_program(template: Template) -> None:
    program = template.start(["-c", "import os; os.read(0, 1)"], os.environ, "/")
    with program.stderr, ThreadPoolExecutor(8) as pool:
        assert {call.result() for call in [pool.submit(program.wait, 60) for _ in range(8)]} == {0}


def test_an_error_of_the_program_is_printed_and_its_exit_code_is_one(template: Template) -> None:
    program = template.start(["-c", "raise ValueError('wrong')"], os.environ, "/")
    with program.stderr:
        assert program.stderr.read().endswith(b"ValueError: wrong\n")
    assert program.wait() == 1


def test_what_is_read_when_a_program_starts_is_not_changed_in_a_fork() -> None:
    assert can_fork({**os.environ, "WATCHDOG_BIND": "::1"})
    for name in ("PYTHONMALLOC", "LD_PRELOAD", "TZ", "SSL_CERT_FILE", "COVERAGE_PROCESS_CONFIG"):
        assert not can_fork({**os.environ, name: "x"})
