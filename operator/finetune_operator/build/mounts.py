"""Volumes of a worker, and where they are mounted.

Invariant: a claim is one volume, however many roles it plays (two volumes of one claim keep a pod from starting,
https://github.com/kubernetes/kubernetes/issues/132921); one that no role writes to is read-only for the whole pod, so
that the kubelet leaves its files' owners alone and a volume in ReadOnlyMany mode attaches to every node.
"""

from typing import Any

from finetune_operator.names import ANNOTATION_SPEC
from finetune_operator.quantity import canonical_quantity
from finetune_operator.resolved import Resolved

RUN = "/finetune/run"
"""The run's folder."""
SPEC = "/finetune/spec"
"""Holds SPEC_FILE."""
SPEC_FILE = "job.json"
SCRATCH = "/finetune/scratch"
"""The worker's own; it goes with the pod. The home folder as well, for what insists on one."""
MODELS = "/finetune/models"
"""The runtime's model cache."""
SHARED_CACHE = "/finetune/cache"
"""What all trials of an experiment share: data that is ready for the model, and models of a hub."""
CLAIMS = "/volumes"
"""Claims that sources name, each below its name."""


def build_volumes(resolved: Resolved) -> list[dict[str, Any]]:
    """The pod's volumes."""
    written = {resolved.run_claim, resolved.runtime.model_cache}
    claims = [_claim_volume(name, claim, claim in written) for claim, name in _claim_volumes(resolved).items()]
    annotation = {"fieldPath": f"metadata.annotations['{ANNOTATION_SPEC}']"}
    size = canonical_quantity(resolved.runtime.shared_memory)
    return [
        {"name": "spec", "downwardAPI": {"items": [{"path": SPEC_FILE, "fieldRef": annotation}]}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": size}},
        *claims,
    ]


def build_mounts(resolved: Resolved) -> list[dict[str, Any]]:
    """Where the container has them."""
    volumes, cache = _claim_volumes(resolved), resolved.runtime.model_cache
    models = [] if cache is None else [{"name": volumes[cache], "mountPath": MODELS}]
    shared = (
        []
        if resolved.cache_claim is None
        else [{"name": volumes[resolved.cache_claim], "mountPath": SHARED_CACHE, "subPath": resolved.cache_folder}]
    )
    sources = [
        {"name": volumes[claim], "mountPath": f"{CLAIMS}/{claim}", "readOnly": True} for claim in resolved.source_claims
    ]
    return [
        {"name": "spec", "mountPath": SPEC, "readOnly": True},
        {"name": "scratch", "mountPath": SCRATCH},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a folder of the container
        {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 - likewise
        {"name": volumes[resolved.run_claim], "mountPath": RUN, "subPath": resolved.run_folder},
        *shared,
        *models,
        *sources,
    ]


def _claim_volumes(resolved: Resolved) -> dict[str, str]:
    """Name of the volume of each claim: by number, for a claim's own name may be too long for one."""
    cache = resolved.runtime.model_cache
    claims = (resolved.run_claim, *([] if cache is None else [cache]), *resolved.source_claims)
    return {claim: f"claim-{number}" for number, claim in enumerate(dict.fromkeys(claims))}


def _claim_volume(name: str, claim: str, is_written: bool) -> dict[str, Any]:
    read_only = {} if is_written else {"readOnly": True}
    return {"name": name, "persistentVolumeClaim": {"claimName": claim, **read_only}}
