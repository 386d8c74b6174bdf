"""The manifests of ``examples/knative/``: valid for a cluster, consistent in themselves, and at work.

``manifests.py`` checks them with the schemas of a cluster.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pod
import pytest
from manifests import Document, documents, one, problems
from running_server import RunningServer, StartServer

from watchdog.settings.kinds import parse_duration_s, parse_size_bytes

ROOT = Path(__file__).parent.parent.parent
MANIFESTS = sorted((ROOT / "examples" / "knative").glob("*.yaml"))
SCALING = (ROOT / "docs" / "explanation" / "scaling.md").read_text()

SERVER_BYTES = 96 << 20
# The grace period of a pod is timeoutSeconds. Knative's preStop hook uses this part of it before SIGTERM.
PRE_STOP_S = 30
# The longest time of a drain in addition to the configured times (docs/explanation/platforms.md).
LAST_ANSWERS_S = 3


@pytest.fixture(params=MANIFESTS, ids=lambda path: path.name)
def manifest(request: pytest.FixtureRequest) -> Path:
    path = request.param
    assert isinstance(path, Path)
    return path


def test_there_are_manifests() -> None:
    assert [path.name for path in MANIFESTS] == ["service-scaled.yaml", "service.yaml"]


def test_the_schemas_accept_them(manifest: Path) -> None:
    for document in documents(manifest):
        assert problems(document) == []


def pod_spec(service: Document) -> Document:
    spec = service["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def container(service: Document) -> Document:
    (found,) = pod_spec(service)["containers"]
    assert isinstance(found, dict)
    return found


def rename(mapping: Document, old: str, new: str) -> None:
    mapping[new] = mapping.pop(old)


WRONG: dict[str, Callable[[Document], object]] = {
    "misspelt in the pod": lambda s: rename(pod_spec(s), "containerConcurrency", "containerConcurency"),
    "misspelt in the container": lambda s: rename(container(s), "volumeMounts", "volumeMount"),
    "misspelt in a probe": lambda s: rename(container(s)["livenessProbe"], "periodSeconds", "periodseconds"),
    "misspelt in the security context": lambda s: rename(
        container(s)["securityContext"], "readOnlyRootFilesystem", "readOnlyRootFileSystem"
    ),
    "misspelt in emptyDir": lambda s: rename(pod_spec(s)["volumes"][1]["emptyDir"], "sizeLimit", "size"),
    "misspelt in metadata": lambda s: rename(s["spec"]["template"]["metadata"], "annotations", "annotation"),
    "at the wrong level": lambda s: s["spec"].update(containerConcurrency=1),
    "of the Deployment": lambda s: s["spec"].update(replicas=1),
    "behind a feature flag": lambda s: pod_spec(s).update(securityContext={"fsGroup": 1}),
    "a number in quotes": lambda s: pod_spec(s).update(timeoutSeconds="300"),
    "a fraction": lambda s: pod_spec(s).update(containerConcurrency=1.5),
    "a number for a variable": lambda s: container(s)["env"][0].update(value=1),
    "a truth for an annotation": lambda s: s["spec"]["template"]["metadata"]["annotations"].update(x=True),
    "no quantity": lambda s: container(s)["resources"]["limits"].update(memory="512 MB"),
    "a mapping for a list": lambda s: pod_spec(s).update(volumes={}),
    "a variable without a name": lambda s: container(s)["env"][0].pop("name"),
    "a mount without a name": lambda s: container(s)["volumeMounts"][0].pop("name"),
    "a volume without a name": lambda s: pod_spec(s)["volumes"][0].pop("name"),
    "no container": lambda s: pod_spec(s).pop("containers"),
    "no name": lambda s: s["metadata"].pop("name"),
    "an old version": lambda s: s.update(apiVersion="serving.knative.dev/v1alpha1"),
    "another kind": lambda s: s.update(kind="Servise"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_the_schema_of_a_service_refuses(mistake: str) -> None:
    service = one(MANIFESTS[0], "Service")
    assert problems(service) == []
    WRONG[mistake](service)
    assert len(problems(service)) >= 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"datas": {}},
        {"data": {"script.sh": ["echo"]}},
        {"data": {"n": 1}},
        {"metadata": {}},
        {"metadata": {"name": "x", "lables": {}}},
        {"immutable": "true"},
    ],
    ids=json.dumps,
)
def test_the_schema_of_a_config_map_refuses(wrong: Document) -> None:
    config_map = one(MANIFESTS[0], "ConfigMap")
    assert problems(config_map) == []
    assert problems(config_map | wrong)


# ---- rules of Knative's webhook and the kubelet that are in no schema


def test_all_that_is_referred_to_is_there(manifest: Path) -> None:
    config_maps = {each["metadata"]["name"]: each for each in documents(manifest) if each["kind"] == "ConfigMap"}
    service = one(manifest, "Service")
    volumes = {each["name"]: each for each in pod_spec(service)["volumes"]}
    assert len(volumes) == len(pod_spec(service)["volumes"])
    mounts = container(service)["volumeMounts"]
    # Knative also refuses a volume that no container mounts.
    assert {each["name"] for each in mounts} == volumes.keys()
    assert len({each["mountPath"] for each in mounts}) == len(mounts)
    used = {each["configMap"]["name"] for each in volumes.values() if "configMap" in each}
    assert used == config_maps.keys()
    for mount in mounts:
        assert mount["mountPath"] not in ("/", "/dev", "/dev/log")
        # "volume mount should be readOnly for this type of volume"
        assert mount.get("readOnly") is ("configMap" in volumes[mount["name"]] or None)


def test_names_and_ports_are_not_those_that_knative_keeps_for_itself(manifest: Path) -> None:
    service = one(manifest, "Service")
    names = [each["name"] for each in container(service)["env"]]
    assert len(set(names)) == len(names)
    assert not set(names) & {"PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"}
    (port,) = container(service)["ports"]
    assert port["containerPort"] not in (8008, 8012, 8013, 8022, 9090, 9091)
    assert "name" not in port, "h2c is not offered, http1 is the default"
    for document in documents(manifest):
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", document["metadata"]["name"])


def test_the_placeholder_cannot_be_deployed_by_mistake(manifest: Path) -> None:
    """A name of an image is in lower case."""
    assert container(one(manifest, "Service"))["image"] == "IMAGE"


def test_nothing_is_behind_a_feature_flag(manifest: Path) -> None:
    """The default of config-features allows the security context of a container, except added capabilities."""
    spec = pod_spec(one(manifest, "Service"))
    assert spec.keys() == {"containerConcurrency", "timeoutSeconds", "enableServiceLinks", "containers", "volumes"}
    assert container(one(manifest, "Service"))["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_probes_ask_for_health_and_never_for_a_call(manifest: Path) -> None:
    found = container(one(manifest, "Service"))
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert found[name]["httpGet"] == {"path": "/_/health"}
    assert found["startupProbe"]["periodSeconds"] == 1
    assert found["readinessProbe"].get("periodSeconds", 0) <= 5


def test_requests_are_limits_and_the_last_words_are_kept(manifest: Path) -> None:
    spec = pod_spec(one(manifest, "Service"))
    resources = container(one(manifest, "Service"))["resources"]
    assert resources["requests"] == resources["limits"]
    assert container(one(manifest, "Service"))["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert spec["enableServiceLinks"] is False


# The annotations of a revision that Knative's autoscaler knows, and the values that its webhook accepts
# (pkg/apis/autoscaling/annotation_validation.go).
def _is_count(text: str) -> bool:
    return text.isdecimal()


def _is_between(low: float, high: float) -> Callable[[str], bool]:
    return lambda text: low <= float(text) <= high


def _is_whole_seconds(low_s: float) -> Callable[[str], bool]:
    return lambda text: low_s <= parse_duration_s(text) <= 3600 and parse_duration_s(text).is_integer()


ANNOTATIONS: dict[str, Callable[[str], bool]] = {
    "class": lambda text: text == "kpa.autoscaling.knative.dev",
    "metric": lambda text: text in ("concurrency", "rps"),
    "min-scale": _is_count,
    "max-scale": _is_count,
    "initial-scale": lambda text: _is_count(text) and int(text) > 0,
    "activation-scale": lambda text: _is_count(text) and int(text) > 1,
    "target": lambda text: float(text) >= 0.01,
    "target-utilization-percentage": _is_between(1, 100),
    "target-burst-capacity": lambda text: float(text) >= 0 or float(text) == -1,
    "window": _is_whole_seconds(6),
    "panic-window-percentage": _is_between(1, 100),
    "panic-threshold-percentage": _is_between(110, 1000),
    "scale-down-delay": _is_whole_seconds(0),
    "scale-to-zero-pod-retention-period": _is_whole_seconds(0),
}


def test_the_autoscaler_knows_the_annotations(manifest: Path) -> None:
    annotations = one(manifest, "Service")["spec"]["template"]["metadata"]["annotations"]
    for name, value in annotations.items():
        prefix, _, key = name.partition("/")
        assert prefix == "autoscaling.knative.dev"
        assert ANNOTATIONS[key](value), f"{key}: {value}"
    scales = {key.partition("/")[2]: int(annotations[key]) for key in annotations if key.endswith("-scale")}
    assert scales["min-scale"] <= scales.get("initial-scale", scales["max-scale"]) <= scales["max-scale"]


# ---- the settings


def environment(service: Document) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container(service)["env"]}


def parts_of_oscar_config(manifest: Path) -> dict[str, str]:
    data = one(manifest, "ConfigMap")["data"]
    assert data.keys() == {"script.sh", "function_config.yaml"}
    return {str(name): str(text) for name, text in data.items()}


def test_the_program_knows_the_settings(manifest: Path, tmp_path: Path) -> None:
    settings = environment(one(manifest, "Service"))
    done = check(settings, parts_of_oscar_config(manifest), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in settings:
        assert is_read(name, done.stdout), f"{name} is nobody's setting:\n{done.stdout}"


@pytest.mark.parametrize("wrong", [{"max_inflight": "one"}, {"WATCHDOG_MAX_QUEU": "2"}, {"exec_timeout": "-1s"}])
def test_a_wrong_setting_would_be_noticed(wrong: dict[str, str], tmp_path: Path) -> None:
    done = check(wrong, parts_of_oscar_config(MANIFESTS[0]), tmp_path)
    (name,) = wrong
    assert done.returncode == 2 or not is_read(name, done.stdout)


def is_read(name: str, report: str) -> bool:
    """Return whether a line of the table of settings ends with this source of a value."""
    return re.search(rf"^\w+ .* environment {name}\s*$", report, re.MULTILINE) is not None


def check(settings: dict[str, str], files: dict[str, str], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    config = tmp_path / "config"
    pod.write_config_map(config, files)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WATCHDOG_")}
    environ |= {"WATCHDOG_SCRIPT_PATH": str(config / "script.sh"), "TMPDIR": str(tmp_path)}
    environ |= {"WATCHDOG_SERVICE_DEFINITION": str(config / "function_config.yaml")}
    command = [sys.executable, "-m", "watchdog", "check"]
    return subprocess.run(command, env=environ | settings, capture_output=True, text=True, check=False)


def test_the_times_of_the_chain_fit_into_each_other(manifest: Path) -> None:
    service = one(manifest, "Service")
    settings = environment(service)
    exec_timeout_s = parse_duration_s(settings["exec_timeout"])
    kill_grace_s = parse_duration_s(settings["WATCHDOG_KILL_GRACE"])
    drain_s = parse_duration_s(settings["write_timeout"])
    whole_s = pod_spec(service)["timeoutSeconds"]
    assert parse_duration_s(settings["healthcheck_interval"]) == 0
    assert exec_timeout_s + kill_grace_s < drain_s < whole_s - PRE_STOP_S - kill_grace_s - LAST_ANSWERS_S
    assert kill_grace_s < parse_duration_s(settings["WATCHDOG_QUEUE_TIMEOUT"])
    text = manifest.read_text()
    assert f"exec_timeout {exec_timeout_s:g}s + kill_grace {kill_grace_s:g}s  <  write_timeout {drain_s:g}s" in text
    assert f"timeoutSeconds {whole_s} s - {PRE_STOP_S} s - kill_grace {kill_grace_s:g}s - {LAST_ANSWERS_S} s" in text


def test_places_and_memory_fit_into_each_other(manifest: Path) -> None:
    service = one(manifest, "Service")
    settings, limits = environment(service), container(service)["resources"]["limits"]
    places = int(settings["max_inflight"])
    assert places == pod_spec(service)["containerConcurrency"]
    assert places == int(limits["cpu"])
    assert places <= int(settings["WATCHDOG_MAX_QUEUE"]) <= 2 * places
    (tmp,) = [each["emptyDir"] for each in pod_spec(service)["volumes"] if "emptyDir" in each]
    assert tmp["medium"] == "Memory"
    tmp_bytes = parse_size_bytes(tmp["sizeLimit"])
    inputs = (places + int(settings["WATCHDOG_MAX_QUEUE"])) * parse_size_bytes(settings["WATCHDOG_MAX_INPUT_SIZE"])
    outputs = places * parse_size_bytes(settings["WATCHDOG_MAX_OUTPUT_SIZE"])
    assert inputs + outputs < tmp_bytes
    assert SERVER_BYTES + tmp_bytes < parse_size_bytes(limits["memory"])


# ---- docs/explanation/scaling.md


def test_the_numbers_of_the_page_are_those_of_the_calculation() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "queueing.py"], capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(lines) == 14
    page = SCALING.splitlines()
    assert [line for line in lines if line not in page] == []


@pytest.mark.parametrize(("column", "name"), [(2, "service.yaml"), (3, "service-scaled.yaml")])
def test_the_page_says_what_the_manifests_set(column: int, name: str) -> None:
    service = one(ROOT / "examples" / "knative" / name, "Service")
    annotations = service["spec"]["template"]["metadata"]["annotations"]
    settings = {key.removeprefix("WATCHDOG_").lower(): value for key, value in environment(service).items()}
    known = {"containerConcurrency", "timeoutSeconds"}
    table = SCALING.partition("## What to set where")[2].partition("\n\n")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    checked = set()
    for cells in rows:
        key, said = cells[0].strip("`"), cells[column]
        found = annotations.get(key, settings.get(key, pod_spec(service)[key] if key in known else None))
        if found is not None:
            assert said == str(found), key
            checked.add(key)
        elif key.startswith("autoscaling."):
            assert said.endswith(" (default)"), key
    assert checked >= {*known, "max_inflight", "max_queue", "queue_timeout", "exec_timeout", "write_timeout"}
    assert checked >= {key for key in annotations if key.endswith(("-scale", "-delay", "-capacity", "/window"))}


# ---- at work


@pytest.fixture
def served(manifest: Path, start_server: StartServer, tmp_path: Path) -> RunningServer:
    """Start the server in a container as the manifest describes it."""
    service = one(manifest, "Service")
    (tmp,) = [each["emptyDir"] for each in pod_spec(service)["volumes"] if "emptyDir" in each]
    prefix = pod.prefix(
        tmp_path / "pod",
        parts_of_oscar_config(manifest),
        tmp_bytes=parse_size_bytes(tmp["sizeLimit"]),
        user=container(service)["securityContext"]["runAsUser"],
    )
    # The defaults of the program, in place of the values that the servers of other tests have.
    defaults = {"TMPDIR": "/tmp", "WATCHDOG_SCRIPT_PATH": "/oscar/config/script.sh"}
    return start_server(None, prefix=prefix, has_logs=False, **defaults, **environment(service))


EXPECTED = {
    "service.yaml": b"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n",
    "service-scaled.yaml": b"Mwo=\n",
}


def test_the_function_of_the_config_map_works(served: RunningServer, manifest: Path) -> None:
    answer = served.call(b"abc", "/?input=raw")
    assert (answer.status, answer.body) == (200, EXPECTED[manifest.name])
    for probe in ("readinessProbe", "livenessProbe"):
        path = container(one(manifest, "Service"))[probe]["httpGet"]["path"]
        assert served.call(None, path, "GET", {"User-Agent": "kube-probe/1.34"}).status == 200
    limit = parse_size_bytes(environment(one(manifest, "Service"))["WATCHDOG_MAX_INPUT_SIZE"])
    assert served.call(bytes(limit + 1), headers={"Content-Type": "image/x"}).status == 413
