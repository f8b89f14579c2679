"""Experiments as the dashboard knows them; of jobs see ``finetune_cli.cluster.jobs``."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetune_api.experiment import ExperimentStatus
from finetune_cli.cluster.jobs import read_status
from finetune_operator.pods import parse_time


@dataclass(frozen=True)
class KnownExperiment:
    """A FineTuneExperiment, of a cluster or of a folder."""

    name: str
    namespace: str
    uid: str
    version: str
    created: datetime | None
    metric: str
    """What its trials are compared by."""
    spec: Mapping[str, Any]
    status: ExperimentStatus


def know_experiment(raw: Mapping[str, Any]) -> KnownExperiment:
    """The experiment in an answer of the API server; fields that this version does not know are passed by.

    Raises:
        ClusterError: Its status is not one that this version knows; exit code 65.
    """
    metadata, spec = raw["metadata"], raw.get("spec") or {}
    return KnownExperiment(
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        created=parse_time(metadata.get("creationTimestamp")),
        metric=str((spec.get("objective") or {}).get("metric") or ""),
        spec=spec,
        status=read_status(metadata["name"], raw.get("status") or {}, ExperimentStatus),
    )
