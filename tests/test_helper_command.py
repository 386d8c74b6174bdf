"""`watchdog helper`, and how scripts and packages get the helpers of warm functions."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from warm_worker import HELPERS

ROOT = Path(__file__).parent.parent
NAMES = {"python": "watchdog_warm.py", "sh": "watchdog_warm.sh"}


def watchdog(*words: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WATCHDOG_")}
    command = [sys.executable, "-m", "watchdog", *words]
    return subprocess.run(command, env=clean | environ, cwd=ROOT, capture_output=True, check=False, timeout=60)


@pytest.mark.parametrize("name", NAMES)
def test_helper_prints_the_file_even_without_a_valid_configuration(name: str) -> None:
    done = watchdog("helper", name, WATCHDOG_PORT="nonsense")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == (HELPERS / NAMES[name]).read_bytes()


def test_helper_without_a_name_lists_commands_that_work(tmp_path: Path) -> None:
    done = watchdog("helper")
    assert (done.returncode, done.stderr) == (0, b"")
    program = f"watchdog() {{ '{sys.executable}' -m watchdog \"$@\"; }}\n"
    (tmp_path / "save").write_bytes(program.encode() + done.stdout)
    subprocess.run(["sh", "-e", "save"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=True, timeout=60)
    for file in NAMES.values():
        assert (tmp_path / file).read_bytes() == (HELPERS / file).read_bytes()


@pytest.mark.parametrize(("typo", "nearest"), [("pyhton", "python"), ("Python3", "python"), ("bash", "sh")])
def test_an_unknown_helper_is_an_error_with_the_nearest_name(typo: str, nearest: str) -> None:
    done = watchdog("helper", typo)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == (
        f"there is no helper {typo!r}; the nearest name is {nearest}; the helpers are python and sh\n"
    )


@pytest.mark.parametrize("words", [["python", "sh"], ["--port", "1"], ["python", "--port=1"]])
def test_helper_takes_one_name_and_no_settings(words: list[str]) -> None:
    done = watchdog("helper", *words)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"usage: watchdog" in done.stderr


def test_a_script_gets_the_path_of_the_python_helper(tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text('#!/bin/sh\nprintf %s "$WATCHDOG_WARM_PY"\n')
    done = watchdog("run", "/dev/null", "--script-path", str(script))
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == str(HELPERS / "watchdog_warm.py")


def test_an_image_or_a_service_may_name_a_helper_of_its_own(tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text('#!/bin/sh\nprintf %s "$WATCHDOG_WARM_PY"\n')
    words = ["run", "/dev/null", "--script-path", str(script)]
    done = watchdog(*words, WATCHDOG_WARM_PY="/image/helper.py")
    assert (done.returncode, done.stdout) == (0, b"/image/helper.py")
    assert b"not known" not in done.stderr
    definition = tmp_path / "function_config.yaml"
    definition.write_text("name: x\nenvironment:\n  variables:\n    WATCHDOG_WARM_PY: /service/helper.py\n")
    done = watchdog(*words, WATCHDOG_SERVICE_DEFINITION=str(definition))
    assert (done.returncode, done.stdout) == (0, b"/service/helper.py"), done.stderr
    assert b"not known" not in done.stderr


def test_the_folder_of_the_helper_can_be_put_on_pythonpath() -> None:
    """A program that imports json must not get a module of this folder."""
    assert {path.name for path in HELPERS.iterdir()} - {"__pycache__"} == set(NAMES.values())


def test_wheel_and_sdist_have_the_helpers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=100, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    (sdist,) = tmp_path.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive, tarfile.open(sdist) as tar:
        top = sdist.name.removesuffix(".tar.gz")
        for file in NAMES.values():
            content = (HELPERS / file).read_bytes()
            assert archive.read(f"watchdog/warm/helper/{file}") == content
            member = tar.extractfile(f"{top}/watchdog/warm/helper/{file}")
            assert member is not None
            assert member.read() == content
