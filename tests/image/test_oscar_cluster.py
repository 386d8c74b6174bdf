"""The Jobs of ``examples/oscar-cluster/`` with the real image and tree, in containers like those of the manifests."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from image.builds import Builds
from image.conftest import StartContainer
from image.containers import Engine, Mount, Options, ended
from image.roots import Roots
from image.serving import CONFIG, ON_LOOPBACK, write_script

pytestmark = [pytest.mark.image, pytest.mark.timeout(300, func_only=True)]

JOBS = Path(__file__).parents[2] / "examples/oscar-cluster"
BIN = "/oscar/bin"


def pod_options(job: str, image: str | Path, volume: Path) -> Options:
    """Run the container of a Job, with a directory in place of the PersistentVolumeClaim."""
    pod: dict[str, Any] = yaml.safe_load((JOBS / job).read_text())["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    flags = ["--read-only", "--read-only-tmpfs=false", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    flags += [
        "--user",
        str(security["runAsUser"]),
        "--memory",
        container["resources"]["limits"]["memory"].removesuffix("i"),
    ]
    for mount in container["volumeMounts"]:
        if mount["name"] == "tmp":
            flags += ["--tmpfs", mount["mountPath"]]
        else:
            flags += ["--volume", f"{volume}:{mount['mountPath']}:{'ro' if mount.get('readOnly') else 'rw'}"]
    command = (*container["command"], *container.get("args", []))
    if isinstance(image, str):
        flags += ["--entrypoint", ""]
    environ = tuple((each["name"], each["value"]) for each in container.get("env", []))
    return Options(image, command=command, environ=environ, flags=tuple(flags))


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Return a volume with replacements for OSCAR's programs, which only print their names."""
    volume = tmp_path / "volume"
    (volume / "alpine").mkdir(parents=True)
    for name in ("fwatchdog", "supervisor", "alpine/supervisor"):
        (volume / name).write_text(f"#!/bin/sh\necho {name} of OSCAR\n")
        (volume / name).chmod(0o755)
    return volume


def test_the_tree_goes_onto_the_volume_serves_from_it_and_leaves_it_again(
    engine: Engine, builds: Builds, roots: Roots, volume: Path, config: Path, start_container: StartContainer
) -> None:
    for _ in range(2):
        done = ended(engine, pod_options("install.yaml", builds.image, volume))
        assert done.returncode == 0, done.stderr
    service = roots["busybox"]
    check = pod_options("check.yaml", service, volume)
    done = ended(engine, check)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"oscar-watchdog ")

    # Start a service as OSCAR does, once without and once with `alpine: true`.
    write_script(config, "/bin/sh", 'wc -c < "$INPUT_FILE_PATH"\n')
    mounts: tuple[Mount, ...] = ((volume, BIN), (config, CONFIG))
    for supervisor in (f"{BIN}/supervisor", f"{BIN}/alpine/supervisor"):
        environ = (*ON_LOOPBACK, ("fprocess", supervisor), ("max_inflight", "1"), ("write_debug", "true"))
        serving = start_container(Options(service, (f"{BIN}/fwatchdog",), environ, mounts))
        assert serving.call(base64.b64encode(b"abc")).body == b"3\n"
        serving.kill()
        event = (*ON_LOOPBACK, ("EVENT", "YWJj"))
        job = ended(engine, Options(service, ("/bin/sh", "-c", f"echo $EVENT | {supervisor}"), event, mounts))
        assert (job.returncode, job.stdout) == (0, b"3\n"), job.stderr

    done = ended(engine, pod_options("rollback.yaml", builds.image, volume))
    assert (done.returncode, done.stdout) == (0, b"went back to the programs of OSCAR\n"), done.stderr
    assert ended(engine, check).stdout == b"fwatchdog of OSCAR\n"
