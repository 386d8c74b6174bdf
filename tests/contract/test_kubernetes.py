"""The manifests of ``examples/kubernetes/``: valid for a cluster, consistent in themselves, and at work.

``manifests.py`` checks them with the schemas of a cluster.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pod
import pytest
import yaml
from manifests import Document, documents, one, problems
from running_server import RunningServer, StartServer

from watchdog.settings.declarations import SETTINGS
from watchdog.settings.kinds import parse_duration_s, parse_size_bytes

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "examples" / "kubernetes"
FUNCTION = FOLDER / "function.yaml"
PAGE = (ROOT / "docs" / "guide" / "kubernetes.md").read_text()
SERVER_BYTES = 96 << 20
# The longest time of a drain in addition to the configured times (docs/explanation/platforms.md).
LAST_ANSWERS_S = 3


def pod_spec() -> Document:
    spec = one(FUNCTION, "Deployment")["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def container() -> Document:
    (found,) = pod_spec()["containers"]
    assert isinstance(found, dict)
    return found


def environment() -> dict[str, str]:
    return {each["name"]: each["value"] for each in container()["env"]}


# ---- valid for a cluster


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_the_schemas_accept_each_resource(path: Path) -> None:
    found = documents(path)
    assert len(found) >= 1
    assert [problems(each) for each in found] == [[]] * len(found)
    for each in found:
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", each["metadata"]["name"])


def set_in(document: Document, path: str, value: object) -> None:
    """Set a field, named as in ``kubectl explain``; a number is the index of a list."""
    *above, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    at: Any = document
    for part in above:
        at = at[part]
    at[last] = value


POD = "spec.template.spec"
WRONG: list[tuple[str, str, str, object]] = [
    ("function.yaml", "Deployment", "spec.replica", 1),
    ("function.yaml", "Deployment", "spec.strategy.rollingUpdate.maxUnavailible", 0),
    ("function.yaml", "Deployment", f"{POD}.securityContext.readOnlyRootFilesystem", True),
    ("function.yaml", "Deployment", f"{POD}.containers.0.startupProbe.httpGet.port", None),
    ("function.yaml", "Deployment", f"{POD}.containers.0.startupProbe.failureTreshold", 1),
    ("function.yaml", "Deployment", f"{POD}.containers.0.env.0.value", 2),
    ("function.yaml", "Deployment", f"{POD}.volumes.1.emptyDir.limit", "1Gi"),
    ("function.yaml", "Deployment", f"{POD}.terminationGracePeriodSeconds", "90s"),
    ("function.yaml", "Service", "spec.ports.0.port", "80"),
    ("function.yaml", "Service", "spec.selectors", {}),
    ("function.yaml", "PodDisruptionBudget", "spec.maxUnavailable", [1]),
    ("autoscaling.yaml", "HorizontalPodAutoscaler", "spec.maxReplicas", "10"),
    ("autoscaling.yaml", "HorizontalPodAutoscaler", "spec.targetCPUUtilizationPercentage", 70),
    ("autoscaling-queue.yaml", "HorizontalPodAutoscaler", "spec.metrics.1.pods.target.averageVal", "1"),
    ("monitoring.yaml", "PodMonitor", "spec.podMetricsEndpoints.0.intervall", "15s"),
    ("monitoring.yaml", "PodMonitor", "spec.podMetricsEndpoints.0.interval", "15 seconds"),
    ("monitoring.yaml", "PodMonitor", "spec.endpoints", []),
    ("monitoring.yaml", "PrometheusRule", "spec.groups.0.rules.0.for", "5 minutes"),
    ("monitoring.yaml", "PrometheusRule", "spec.groups.0.rules.0.labels.severity", 1),
    ("prometheus-rbac.yaml", "ClusterRole", "rules.0.verb", ["get"]),
    ("prometheus-rbac.yaml", "ClusterRoleBinding", "subjects.0.name", None),
]


@pytest.mark.parametrize(
    ("name", "kind", "field", "value"), WRONG, ids=[f"{kind}-{field}" for _, kind, field, _ in WRONG]
)
def test_the_schema_refuses(name: str, kind: str, field: str, value: object) -> None:
    document = one(FOLDER / name, kind)
    assert problems(document) == []
    set_in(document, field, value)
    assert len(problems(document)) >= 1


def test_no_pod_starts_without_the_name_of_an_image() -> None:
    """A name of an image is in lower case."""
    assert container()["image"] == "IMAGE"


# ---- consistent in themselves


def test_all_that_the_pod_refers_to_is_there() -> None:
    volumes = {each["name"]: each for each in pod_spec()["volumes"]}
    mounts = {each["name"]: each for each in container()["volumeMounts"]}
    assert mounts.keys() == volumes.keys()
    assert mounts["function"]["mountPath"] == "/oscar/config"
    assert volumes["function"]["configMap"]["name"] == one(FUNCTION, "ConfigMap")["metadata"]["name"]
    ports = {each["name"]: each["containerPort"] for each in container()["ports"]}
    assert ports == {"http": 8080, "metrics": 8081}
    probes = [container()[name]["httpGet"]["port"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    (service_port,) = one(FUNCTION, "Service")["spec"]["ports"]
    (endpoint,) = one(FOLDER / "monitoring.yaml", "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert [*probes, service_port["targetPort"], endpoint["port"]] == ["http"] * 4 + ["metrics"]


def test_each_selector_selects_the_pods() -> None:
    deployment = one(FUNCTION, "Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"].items()
    (spread,) = pod_spec()["topologySpreadConstraints"]
    monitor = one(FOLDER / "monitoring.yaml", "PodMonitor")["spec"]
    for selector in (
        deployment["selector"]["matchLabels"],
        spread["labelSelector"]["matchLabels"],
        one(FUNCTION, "Service")["spec"]["selector"],
        one(FUNCTION, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        monitor["selector"]["matchLabels"],
    ):
        assert len(selector) >= 1
        assert selector.items() <= labels
    assert monitor["jobLabel"] in dict(labels)


@pytest.mark.parametrize("name", ["autoscaling.yaml", "autoscaling-queue.yaml"])
def test_the_autoscaler_scales_the_deployment_which_sets_no_number_of_pods(name: str) -> None:
    deployment = one(FUNCTION, "Deployment")
    scaler = one(FOLDER / name, "HorizontalPodAutoscaler")
    assert scaler["spec"]["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert "replicas" not in deployment["spec"]
    assert "cpu" in container()["resources"]["requests"], "a utilization is a share of what is requested"


def test_the_metric_of_the_queue_is_one_of_the_server(start_server: StartServer, free_port: int) -> None:
    metrics = one(FOLDER / "autoscaling-queue.yaml", "HorizontalPodAutoscaler")["spec"]["metrics"]
    (name,) = [each["pods"]["metric"]["name"] for each in metrics if each["type"] == "Pods"]
    server = start_server("true", WATCHDOG_METRICS_PORT=str(free_port))
    text = server.call(None, "/metrics", "GET", port=free_port).body.decode()
    assert f"# TYPE {name} gauge\n" in text
    assert f'seriesQuery: {name}{{namespace!="",pod!=""}}' in PAGE


def test_the_rules_are_those_of_the_file_for_prometheus() -> None:
    rules = yaml.safe_load((ROOT / "examples" / "grafana" / "alerts.yaml").read_text())
    assert one(FOLDER / "monitoring.yaml", "PrometheusRule")["spec"] == rules


def test_prometheus_may_do_what_its_configuration_needs() -> None:
    """The role ``pod`` of ``kubernetes_sd_configs`` lists and watches pods, in all namespaces if none is named."""
    configuration = yaml.safe_load((ROOT / "examples" / "grafana" / "prometheus-knative.yaml").read_text())
    (discovery,) = configuration["scrape_configs"][0]["kubernetes_sd_configs"]
    assert discovery == {"role": "pod"}
    rbac = FOLDER / "prometheus-rbac.yaml"
    (rule,) = one(rbac, "ClusterRole")["rules"]
    assert rule == {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    binding = one(rbac, "ClusterRoleBinding")
    assert binding["roleRef"]["name"] == one(rbac, "ClusterRole")["metadata"]["name"]
    account = one(rbac, "ServiceAccount")["metadata"]
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    ]


def test_a_stop_is_over_before_the_kubelet_kills() -> None:
    settings = environment()
    exec_timeout_s = parse_duration_s(settings["exec_timeout"])
    kill_grace_s = parse_duration_s(settings["WATCHDOG_KILL_GRACE"])
    drain_s = parse_duration_s(settings["write_timeout"])
    reachable_s = parse_duration_s(settings["healthcheck_interval"])
    whole_s = pod_spec()["terminationGracePeriodSeconds"]
    assert exec_timeout_s + kill_grace_s < drain_s
    assert reachable_s + drain_s + kill_grace_s + LAST_ANSWERS_S < whole_s
    text = FUNCTION.read_text()
    assert f"exec_timeout {exec_timeout_s:g}s + kill_grace {kill_grace_s:g}s  <  write_timeout {drain_s:g}s" in text
    assert (
        f"healthcheck_interval {reachable_s:g}s + write_timeout {drain_s:g}s + kill_grace {kill_grace_s:g}s + "
        f"{LAST_ANSWERS_S} s  <  terminationGracePeriodSeconds {whole_s} s"
    ) in text


def test_a_model_may_load_for_as_long_as_the_server_allows() -> None:
    probe = container()["startupProbe"]
    assert probe["httpGet"]["path"] == "/_/ready"
    assert probe["periodSeconds"] * probe["failureThreshold"] > SETTINGS["warm_start_timeout"].default
    for name in ("readinessProbe", "livenessProbe"):
        assert container()[name]["httpGet"]["path"] == "/_/health"


def test_places_memory_and_disk_fit_into_each_other() -> None:
    settings, resources = environment(), container()["resources"]
    assert resources["requests"] == resources["limits"]
    places, waiting = int(settings["max_inflight"]), int(settings["WATCHDOG_MAX_QUEUE"])
    assert places == int(resources["limits"]["cpu"])
    (tmp,) = [each["emptyDir"] for each in pod_spec()["volumes"] if "emptyDir" in each]
    assert "medium" not in tmp, "a tmpfs would count as memory"
    inputs = 2 * (places + waiting) * parse_size_bytes(settings["WATCHDOG_MAX_INPUT_SIZE"])
    outputs = 2 * places * parse_size_bytes(settings["WATCHDOG_MAX_OUTPUT_SIZE"])
    tmp_bytes = parse_size_bytes(tmp["sizeLimit"])
    assert inputs + outputs + (16 << 20) < tmp_bytes < parse_size_bytes(resources["limits"]["ephemeral-storage"])
    assert SERVER_BYTES + places * (200 << 20) <= parse_size_bytes(resources["limits"]["memory"])


def test_the_pod_has_no_rights() -> None:
    """The level ``restricted`` of Kubernetes' Pod Security Standards requires this, except the read-only root."""
    spec = pod_spec()
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "fsGroup": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


