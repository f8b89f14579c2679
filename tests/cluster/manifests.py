"""Objects that tests of clusters are made of."""

from typing import Any

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
"""A namespace's label: only pods of Pod Security's `restricted` profile are admitted."""


def indexed_job(
    name: str,
    namespace: str,
    *,
    image: str = "none",
    command: tuple[str, ...] = ("true",),
    completions: int = 2,
    subdomain: str | None = None,
) -> dict[str, Any]:
    """An Indexed Job whose pods the ``restricted`` profile admits."""
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(command),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 5,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        **({"subdomain": subdomain} if subdomain else {}),
    }
    spec = {"completions": completions, "parallelism": completions, "completionMode": "Indexed", "backoffLimit": 0}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec | {"template": {"metadata": {"labels": {"app": name}}, "spec": pod}},
    }


def service(name: str, namespace: str, app: str, *, ports: dict[int, int] | None = None) -> dict[str, Any]:
    """A Service of the pods of ``app``: ``ports`` to theirs, or headless, which names them, ready or not."""
    headless = {"clusterIP": "None", "publishNotReadyAddresses": True}
    balanced = {"ports": [{"port": port, "targetPort": target} for port, target in (ports or {}).items()]}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": app}, **(balanced if ports else headless)},
    }
