"""The benchmark measures all that it says, checks answers, and names what is missing. No time is asserted."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running_server import until

ROOT = Path(__file__).parent.parent
MODULES = ("contenders", "growing_work", "load", "measuring", "report", "small_calls")
SMALL = ["one_caller", "base64_in", "base64_out", "peak_memory", "idle", "start", "output_files", "log_lines"]
ALL = [*SMALL, "eight_callers", "input_size", "callers", "endurance", "stall"]


def bench(tmp_path: Path, *flags: str) -> dict[str, Any]:
    """What the benchmark found in its smallest form; with its own diagnosis if it failed."""
    output, files = tmp_path / "results", tmp_path / "files"
    files.mkdir()
    places = ["--output", str(output), "--directory", str(files)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "bench.py"), "--scale", "least", *places, *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert list(files.iterdir()) == []
    until(lambda: not processes_in(files), "the end of all contenders")
    assert (output / "results.md").read_text() == done.stdout.removesuffix("\n")
    found: dict[str, Any] = json.loads((output / "results.json").read_text())
    return found


def processes_in(directory: Path) -> list[str]:
    """The names of those whose working directory is, or was, below it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
            if os.readlink(process / "cwd").startswith(f"{directory}/"):
                found.append((process / "comm").read_text())
    return found


def measured(found: dict[str, Any]) -> set[str]:
    return {
        row["measure"] for row in found["rows"] if "watchdog" in row["measured"] and not any(row["not_right"].values())
    }


def only(names: list[str]) -> list[str]:
    return [word for name in names for word in ("--only", name)]


# Slow, or they would take the cores from the tests that run beside them.
@pytest.mark.slow
def test_what_is_measured_is_told(tmp_path: Path) -> None:
    found = bench(tmp_path, *only(SMALL))
    assert measured(found) == set(SMALL)
    assert set(found["not_run"]) == set(ALL) - set(SMALL)
    assert found["machine"]["cores"] >= 1


@pytest.mark.slow
def test_another_checkout_takes_turns(tmp_path: Path) -> None:
    found = bench(tmp_path, "--only", "one_caller", "--against", str(ROOT), "--rounds", "2")
    values = {name: len(seen["values"]) for name, seen in found["rows"][0]["measured"].items()}
    assert values["watchdog"] == values["against"] == values["floor"] == 2


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The benchmark's modules, which are no package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return {name: importlib.import_module(name) for name in MODULES}


def test_a_missing_contender_is_named(tmp_path: Path, modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules["contenders"], "PATH", str(tmp_path))
    bench = modules["measuring"].Bench(modules["measuring"].LEAST, tmp_path)
    found = modules["small_calls"].one_caller(bench)
    verdicts = {row.against: modules["report"].verdict(row) for row in found.rows}
    assert verdicts["webhook"] == "not measured: webhook: the program webhook is not installed"
    assert verdicts["nginx+fcgiwrap"] == "not measured: nginx+fcgiwrap: the program nginx is not installed"
    assert set(found.rows[0].values) == {"floor", "watchdog"}
    assert modules["contenders"].versions()["webhook"] is None


@pytest.mark.parametrize("script", ["echo hi", "exit 1", 'echo hello world > "$TMP_OUTPUT_DIR/out"'])
def test_a_wrong_answer_is_counted(tmp_path: Path, modules: dict[str, Any], script: str) -> None:
    load = modules["load"]
    server = modules["contenders"].Watchdog(tmp_path / "server", script=script)
    try:
        caller = load.Caller(server)
        assert caller.calls(3).wrong == 3
        caller.close()
        seen = load.many(server, 2, 1)
        assert seen.wrong == seen.calls > 0
        content = load.Content(1000)
        assert load.at_once(server, 2, content) == 2
    finally:
        server.stop()


def test_a_wrong_answer_fails_the_row(modules: dict[str, Any]) -> None:
    row = modules["measuring"].Row("one_caller", "a call", "ms", {"watchdog": [1.0]}, 2.0, not_right={"watchdog": 1})
    assert modules["report"].verdict(row) == "failed: answers that were not right: watchdog 1"


def test_growth_that_is_not_linear_shows(modules: dict[str, Any]) -> None:
    def crookedness(*costs: float) -> float:
        growth = modules["measuring"].Growth(
            "x", "x", "x", "ms", [1, 10, 100], {"watchdog": [[cost] for cost in costs]}
        )
        return float(modules["growing_work"].crookedness(growth, "watchdog"))

    assert crookedness(2, 11, 101) == pytest.approx(1)
    assert crookedness(2, 30, 101) > 1.5  # a step
    assert crookedness(2, 100, 10_000) > 1.5  # quadratic


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(300)
def test_all_is_measured(tmp_path: Path) -> None:
    found = bench(tmp_path)
    assert measured(found) == set(ALL)
    assert found["not_run"] == []
