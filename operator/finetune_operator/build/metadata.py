"""Metadata that all children of a job have."""

from typing import Any

from finetune_operator.names import job_labels
from finetune_operator.resolved import Resolved


def build_metadata(resolved: Resolved, name: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    """Name, namespace, labels (those of the job if none are given) and owner of a child.

    The owner is left out of a job that no cluster knows: Kubernetes deletes at once what an unknown uid owns.
    """
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": resolved.namespace,
        "labels": job_labels(resolved.name) if labels is None else labels,
    }
    return metadata if resolved.uid is None else {**metadata, "ownerReferences": [_owner(resolved)]}


def _owner(resolved: Resolved) -> dict[str, Any]:
    """The job, whose deletion deletes the child. blockOwnerDeletion would need a right to the job's finalizers."""
    job = resolved.job
    return {
        "apiVersion": job.api_version,
        "kind": job.kind,
        "name": resolved.name,
        "uid": resolved.uid,
        "controller": True,
    }
