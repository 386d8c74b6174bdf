"""The benchmark makes all its measures, checks answers, and names missing programs. No time is asserted."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from running_server import until

ROOT = Path(__file__).parent.parent
TOP = Path("/sys/fs/cgroup")
MODULES = (
    "contenders",
    "control_group",
    "counts",
    "growing_work",
    "image_tree",
    "installations",
    "limited_cpu",
    "load",
    "measuring",
    "report",
    "small_calls",
    "starts",
    "warm_calls",
)
SMALL = [
    "one_caller",
    "one_caller_on_tmpfs",
    "counts",
    "call_cpu",
    "limited_calls",
    "warm_small",
    "warm_deepaas",
    "warm_memory",
    "warm_limited",
    "live_stalled",
    "base64_in",
    "base64_out",
    "peak_memory",
    "idle",
    "start",
    "limited_start",
    "start_cpu",
    "output_files",
    "log_lines",
]
# Things that a machine may lack. A row that needs one of them names it in place of a value.
MAY_LACK = {"control group", "image-classification", "the tree", "26d66e4", "tmpfs"}
ALL = [*SMALL, "eight_callers", "eight_callers_on_tmpfs", "warm_callers", "input_size", "callers", "endurance", "stall"]


def bench(tmp_path: Path, *flags: str) -> dict[str, Any]:
    """Run the smallest form of the benchmark, and return its results. If it fails, show its output."""
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
    """Return the names of processes whose working directory is, or was, below a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or belongs to another user
            if os.readlink(process / "cwd").startswith(f"{directory}/"):
                found.append((process / "comm").read_text())
    return found


def measured(found: dict[str, Any]) -> set[str]:
    """Return the measures that have right values, or name what this machine lacks for them."""
    return {
        row["measure"]
        for row in found["rows"]
        if ("watchdog" in row["measured"] or MAY_LACK & row["missing"].keys()) and not any(row["not_right"].values())
    }


def only(names: list[str]) -> list[str]:
    return [word for name in names for word in ("--only", name)]


