"""The example of a job: the commands of its README with a real storage server, and its Kubernetes Job."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import problems
from running_server import free_port
from storage.servers import rclone_s3_command, running

from watchdog.settings.declarations import SETTINGS

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "thumbnails-job"
KEYS = "key-of-the-example,secret-of-the-example"


@dataclass(frozen=True)
class Buckets:
    """Run the storage server of the README, on another port and in another directory."""

    port: int
    directory: Path


@pytest.fixture
def buckets(tmp_path: Path) -> Iterator[Buckets]:
    directory, port = tmp_path / "buckets", free_port()
    (directory / "thumbnails" / "in").mkdir(parents=True)
    with running(rclone_s3_command(directory, port, KEYS), port):
        yield Buckets(port, directory)


@pytest.fixture
def folder(tmp_path: Path, buckets: Buckets) -> Path:
    """Return a copy of the example, with the port of the test in the definition."""
    folder = tmp_path / "repository" / "examples" / "thumbnails-job"
    folder.mkdir(parents=True)
    for path in EXAMPLE.iterdir():
        target = folder / path.name
        target.write_bytes(path.read_bytes().replace(b"127.0.0.1:9000", f"127.0.0.1:{buckets.port}".encode()))
        target.chmod(path.stat().st_mode)
    return folder


def commands(title: str) -> list[str]:
    """Return the commands in a section of the README."""
    section = re.search(
        rf"^## {title}\n(.*?)(?=^## |\Z)", (EXAMPLE / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert section is not None
    return re.findall(r"^\$ (.+)$", section[1], re.MULTILINE)


def shell(command: str, folder: Path, buckets: Buckets, port: int = 0) -> subprocess.CompletedProcess[bytes]:
    text = command.replace("/tmp/buckets", str(buckets.directory)).replace("localhost:8080", f"localhost:{port}")
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TMPDIR": str(folder.parent)},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


def is_thumbnail(path: Path) -> bool:
    told = subprocess.run(["identify", path], capture_output=True, text=True, check=True).stdout
    return " JPEG 48x32 " in told


def test_the_commands_of_the_readme(folder: Path, buckets: Buckets) -> None:
    _pip, _mkdir, serving, _path, copy, job, identify, by_variable, wrong, wrongly = commands("On your own machine")
    assert serving == f"rclone serve s3 --addr 127.0.0.1:9000 --auth-key {KEYS} /tmp/buckets"
    assert shell(copy, folder, buckets).returncode == 0
    done = shell(job, folder, buckets)
    assert (done.returncode, done.stdout) == (0, b"making a thumbnail of in/holiday photo.jpg\n")
    assert b"outputs stored" in done.stderr
    thumbnail = buckets.directory / "thumbnails" / "out" / "holiday photo.jpg"
    assert is_thumbnail(thumbnail)
    assert b" JPEG 48x32 " in shell(identify, folder, buckets).stdout
    thumbnail.unlink()
    assert shell(by_variable, folder, buckets).returncode == 0
    assert shell(wrong, folder, buckets).returncode == 0
    done = shell(wrongly, folder, buckets)
    assert done.stdout == b"exit code 66\n"
    assert b"(403, SignatureDoesNotMatch)" in done.stderr


def test_the_same_as_a_server(folder: Path, buckets: Buckets) -> None:
    serving, call, _identify = commands("The same as a server")
    shell(commands("On your own machine")[4], folder, buckets)
    port = free_port()
    words = [*serving.split()[1:], "--port", str(port), "--metrics-port", "0"]
    with running([sys.executable, "-m", "watchdog", *words], port, cwd=folder):
        assert shell(call, folder, buckets, port).returncode == 0
    assert is_thumbnail(folder / "thumbnail.jpg")
    assert is_thumbnail(buckets.directory / "thumbnails" / "out" / "holiday photo.jpg")


def documents() -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all((EXAMPLE / "job.yaml").read_text())}


def test_a_disruption_of_the_job_is_not_a_failure() -> None:
    job = documents()["Job"]["spec"]
    disruption, *others = job["podFailurePolicy"]["rules"]
    assert disruption == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert [each["action"] for each in others] == ["FailJob"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] >= SETTINGS["kill_grace"].default + 10
    assert pod["enableServiceLinks"] is False
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_schemas_of_kubernetes_accept_the_job() -> None:
    found = documents()
    assert found.keys() == {"Secret", "ConfigMap", "Job"}
    assert [line for each in found.values() for line in problems(each)] == []


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"template": {"spec": {"containers": [{"name": "x", "arguments": []}], "restartPolicy": "Never"}}}},
        {"spec": {"backoffLimit": "2"}},
        {"spec": {"retries": 2}},
    ],
)
def test_the_schema_of_a_job_refuses(change: dict[str, Any]) -> None:
    assert problems(documents()["Job"] | change)


def test_all_that_the_job_refers_to_is_there() -> None:
    found = documents()
    pod = found["Job"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert {each["name"] for each in container["volumeMounts"]} == volumes.keys()
    assert volumes["config"]["configMap"]["name"] == found["ConfigMap"]["metadata"]["name"]
    assert volumes["minio"]["secret"]["secretName"] == found["Secret"]["metadata"]["name"]
    *_, rule = found["Job"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    # Kubernetes accepts such a policy only with this restart policy.
    assert pod["restartPolicy"] == "Never"
    (mount,) = (each for each in container["volumeMounts"] if each.get("subPath"))
    assert mount["subPath"] in found["ConfigMap"]["data"]


def test_the_job_runs_with_its_own_definition_secret_and_event(folder: Path, buckets: Buckets, tmp_path: Path) -> None:
    """The directory has the files that the pod would have."""
    found = documents()
    (container,) = found["Job"]["spec"]["template"]["spec"]["containers"]
    shell(commands("On your own machine")[4], folder, buckets)
    secrets = tmp_path / "providers" / "minio.default"
    secrets.mkdir(parents=True)
    for name, value in found["Secret"]["stringData"].items():
        (secrets / name).write_text(value)
    definition = found["ConfigMap"]["data"]["function_config.yaml"]
    assert "https://minio.example.org" in definition
    (tmp_path / "function_config.yaml").write_text(
        definition.replace("https://minio.example.org", f"http://127.0.0.1:{buckets.port}")
    )
    environ = {each["name"]: each["value"] for each in container["env"]}
    done = subprocess.run(
        [sys.executable, "-m", "watchdog", *container["args"]],
        env={
            "PATH": os.environ["PATH"],
            "TMPDIR": str(tmp_path),
            "WATCHDOG_SECRETS_DIR": str(secrets.parent),
            "WATCHDOG_SERVICE_DEFINITION": str(tmp_path / "function_config.yaml"),
            "WATCHDOG_SCRIPT_PATH": str(EXAMPLE / "script.sh"),
            **environ,
        },
        cwd=EXAMPLE.parent.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert is_thumbnail(buckets.directory / "thumbnails" / "out" / "holiday photo.jpg")
