"""Experiments of a cluster as the command knows them; of jobs see ``finetune_cli.cluster.jobs``."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetune_api.errors import SpecError
from finetune_api.experiment import ExperimentPhase, ExperimentStatus, FineTuneExperiment
from finetune_api.experiment_checks import LABEL_EXPERIMENT
from finetune_api.job import FineTuneJob
from finetune_api.load import parse_experiment_fields
from finetune_api.outcomes import ExitCode
from finetune_cli.cluster.api import Cluster
from finetune_cli.cluster.errors import ClusterError
from finetune_cli.cluster.jobs import KnownJob, know, read_known_job, read_status, without_unknown
from finetune_operator.kinds import FINE_TUNE_EXPERIMENT, FINE_TUNE_JOB
from finetune_operator.pods import parse_time
from finetune_operator.records import owner_of


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

    @property
    def suspend(self) -> bool:
        """What spec.suspend says."""
        return self.spec.get("suspend") is True

    @property
    def is_finished(self) -> bool:
        """Concluded or failed."""
        return self.status.phase in (ExperimentPhase.SUCCEEDED, ExperimentPhase.FAILED)


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


def read_known(cluster: Cluster, name: str) -> KnownJob | KnownExperiment:
    """The job of this name, or else the experiment.

    Raises:
        ClusterError: There is neither (66, with the nearest job's name), or no way to it.
    """
    try:
        return read_known_job(cluster, name)
    except ClusterError as error:
        if error.code is not ExitCode.NOT_FOUND:
            raise
        found = _find_experiment(cluster, name)
        if found is None:
            raise
        return found


def _find_experiment(cluster: Cluster, name: str) -> KnownExperiment | None:
    """None if there is none, or who may read jobs may not read experiments."""
    try:
        return know_experiment(cluster.get(FINE_TUNE_EXPERIMENT, name))
    except ClusterError as error:
        if error.code in (ExitCode.NOT_FOUND, ExitCode.DENIED, ExitCode.PLATFORM):
            return None
        raise


def read_trials(cluster: Cluster, known: KnownExperiment) -> dict[str, FineTuneJob]:
    """The experiment's jobs by name, with their statuses; those of another version are left out.

    Raises:
        ClusterError: They cannot be read.
    """
    selector = f"{LABEL_EXPERIMENT}={known.name}"
    items = cluster.read_all(FINE_TUNE_JOB, cluster.namespace, labelSelector=selector)["items"]
    jobs = {item["metadata"]["name"]: know(item).job for item in items if owner_of(item) == known.uid}
    return {name: job for name, job in jobs.items() if job is not None}


def parsed(known: KnownExperiment) -> FineTuneExperiment:
    """The experiment whole, with its status.

    Raises:
        ClusterError: Its spec is not one that this version knows; exit code 65.
    """
    metadata = {"name": known.name, "namespace": known.namespace}
    document = {"apiVersion": FINE_TUNE_EXPERIMENT.api_version, "kind": FINE_TUNE_EXPERIMENT.name, "metadata": metadata}
    try:
        experiment = parse_experiment_fields(without_unknown({**document, "spec": known.spec}, FineTuneExperiment))
    except SpecError as error:
        told = f"{known.name}: its spec is not one that this version knows: {error}"
        raise ClusterError(ExitCode.BAD_DATA, told) from error
    return experiment.model_copy(update={"status": known.status})