# These tests are slow, so that they do not run beside other tests, which need the cores.
@pytest.mark.slow
def test_all_measures_are_reported(tmp_path: Path) -> None:
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
    """Import the modules of the benchmark, which are not a package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return {name: importlib.import_module(name) for name in MODULES}


@pytest.mark.parametrize(("file_system", "limit"), [("tmpfs", 1.35), ("ext2/ext3", 1.6)])
def test_a_missing_contender_is_named(
    tmp_path: Path, modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch, file_system: str, limit: float
) -> None:
    monkeypatch.setattr(modules["small_calls"], "file_system", lambda _: file_system)
    monkeypatch.setattr(modules["contenders"], "PATH", str(tmp_path))
    bench = modules["measuring"].Bench(modules["measuring"].LEAST, tmp_path)
    found = modules["small_calls"].one_caller(bench)
    verdicts = {row.against: modules["report"].verdict(row) for row in found.rows}
    assert verdicts["webhook"] == "not measured: webhook: the program webhook is not installed"
    assert verdicts["nginx+fcgiwrap"] == "not measured: nginx+fcgiwrap: the program nginx is not installed"
    assert set(found.rows[0].values) == {"floor", "watchdog"}
    assert (found.rows[0].limit, found.rows[0].against) == (limit, "floor")
    assert modules["contenders"].versions()["webhook"] is None


def test_without_a_control_group_the_row_says_so(
    tmp_path: Path, modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules["control_group"], "_TOP", tmp_path / "none")
    found = modules["limited_cpu"].limited_calls(modules["measuring"].Bench(modules["measuring"].LEAST, tmp_path))
    verdict = modules["report"].verdict(found.rows[0])
    assert verdict.startswith("not measured: control group: no control group can be made: ")


def test_a_control_group_has_its_limit_and_leaves_no_process(modules: dict[str, Any]) -> None:
    try:
        with modules["control_group"].limited_to(0.2) as prefix:
            name = f"watchdog-bench-{os.getpid()}"
            left = subprocess.Popen([*prefix, "cat"], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert left.stdin is not None
            assert left.stdout is not None
            left.stdin.write(b"x")
            assert left.stdout.read(1) == b"x"
            assert f"/{name}\n" in Path(f"/proc/{left.pid}/cgroup").read_text()
            group = next(top / name for top in (TOP / "cpu", TOP) if (top / name).is_dir())
            limits = [group / "cpu.cfs_quota_us", group / "cpu.max"]
            assert [file.read_text().split()[0] for file in limits if file.exists()] == ["20000"]
    except modules["control_group"].NoControlGroup as reason:
        pytest.skip(str(reason))
    with left:
        assert left.wait() == -signal.SIGKILL
    assert not group.exists()


@pytest.mark.parametrize("max_log_rate", ["0", "1Ki"])
def test_each_line_is_in_the_log_or_counted_as_dropped(
    tmp_path: Path, modules: dict[str, Any], max_log_rate: str
) -> None:
    server = modules["contenders"].Watchdog(
        tmp_path / "server", script="seq 1000 >&2\n", environ={"WATCHDOG_MAX_LOG_RATE": max_log_rate}
    )
    try:
        _, _, status, _ = modules["growing_work"].timed_call(server, {})
        assert status == 200
    finally:
        server.stop()
    logged, dropped = server.script_lines()
    assert logged + dropped == 1000
    assert bool(dropped) == (max_log_rate != "0")


def test_rows_of_tmpfs_are_left_out_of_a_run_on_tmpfs(
    tmp_path: Path, modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules["small_calls"], "file_system", lambda _: "tmpfs")
    bench = modules["measuring"].Bench(modules["measuring"].LEAST, tmp_path)
    (row,) = modules["small_calls"].eight_callers_on_tmpfs(bench).rows
    assert "the rows of eight_callers have these values" in modules["report"].verdict(row)


def test_without_its_environment_the_example_is_not_measured(
    tmp_path: Path, modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules["warm_calls"], "_DIGITS", tmp_path)
    found = modules["warm_calls"].warm_deepaas(modules["measuring"].Bench(modules["measuring"].LEAST, tmp_path))
    verdict = modules["report"].verdict(found.rows[0])
    assert verdict == "not measured: image-classification: run examples/image-classification/setup.sh first"


@pytest.mark.parametrize("measure", ["warm_small", "warm_callers"])
def test_without_a_tmpfs_the_rows_in_memory_say_so(
    tmp_path: Path, modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch, measure: str
) -> None:
    monkeypatch.setattr(modules["small_calls"], "file_system", lambda _: "ext2/ext3")
    found = getattr(modules["warm_calls"], measure)(modules["measuring"].Bench(modules["measuring"].LEAST, tmp_path))
    assert modules["report"].verdict(found.rows[0]).startswith("not measured: tmpfs: /dev/shm is not a tmpfs")


def test_without_strace_the_row_says_so_and_functions_are_counted(
    tmp_path: Path, modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules["counts"].shutil, "which", lambda *_, **__: None)
    found = modules["counts"].counts(modules["measuring"].Bench(modules["measuring"].LEAST, tmp_path))
    functions, turns, system_calls = found.rows
    assert functions.values["watchdog"][0] > 10
    assert turns.values["watchdog"][0] >= 1
    assert modules["report"].verdict(system_calls) == "not measured: strace: this needs root and the program strace"


def test_without_the_commit_to_compare_with_the_row_says_so(
    tmp_path: Path, modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules["installations"], "BASE", "0" * 40)
    found = modules["starts"].start_cpu(modules["measuring"].Bench(modules["measuring"].LEAST, tmp_path))
    assert found.rows[0].values["watchdog"][0] > 0
    verdict = modules["report"].verdict(found.rows[0])
    assert verdict == f"not measured: {'0' * 40}: git does not find this commit here: fetch the whole history"


def test_a_tree_with_other_code_is_not_measured(
    tmp_path: Path, modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    image_tree = modules["image_tree"]
    tree = tmp_path / "bench-tree" / "opt" / "watchdog"
    for name in ("bin/watchdog", "libexec/start.py", "lib/python3.11/site-packages/watchdog/__init__.py"):
        (tree / name).parent.mkdir(parents=True)
        (tree / name).touch()
    (tree / "libexec" / "python3").symlink_to(sys.executable)
    monkeypatch.setattr(image_tree, "_OF_IMAGE_TEST", tmp_path / "none")
    monkeypatch.setattr(image_tree, "_OF_BENCH", tmp_path / "bench-tree")
    with pytest.raises(modules["contenders"].Unavailable, match="no tree with the code of this checkout"):
        image_tree.tree_of_this_checkout()
    image_tree.Tree(tree).with_code_of(ROOT, tmp_path / "copy" / "opt" / "watchdog")
    monkeypatch.setattr(image_tree, "_OF_BENCH", tmp_path / "copy")
    assert image_tree.tree_of_this_checkout().root == tmp_path / "copy" / "opt" / "watchdog"


def test_the_clock_of_a_process_shows_its_processor_time(modules: dict[str, Any]) -> None:
    before_s = time.process_time()
    seen_s = time.clock_gettime(modules["contenders"].clock_of(os.getpid()))
    assert before_s <= seen_s <= time.process_time()


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
