"""On which nodes the workers of an attempt run."""

from typing import Any

from finetune_api.runtime import Toleration
from finetune_operator.names import LABEL_ATTEMPT, LABEL_JOB
from finetune_operator.resolved import Resolved

_NODE = "kubernetes.io/hostname"


def build_placement(resolved: Resolved, attempt: int) -> dict[str, Any]:
    """The fields of a pod's spec that the scheduler reads, but for resources; only those that say something."""
    placement = resolved.runtime.placement
    fields: dict[str, Any] = {
        "nodeSelector": dict(sorted(placement.node_selector.items())),
        "tolerations": [_toleration(one) for one in placement.tolerations],
        "schedulerName": placement.scheduler_name,
        "priorityClassName": resolved.spec.priority_class,
        **_togetherness(resolved, attempt),
    }
    return {name: value for name, value in fields.items() if value}


def _togetherness(resolved: Resolved, attempt: int) -> dict[str, Any]:
    """How near to each other workers are placed.

    A volume that attaches to one node must have all of them there; it is the one hard rule, since without it they would
    wait for the volume for ever. Near each other or apart is a wish: a worse placement is better than none.
    """
    spread, workers = resolved.runtime.placement.spread, resolved.spec.distributed.workers
    if workers == 1:
        return {}
    term = {"labelSelector": _selector(resolved, attempt), "topologyKey": _NODE}
    if resolved.volume.size is not None and resolved.access_mode == "ReadWriteOnce":
        return {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}
    if spread == "pack":
        wish = {"weight": 100, "podAffinityTerm": term}
        return {"affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [wish]}}}
    if spread == "spread":
        return {"topologySpreadConstraints": [{**term, "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway"}]}
    return {}


def _selector(resolved: Resolved, attempt: int) -> dict[str, Any]:
    return {"matchLabels": {LABEL_JOB: resolved.name, LABEL_ATTEMPT: str(attempt)}}


def _toleration(toleration: Toleration) -> dict[str, str]:
    return {name: value for name, value in toleration.to_wire().items() if value}
