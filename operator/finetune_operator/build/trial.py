"""The FineTuneJob of a trial."""

from typing import Any

from finetune_api.experiment import FineTuneExperiment
from finetune_api.job import FineTuneJob
from finetune_operator.names import managed_labels


def build_trial(experiment: FineTuneExperiment, job: FineTuneJob) -> dict[str, Any]:
    """The job, owned by its experiment, whose deletion deletes it."""
    extra = job.metadata.model_extra or {}
    return {
        "apiVersion": job.api_version,
        "kind": job.kind,
        "metadata": {
            "name": job.metadata.name,
            "namespace": job.metadata.namespace,
            "labels": {**managed_labels(), **extra.get("labels", {})},
            "ownerReferences": [_owner(experiment)],
        },
        "spec": job.spec.to_wire(),
    }


def _owner(experiment: FineTuneExperiment) -> dict[str, Any]:
    return {
        "apiVersion": experiment.api_version,
        "kind": experiment.kind,
        "name": experiment.metadata.name,
        "uid": (experiment.metadata.model_extra or {})["uid"],
        "controller": True,
    }
