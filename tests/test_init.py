"""`watchdog init`: the files that it writes work as their README says, and no file is ever overwritten."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_server import RunningServer, free_port

from watchdog.commands import init as init_module

ROOT = Path(__file__).parent.parent
FILES = {"script.sh", "function_config.yaml", "Dockerfile", "README.md"}
PATIENCE_S = RunningServer.patience_s


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tmp").mkdir()
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TMPDIR": str(tmp_path / "tmp"),
        "WATCHDOG_LOG_FORMAT": "json",
        "WATCHDOG_BIND": "127.0.0.1",
        "WATCHDOG_METRICS_PORT": "0",
        "no_proxy": "127.0.0.1",
    }


@pytest.fixture
def function(tmp_path: Path, environ: dict[str, str]) -> Path:
    """The directory that `watchdog init` has made."""
    done = watchdog(environ, tmp_path, "init", "my-function")
    assert done.returncode == 0, done.stderr
    return tmp_path / "my-function"


def watchdog(environ: dict[str, str], cwd: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "watchdog", *words]
    environ = environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environ, cwd=cwd, text=True, capture_output=True, timeout=60, **options)


def commands_of_readme(function: Path) -> list[str]:
    return re.findall(r"^\$ (.*)$", (function / "README.md").read_text(), re.MULTILINE)


def test_the_files_are_listed_and_the_script_is_executable(tmp_path: Path, environ: dict[str, str]) -> None:
    done = watchdog(environ, tmp_path, "init", "new/function")
    assert done.returncode == 0, done.stderr
    function = tmp_path / "new" / "function"
    assert {path.name for path in function.iterdir()} == FILES
    assert re.findall(r"^wrote (.*)$", done.stdout, re.MULTILINE) == [
        f"new/function/{name}" for name in init_module._MODES
    ]
    assert os.access(function / "script.sh", os.X_OK)
    assert not (function / "README.md").stat().st_mode & 0o111
    assert done.stdout.endswith("\nTry it: cd new/function && watchdog run README.md -o report.txt\n")


def test_existing_files_are_left_alone_and_missing_ones_are_written(function: Path, environ: dict[str, str]) -> None:
    (function / "script.sh").write_text("mine")
    (function / "Dockerfile").unlink()
    (function / "Dockerfile").symlink_to("nowhere")
    (function / "README.md").unlink()
    done = watchdog(environ, function, "init")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^wrote (.*)$", done.stdout, re.MULTILINE) == ["README.md"]
    left = re.findall(r"^kept (.*), which exists already$", done.stdout, re.MULTILINE)
    assert left == ["script.sh", "function_config.yaml", "Dockerfile"]
    assert (function / "script.sh").read_text() == "mine"
    assert (function / "Dockerfile").is_symlink()
    assert not (function / "nowhere").exists()


@pytest.mark.guard("init-takes-back")
def test_if_one_file_cannot_be_written_none_is_left(
    tmp_path: Path, environ: dict[str, str], removed_guard: str | None
) -> None:
    function = tmp_path / "function"
    function.mkdir()
    (function / "script.sh").write_text("mine")
    removed = [] if removed_guard is None else [removed_guard]
    # Both files before the README are smaller than this.
    code = f"""
import resource, sys
sys.dont_write_bytecode = True  # the limit below would cut this, too
sys.path.insert(0, {str(ROOT / "tests")!r})
from guards import GUARDS
for name in {removed!r}: GUARDS[name]()
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
from watchdog.cli import main
sys.exit(main(["init", {str(function)!r}]))
"""
    environ = environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, text=True, capture_output=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == (
        f"{function}/README.md cannot be written: File too large; no file was written; choose another directory\n"
    )
    assert [path.name for path in function.iterdir()] == ["script.sh"]


def test_a_file_system_without_nameless_files_gets_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init_module, "link", lambda fd, path: False)
    assert init_module.init(str(tmp_path / "copied")) == 0
    for name in FILES:
        assert (tmp_path / "copied" / name).read_bytes() == (Path(init_module._TEMPLATES) / name).read_bytes()
    assert os.access(tmp_path / "copied" / "script.sh", os.X_OK)


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path, environ: dict[str, str]) -> None:
    (tmp_path / "file").touch()
    done = watchdog(environ, tmp_path, "init", "file")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("file cannot be written: File exists")


def test_check_accepts_the_definition_and_the_script(function: Path, environ: dict[str, str]) -> None:
    done = watchdog(environ, function, "check", "--service-definition", "function_config.yaml")
    assert done.returncode == 0, done.stdout
    assert "service definition: my-function" in done.stdout
    assert "script: script.sh" in done.stdout
    assert "warnings: none" in done.stdout


def test_the_script_works_on_a_picture_and_warns_about_an_empty_file(function: Path, environ: dict[str, str]) -> None:
    shutil.copy(ROOT / "examples" / "grayify" / "photo.jpg", function)
    done = watchdog(environ, function, "run", "photo.jpg")
    assert done.returncode == 0, done.stderr
    assert f"bytes:    {(function / 'photo.jpg').stat().st_size}\n" in done.stdout
    done = watchdog(environ, function, "run", "/dev/null")
    assert done.returncode == 0
    assert '"level":"warning","event":"WARNING: the file is empty"' in done.stderr


@pytest.fixture
def served(function: Path, environ: dict[str, str]) -> Iterator[tuple[str, Path]]:
    """The address of a server that the README's second command has started."""
    _, serve, _ = commands_of_readme(function)
    port = free_port()
    command = ["bash", "-c", f"exec {serve} --port {port}"]
    with subprocess.Popen(command, env=environ, cwd=function, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            for line in server.stderr:
                if json.loads(line)["event"] == "listening":
                    break
            else:
                raise AssertionError("the server ended before it listened")
            yield f"127.0.0.1:{port}", function
        finally:
            server.terminate()
            server.stderr.read()


def test_the_three_commands_of_the_readme_work(served: tuple[str, Path], environ: dict[str, str]) -> None:
    address, function = served
    run, _, call = commands_of_readme(function)
    subprocess.run(["bash", "-c", run], env=environ, cwd=function, check=True, capture_output=True, timeout=PATIENCE_S)
    report = (function / "report.txt").read_text()
    assert report.startswith("name:     README.md\n")
    call = call.replace("localhost:8080", address).replace("curl ", "curl --silent --show-error ")
    command = ["bash", "-euo", "pipefail", "-c", call]
    done = subprocess.run(
        command, env=environ, cwd=function, check=True, capture_output=True, text=True, timeout=PATIENCE_S
    )
    # The name of a body without a name is random. All other lines are the same.
    assert done.stdout.splitlines()[1:] == report.splitlines()[1:]
