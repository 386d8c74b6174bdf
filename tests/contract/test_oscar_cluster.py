"""The Jobs of ``examples/oscar-cluster/``: valid for a cluster, and what their scripts do to the volume.

The scripts run here on a directory, with a small tree whose program only prints its version.
``tests/image/test_oscar_cluster.py`` runs the Jobs' containers with the real tree.
"""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest
from manifests import Document, documents, one, problems

FOLDER = Path(__file__).parent.parent.parent / "examples" / "oscar-cluster"
JOBS = sorted(FOLDER.glob("*.yaml"))
PROGRAMS = ("fwatchdog", "supervisor", "alpine/supervisor")


def container(name: str) -> Document:
    (found,) = one(FOLDER / name, "Job")["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def run(name: str, volume: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command of a Job, with the environment that the manifest sets, but on another directory."""
    found = container(name)
    values = {each["name"]: each["value"] for each in found["env"]} | {"VOLUME": str(volume)} | environ
    return subprocess.run(
        [*found["command"], *found["args"]],
        env={"PATH": os.environ["PATH"]} | values,
        capture_output=True,
        text=True,
        timeout=60,
    )


def install(volume: Path, tree: Path) -> str:
    done = run("install.yaml", volume, TREE=str(tree))
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_tree(path: Path, version: str) -> Path:
    """A directory with the names and links of the tree."""
    (path / "bin").mkdir(parents=True)
    (path / "alpine").mkdir()
    write_program(path / "bin/watchdog", f"oscar-watchdog {version}")
    (path / "library").write_text(version * 1000)
    for link, target in (
        ("bin/fwatchdog", "watchdog"),
        ("bin/supervisor", "watchdog"),
        ("fwatchdog", "bin/fwatchdog"),
        ("supervisor", "bin/supervisor"),
        ("alpine/supervisor", "../bin/supervisor"),
    ):
        (path / link).symlink_to(target)
    return path


def write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\necho {text}\n")
    path.chmod(0o755)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """The volume as OSCAR's own Job leaves it."""
    volume = tmp_path / "volume"
    (volume / "alpine").mkdir(parents=True)
    (volume / "_internal").mkdir()
    for program in PROGRAMS:
        write_program(volume / program, f"{program} of OSCAR")
    return volume


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "old", "1.0.0")


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "new", "2.0.0")


