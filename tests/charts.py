"""Helm for tests: what the chart renders to, with real Helm."""

import contextlib
import functools
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cluster.programs import program

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "helm/finetune-operator"
RELEASE, NAMESPACE = "finetune-operator", "finetune-system"
KUBERNETES = "1.34"


EVERYTHING = {
    "watchNamespaces": ["team-b", "team-a"],
    "image": {"repository": "mirror/operator", "digest": f"sha256:{'0' * 64}"},
    "imagePullSecrets": [{"name": "mirror"}],
    "replicas": 1,
    "logFormat": "json",
    "priorityClassName": "platform",
    "nodeSelector": {"pool": "system"},
    "tolerations": [{"key": "system", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "extraLabels": {"team": "platform"},
    "podAnnotations": {"note": "1"},
    "networkPolicy": {"enabled": True},
    "tenantRoles": {"runtimeReaders": ["system:authenticated"]},
    "trainer": {"image": {"tag": "2"}},
    "defaultRuntime": {"name": "gpu", "spec": {"sharedMemory": "8Gi", "egress": "dns"}},
    "monitoring": {
        "namespaces": ["monitoring"],
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "serviceMonitor": {"enabled": True},
        "trainerPodMonitor": {"enabled": True},
    },
}
VARIANTS = {
    "as it is": {},
    "everything": EVERYTHING,
    "one namespace": {"watchNamespaces": ["team-a"]},
    "a dashboard": {"dashboard": {"enabled": True}},
    "a dashboard of two namespaces": {
        "watchNamespaces": ["team-b", "team-a"],
        "imagePullSecrets": [{"name": "mirror"}],
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"key": "system", "operator": "Exists"}],
        "networkPolicy": {"enabled": True},
        "dashboard": {
            "enabled": True,
            "readers": ["ml-team"],
            "from": [{"ipBlock": {"cidr": "10.0.0.1/32"}}],
            "allowedHosts": ["api.example.com"],
        },
    },
    "nothing beside the operator": {
        "crds": {"enabled": False},
        "tenantRoles": {"enabled": False},
        "defaultRuntime": {"create": False},
        "podDisruptionBudget": {"enabled": False},
        "topologySpreadConstraints": None,
        "serviceAccount": {"create": False, "name": "mine"},
    },
}
"""Values that the chart is tried with."""


class HelmError(Exception):
    """Helm refused; the message is what it said."""


def helm(*arguments: str | Path, values: dict[str, Any] | None = None, env: dict[str, str] | None = None) -> str:
    """What Helm prints; ``values`` are given over the chart's own. Raises ``HelmError``."""
    stdin = None if values is None else yaml.safe_dump(values)
    command = [program("helm"), *arguments, *([] if values is None else ["--values=-"])]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, env=env, timeout=120)
    if done.returncode:
        raise HelmError(done.stderr)
    return done.stdout


@contextlib.contextmanager
def installed(cluster: Any, namespace: str, values: dict[str, Any]) -> Iterator[None]:
    """Within: a release with these values, whose pods are ready; no trace of it afterwards, however far it came."""
    env = os.environ | {"KUBECONFIG": str(cluster.kubeconfig)}
    try:
        helm("install", RELEASE, CHART, "-n", namespace, "--wait", "--timeout=90s", values=values, env=env)
        yield
    finally:
        helm("uninstall", RELEASE, "-n", namespace, "--wait", "--timeout=60s", "--ignore-not-found", env=env)
        cluster.kubectl("delete", "finetuneruntime", "default", "--ignore-not-found")


def rendered(values: dict[str, Any] | None = None, *arguments: str) -> list[dict[str, Any]]:
    """The objects of a release with these values, hooks among them; not to be changed, for others get them as well."""
    return _rendered(json.dumps(values or {}), *arguments)


@functools.cache
def _rendered(values: str, *arguments: str) -> list[dict[str, Any]]:
    text = helm("template", RELEASE, CHART, "--namespace", NAMESPACE, "--kube-version", KUBERNETES, *arguments,
                values=json.loads(values))  # fmt: skip
    return [document for document in yaml.safe_load_all(text) if document]


def found(objects: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    """The one object of this kind (and name)."""
    (one,) = (item for item in objects if item["kind"] == kind and name in (None, item["metadata"]["name"]))
    return one


def pod_of(objects: list[dict[str, Any]], name: str = RELEASE) -> dict[str, Any]:
    """The spec of the operator's pods, or of another Deployment's."""
    return found(objects, "Deployment", name)["spec"]["template"]["spec"]
