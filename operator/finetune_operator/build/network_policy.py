"""The NetworkPolicy of a job: who may reach its workers, and what they may reach.

Invariant: workers of a job reach each other on every port (NCCL and gloo choose their own); nobody else reaches them,
but for their progress.
"""

from typing import Any

from finetune_operator.build.metadata import build_metadata
from finetune_operator.names import LABEL_JOB, PROGRESS_PORT, network_policy_name
from finetune_operator.resolved import Resolved

_DNS_PORT = 53


def build_network_policy(resolved: Resolved, progress_readers: tuple[str, ...]) -> dict[str, Any]:
    """The policy of all attempts of a job.

    Args:
        resolved: The job.
        progress_readers: Namespaces that may read the workers' progress: the operator's and the monitoring's.
    """
    egress = _egress(resolved)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": build_metadata(resolved, network_policy_name(resolved.name)),
        "spec": {
            "podSelector": _workers(resolved),
            "policyTypes": ["Ingress"] if egress is None else ["Ingress", "Egress"],
            "ingress": [{"from": [_peers(resolved)]}, *_reading(progress_readers)],
            **({} if egress is None else {"egress": egress}),
        },
    }


def _egress(resolved: Resolved) -> list[dict[str, Any]] | None:
    """What workers may reach; None for everything.

    DNS is told by its port alone: where it is served from differs by cluster, and a node's own cache has no pod.
    """
    if resolved.runtime.egress == "all":
        return None
    to_peers = {"to": [_peers(resolved)]}
    to_dns = {"ports": [{"port": _DNS_PORT, "protocol": protocol} for protocol in ("UDP", "TCP")]}
    return [to_peers] if resolved.runtime.egress == "none" else [to_peers, to_dns]


def _reading(progress_readers: tuple[str, ...]) -> list[dict[str, Any]]:
    if not progress_readers:
        return []
    named = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": list(progress_readers)}
    reader = {"namespaceSelector": {"matchExpressions": [named]}}
    return [{"from": [reader], "ports": [{"port": PROGRESS_PORT, "protocol": "TCP"}]}]


def _peers(resolved: Resolved) -> dict[str, Any]:
    return {"podSelector": _workers(resolved)}


def _workers(resolved: Resolved) -> dict[str, Any]:
    return {"matchLabels": {LABEL_JOB: resolved.name}}