def versions(volume: Path) -> list[str]:
    """Return the output of the three programs."""
    return [
        subprocess.run([volume / program, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
        for program in PROGRAMS
    ]


ALL_OLD = ["oscar-watchdog 1.0.0\n"] * 3
ALL_NEW = ["oscar-watchdog 2.0.0\n"] * 3
OF_OSCAR = [f"{program} of OSCAR\n" for program in PROGRAMS]


# ---- the manifests


def test_there_are_jobs() -> None:
    assert [path.name for path in JOBS] == ["check.yaml", "install.yaml", "rollback.yaml"]


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_the_schema_accepts_each_job(path: Path) -> None:
    (job,) = documents(path)
    assert problems(job) == []


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_each_job_mounts_the_volume_where_oscar_does(path: Path) -> None:
    """The names are those of OSCAR's ``pkg/types/service.go`` and of its chart."""
    job = one(path, "Job")
    assert job["metadata"]["namespace"] == "oscar-svc"
    pod = job["spec"]["template"]["spec"]
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert volumes["oscar-volume"]["persistentVolumeClaim"]["claimName"] == "oscar-pvc"
    (found,) = pod["containers"]
    mounts = {each["name"]: each for each in found["volumeMounts"]}
    assert mounts.keys() == volumes.keys()
    assert mounts["oscar-volume"]["mountPath"] == "/oscar/bin"
    assert mounts["oscar-volume"].get("readOnly", False) is (path.name == "check.yaml")
    assert {each["name"]: each["value"] for each in found.get("env", [])}.get("VOLUME", "/oscar/bin") == "/oscar/bin"


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_no_pod_starts_from_a_job_without_the_name_of_an_image(path: Path) -> None:
    """A name of an image is in lower case."""
    assert container(path.name)["image"] == "IMAGE"


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_kubernetes_changes_nothing_in_the_script(path: Path) -> None:
    """Kubernetes replaces ``$(NAME)`` if the container has this variable, and ``$$`` by ``$``."""
    found = container(path.name)
    text = "".join(found.get("args", []))
    assert "$$" not in text
    assert [each["name"] for each in found.get("env", []) if f"$({each['name']})" in text] == []


# ---- install


def test_an_installation_replaces_the_programs_of_oscar_and_keeps_them(volume: Path, old: Path) -> None:
    text = install(volume, old)
    assert text.endswith("fwatchdog is oscar-watchdog 1.0.0, before it was the program of OSCAR\n")
    assert versions(volume) == ALL_OLD
    for program, said in zip(PROGRAMS, OF_OSCAR, strict=True):
        assert subprocess.run([volume / f"{program}.oscar"], capture_output=True, text=True, check=True).stdout == said
    assert (volume / "_internal").is_dir()


def test_an_installation_on_an_empty_volume(tmp_path: Path, old: Path) -> None:
    volume = tmp_path / "empty"
    volume.mkdir()
    install(volume, old)
    assert versions(volume) == ALL_OLD


def test_every_user_may_read_and_execute_what_was_installed(volume: Path, old: Path) -> None:
    (old / "bin/watchdog").chmod(0o755)
    (old / "library").chmod(0o644)
    install(volume, old)
    installed = (volume / "current").resolve()
    for path in (installed.parent, installed, *installed.rglob("*")):
        wanted = 0o555 if path.is_dir() or path.name == "watchdog" else 0o444
        assert path.is_symlink() or path.stat().st_mode & wanted == wanted, path


def test_a_second_installation_of_the_same_tree_changes_nothing(volume: Path, old: Path) -> None:
    install(volume, old)
    library = (volume / "current/library").stat()
    install(volume, old)
    assert versions(volume) == ALL_OLD
    assert (volume / "current/library").stat().st_ino == library.st_ino
    assert not (volume / "previous").exists()


def test_a_new_version_leaves_the_old_one_to_the_pods_that_run_it(volume: Path, old: Path, new: Path) -> None:
    install(volume, old)
    of_running_pods = (volume / "fwatchdog").resolve()
    install(volume, new)
    assert versions(volume) == ALL_NEW
    assert subprocess.run([of_running_pods], capture_output=True, text=True, check=True).stdout == ALL_OLD[0]


def test_two_trees_of_the_same_version_number_are_two_versions(volume: Path, old: Path) -> None:
    install(volume, old)
    (old / "library").write_text("a fix")
    install(volume, old)
    assert (volume / "current/library").read_text() == "a fix"
    assert (volume / "previous/library").read_text() == "1.0.0" * 1000


def test_an_installation_that_was_interrupted_is_done_again(volume: Path, old: Path) -> None:
    (volume / "versions/unfinished/bin").mkdir(parents=True)
    (volume / "versions/unfinished/bin/watchdog").write_text("half")
    install(volume, old)
    assert versions(volume) == ALL_OLD
    assert [path.name for path in (volume / "versions").iterdir()] == [(volume / "current").resolve().name]


def test_a_version_that_was_damaged_on_the_volume_is_replaced(volume: Path, old: Path) -> None:
    install(volume, old)
    (volume / "current/library").write_text("damaged")
    assert "was changed on the volume, and is replaced" in install(volume, old)
    assert (volume / "current/library").read_text() == "1.0.0" * 1000
    assert versions(volume) == ALL_OLD


def test_a_volume_that_is_too_small_keeps_the_version_that_it_had(tmp_path: Path, old: Path, new: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system: sudo make test")
    (new / "library").write_bytes(os.urandom(4 << 20))
    found = container("install.yaml")
    (tmp_path / "small").mkdir()
    (tmp_path / "install.sh").write_text(found["args"][0])
    script = f"""
        mount -t tmpfs -o size=1m none {tmp_path}/small
        export VOLUME={tmp_path}/small
        TREE={old} sh -eu {tmp_path}/install.sh
        TREE={new} sh -eu {tmp_path}/install.sh && exit 1
        "$VOLUME/fwatchdog" --version
    """
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"program of OSCAR\n{ALL_OLD[0]}")
    assert "No space left on device" in done.stderr


def test_a_tree_that_cannot_be_executed_is_not_installed(volume: Path, old: Path, new: Path) -> None:
    install(volume, old)
    (new / "bin/watchdog").write_text("#!/no/such/interpreter\n")
    assert run("install.yaml", volume, TREE=str(new)).returncode != 0
    assert versions(volume) == ALL_OLD


def test_a_pod_that_starts_during_a_switch_gets_one_version_or_the_other(volume: Path, old: Path, new: Path) -> None:
    install(volume, old)
    seen: list[tuple[int, str]] = []
    is_over = threading.Event()

    def start_pods() -> None:
        while not is_over.is_set():
            done = subprocess.run([volume / "fwatchdog"], capture_output=True, text=True, timeout=60)
            seen.append((done.returncode, done.stdout))

    pods = threading.Thread(target=start_pods)
    pods.start()
    try:
        for _ in range(5):
            install(volume, new)
            install(volume, old)
    finally:
        is_over.set()
        pods.join()
    assert len(seen) > 5
    assert set(seen) <= {(0, ALL_OLD[0]), (0, ALL_NEW[0])}


def test_what_oscars_own_job_downloads_later_does_not_overwrite_the_program(volume: Path, old: Path) -> None:
    """OSCAR's Job mounts the volume at ``/data``, where the links lead nowhere."""
    install(volume, old)
    elsewhere = volume.rename(volume.parent / "data")
    download = volume.parent / "download"
    download.mkdir()
    write_program(download / "supervisor", "a new supervisor of OSCAR")
    for command in (["cp", "-r", f"{download}/.", str(elsewhere)], ["sh", "-c", f"echo x > {elsewhere}/fwatchdog"]):
        assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode != 0
    elsewhere.rename(volume)
    assert versions(volume) == ALL_OLD


# ---- rollback


def rollback(volume: Path, to: str = "previous") -> str:
    done = run("rollback.yaml", volume, TO=to)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_rollback_goes_back_to_the_version_before(volume: Path, old: Path, new: Path) -> None:
    install(volume, old)
    install(volume, new)
    assert rollback(volume).endswith("fwatchdog is oscar-watchdog 1.0.0\n")
    assert versions(volume) == ALL_OLD


def test_a_rollback_that_runs_twice_does_not_come_back(volume: Path, old: Path, new: Path) -> None:
    """Kubernetes may start the pod of a Job a second time."""
    install(volume, old)
    install(volume, new)
    rollback(volume)
    rollback(volume)
    assert versions(volume) == ALL_OLD


@pytest.mark.parametrize("to", ["previous", "oscar"])
def test_a_rollback_of_the_first_installation_brings_the_programs_of_oscar_back(
    volume: Path, old: Path, to: str
) -> None:
    before = {path: path.read_bytes() for path in volume.rglob("*") if path.is_file()}
    install(volume, old)
    for _ in range(2):
        assert rollback(volume, to) == "went back to the programs of OSCAR\n"
        assert versions(volume) == OF_OSCAR
    assert before == {path: path.read_bytes() for path in volume.rglob("*") if path.is_file() and path in before}


def test_the_programs_of_oscar_come_back_after_several_versions(volume: Path, old: Path, new: Path) -> None:
    install(volume, old)
    install(volume, new)
    rollback(volume, "oscar")
    assert versions(volume) == OF_OSCAR
    install(volume, new)
    assert versions(volume) == ALL_NEW


def test_a_rollback_to_a_version_that_was_removed_changes_nothing(volume: Path, old: Path, new: Path) -> None:
    install(volume, old)
    removed = (volume / "current").resolve()
    install(volume, new)
    subprocess.run(["rm", "-r", removed], check=True)
    done = run("rollback.yaml", volume)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is not on the volume any more: set TO to oscar, or install again" in done.stderr
    assert versions(volume) == ALL_NEW


def test_a_rollback_to_oscar_without_its_programs_changes_nothing(tmp_path: Path, old: Path) -> None:
    volume = tmp_path / "empty"
    volume.mkdir()
    install(volume, old)
    done = run("rollback.yaml", volume)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the volume has no fwatchdog.oscar, which would be OSCAR's program" in done.stderr
    assert versions(volume) == ALL_OLD
