"""Check the Kubernetes manifests of the examples with the schemas of a cluster.

A cluster ignores fields that it does not know. Here such a field is an error. ``schemas/README.md`` says where the
schemas come from.
"""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from jsonschema import Draft7Validator

SCHEMAS = Path(__file__).parent / "schemas"
Document = dict[str, Any]


def closed(schema: Document) -> Document:
    """Return a structural schema that refuses all fields that it does not name.

    An object with only ``x-kubernetes-preserve-unknown-fields`` must have no fields, so every field is checked.
    """
    schema = dict(schema)
    if "properties" in schema:
        schema["properties"] = {name: closed(each) for name, each in schema["properties"].items()}
    if isinstance(schema.get("additionalProperties"), dict):
        schema["additionalProperties"] = closed(schema["additionalProperties"])
    elif schema.get("type") == "object":
        schema["additionalProperties"] = False
    if "items" in schema:
        schema["items"] = closed(schema["items"])
    return schema


KUBERNETES = {
    ("v1", "ConfigMap"): "io.k8s.api.core.v1.ConfigMap",
    ("v1", "Secret"): "io.k8s.api.core.v1.Secret",
    ("v1", "Service"): "io.k8s.api.core.v1.Service",
    ("v1", "ServiceAccount"): "io.k8s.api.core.v1.ServiceAccount",
    ("apps/v1", "Deployment"): "io.k8s.api.apps.v1.Deployment",
    ("autoscaling/v2", "HorizontalPodAutoscaler"): "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
    ("batch/v1", "Job"): "io.k8s.api.batch.v1.Job",
    ("policy/v1", "PodDisruptionBudget"): "io.k8s.api.policy.v1.PodDisruptionBudget",
    ("rbac.authorization.k8s.io/v1", "ClusterRole"): "io.k8s.api.rbac.v1.ClusterRole",
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"): "io.k8s.api.rbac.v1.ClusterRoleBinding",
    ("monitoring.coreos.com/v1", "PodMonitor"): "monitoring.coreos.com.v1.PodMonitor",
    ("monitoring.coreos.com/v1", "PrometheusRule"): "monitoring.coreos.com.v1.PrometheusRule",
}


@cache
def schemas() -> dict[tuple[str, str], Draft7Validator]:
    """Return the schema of each apiVersion and kind."""
    # The import takes a second. That is too long for a process that only collects tests.
    from jsonschema import Draft7Validator

    definitions = {
        name: closed(each)
        for file in ("kubernetes-core.json", "prometheus-operator.json")
        for name, each in json.loads((SCHEMAS / file).read_text())["definitions"].items()
    }
    found = {key: {"$ref": f"#/definitions/{name}"} for key, name in KUBERNETES.items()} | _knative_service()
    return {key: Draft7Validator({"allOf": [each], "definitions": definitions}) for key, each in found.items()}


def _knative_service() -> dict[tuple[str, str], Document]:
    meta = {"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
    crd = yaml.safe_load((SCHEMAS / "knative-service.yaml").read_text())
    (version,) = crd["spec"]["versions"]
    service = copy.deepcopy(version["schema"]["openAPIV3Schema"])
    service["properties"]["metadata"] = meta
    template = service["properties"]["spec"]["properties"]["template"]["properties"]
    template["metadata"] = meta
    volume = template["spec"]["properties"]["volumes"]["items"]["properties"]
    volume["emptyDir"] = {"$ref": "#/definitions/io.k8s.api.core.v1.EmptyDirVolumeSource"}
    return {(f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]): closed(service)}


def problems(document: Document) -> list[str]:
    """Return the violations of the schema, and of the rule that a resource has a name."""
    key = (document.get("apiVersion", ""), document.get("kind", ""))
    if key not in schemas():
        return [f"no such resource: {key}"]
    found = [f"{error.json_path}: {error.message}" for error in schemas()[key].iter_errors(document)]
    if not isinstance(document.get("metadata"), dict) or not document["metadata"].get("name"):
        found.append("$.metadata.name: a resource needs a name")
    return found


def documents(path: Path) -> list[Document]:
    return list(yaml.safe_load_all(path.read_text()))


def one(path: Path, kind: str) -> Document:
    (found,) = [each for each in documents(path) if each["kind"] == kind]
    return found
