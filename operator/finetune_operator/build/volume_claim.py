"""The PersistentVolumeClaim of a job that asks for one to be made."""

from typing import Any

from finetune_operator.build.metadata import build_metadata
from finetune_operator.names import volume_claim_name
from finetune_operator.quantity import canonical_quantity
from finetune_operator.resolved import Resolved


def build_volume_claim(resolved: Resolved) -> dict[str, Any] | None:
    """The claim that keeps the run for as long as the job lives; None if the job uses one that is there."""
    volume = resolved.volume
    if volume.size is None:
        return None
    storage_class = {"storageClassName": volume.storage_class_name} if volume.storage_class_name else {}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": build_metadata(resolved, volume_claim_name(resolved.name)),
        "spec": {
            "accessModes": [resolved.access_mode],
            **storage_class,
            "resources": {"requests": {"storage": canonical_quantity(volume.size)}},
        },
    }