# ---- at work


def files() -> dict[str, str]:
    data = one(FUNCTION, "ConfigMap")["data"]
    return {str(name): str(text) for name, text in data.items()}


def test_the_program_knows_the_settings(tmp_path: Path) -> None:
    config = tmp_path / "config"
    pod.write_config_map(config, files())
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WATCHDOG_")}
    environ |= {"WATCHDOG_SCRIPT_PATH": str(config / "script.sh"), "TMPDIR": str(tmp_path)}
    environ |= {"WATCHDOG_SERVICE_DEFINITION": str(config / "function_config.yaml")}
    done = subprocess.run(
        [sys.executable, "-m", "watchdog", "check"], env=environ | environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in environment():
        assert re.search(rf"^\w+ .* environment {name}\s*$", done.stdout, re.MULTILINE), f"{name} is not read"


@pytest.fixture
def serve(start_server: StartServer, tmp_path: Path) -> Callable[..., RunningServer]:
    def serve(script: str | None = None, **environ: str) -> RunningServer:
        """Start the server in a container as the manifest describes it, with the manifest's script or another one."""
        (tmp,) = [each["emptyDir"] for each in pod_spec()["volumes"] if "emptyDir" in each]
        prefix = pod.prefix(
            tmp_path / "pod",
            files() | ({"script.sh": script} if script is not None else {}),
            tmp_bytes=parse_size_bytes(tmp["sizeLimit"]),
            user=pod_spec()["securityContext"]["runAsUser"],
        )
        # The defaults of the program, in place of the values that the servers of other tests have.
        defaults = {"TMPDIR": "/tmp", "WATCHDOG_SCRIPT_PATH": "/oscar/config/script.sh"}
        return start_server(None, prefix=prefix, has_logs=False, **defaults, **environment(), **environ)

    return serve


def probe(server: RunningServer, name: str) -> int:
    """Return the status that the kubelet gets for a probe of the manifest."""
    path = container()[name]["httpGet"]["path"]
    return server.call(None, path, "GET", {"User-Agent": "kube-probe/1.34"}).status


def test_the_function_of_the_config_map_works(serve: Callable[..., RunningServer]) -> None:
    server = serve()
    answer = server.call(b"abc", "/?input=raw")
    assert (answer.status, answer.body) == (
        200,
        b"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n",
    )
    assert [probe(server, name) for name in ("startupProbe", "readinessProbe", "livenessProbe")] == [200] * 3
    limit = parse_size_bytes(environment()["WATCHDOG_MAX_INPUT_SIZE"])
    assert server.call(bytes(limit + 1), headers={"Content-Type": "image/x"}).status == 413


def test_a_pod_whose_model_is_still_loading_is_alive_and_gets_no_calls(serve: Callable[..., RunningServer]) -> None:
    server = serve("#!/bin/sh\nwhile :; do sleep 1; done\n", WATCHDOG_WARM="1")
    assert probe(server, "startupProbe") == 503
    assert probe(server, "livenessProbe") == 200


def test_a_pod_whose_script_cannot_be_started_never_gets_calls(serve: Callable[..., RunningServer]) -> None:
    server = serve("#!/no/such/interpreter\n")
    assert probe(server, "startupProbe") == 503
