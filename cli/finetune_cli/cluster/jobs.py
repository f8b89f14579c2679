"""Jobs of a cluster as the command knows them.

Invariant: a job that a newer operator has written can be read: fields that this version does not know are passed by.
"""

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from finetune_api.base import DNS_LABEL
from finetune_api.errors import FORMATS, SpecError, faults_of, field_model, field_names
from finetune_api.job import FineTuneJob
from finetune_api.load import parse_job
from finetune_api.outcomes import ExitCode
from finetune_api.status import Condition, ConditionType, JobStatus, Phase
from finetune_cli.cluster.api import Cluster
from finetune_cli.cluster.errors import ClusterError
from finetune_operator.conditions import condition
from finetune_operator.kinds import FINE_TUNE_JOB
from finetune_operator.pods import parse_time

Status = TypeVar("Status", bound=BaseModel)
_DECIDING = {
    Phase.SUSPENDED: ConditionType.SUSPENDED,
    Phase.SUCCEEDED: ConditionType.SUCCEEDED,
    Phase.FAILED: ConditionType.FAILED,
}
"""Of all other phases ``Running`` tells."""


@dataclass(frozen=True)
class KnownJob:
    """A FineTuneJob of a cluster."""

    name: str
    namespace: str
    uid: str
    version: str
    """resourceVersion"""
    created: datetime | None
    is_current: bool
    """The status speaks of the present spec."""
    suspend: bool
    """What spec.suspend says."""
    status: JobStatus
    job: FineTuneJob | None
    """None if its spec is not one that this version knows."""

    @property
    def deciding(self) -> Condition | None:
        """The condition that says where the job stands; None if the operator has not seen it."""
        accepted = condition(self.status, ConditionType.ACCEPTED)
        if accepted is not None and accepted.status == "False":
            return accepted
        return condition(self.status, _DECIDING.get(self.status.phase, ConditionType.RUNNING))

    @property
    def is_finished(self) -> bool:
        """Succeeded or failed."""
        return self.status.phase in (Phase.SUCCEEDED, Phase.FAILED)


def read_known_job(cluster: Cluster, name: str) -> KnownJob:
    """The job of this name.

    Raises:
        ClusterError: There is none (66, with the nearest name), or no way to it.
    """
    if not re.match(DNS_LABEL, name):
        raise ClusterError(ExitCode.BAD_SPEC, f"{name}: is no job's name; a name {FORMATS[DNS_LABEL]}")
    try:
        return know(cluster.get(FINE_TUNE_JOB, name))
    except ClusterError as error:
        if error.code is not ExitCode.NOT_FOUND:
            raise
        told = f"there is no FineTuneJob {name} in namespace {cluster.namespace}{_hint(cluster, name)}"
        raise ClusterError(ExitCode.NOT_FOUND, told, error.status) from error


def _hint(cluster: Cluster, name: str) -> str:
    try:
        names = [item["metadata"]["name"] for item in cluster.read_all(FINE_TUNE_JOB, cluster.namespace)["items"]]
    except ClusterError:  # who may get one job may perhaps not list them
        return ""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]}?"
    return "; finetune status lists those that are there" if names else ", nor any other; -n names another one"


def know(raw: Mapping[str, Any]) -> KnownJob:
    """The job in an answer of the API server.

    Raises:
        ClusterError: Its status is not one that this version knows; exit code 65.
    """
    metadata, spec = raw["metadata"], raw.get("spec") or {}
    bare: dict[str, Any] = {name: value for name, value in raw.items() if name != "status"}
    status = read_status(metadata["name"], raw.get("status") or {}, JobStatus)
    return KnownJob(
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        created=parse_time(metadata.get("creationTimestamp")),
        is_current=status.observed_generation == metadata.get("generation", 0),
        suspend=spec.get("suspend") is True,
        status=status,
        job=_job(bare, status),
    )


def read_status(name: str, raw: Mapping[str, Any], model: type[Status]) -> Status:
    """The status of the object ``name``, less what this version does not know.

    Raises:
        ClusterError: It is not one that this version knows; exit code 65.
    """
    try:
        return model.model_validate_json(json.dumps(without_unknown(raw, model)), by_name=False)
    except ValidationError as error:
        fault = faults_of(error, model)[0]
        told = f"{name}: its status is of another version of the operator (status.{fault}); bring this one up to date"
        raise ClusterError(ExitCode.BAD_DATA, told) from error


def _job(raw: Mapping[str, Any], status: JobStatus) -> FineTuneJob | None:
    try:
        return parse_job(without_unknown(raw, FineTuneJob)).model_copy(update={"status": status})
    except SpecError:
        return None


def without_unknown(value: Any, model: type[BaseModel] | None) -> Any:
    """The value without the fields that ``model`` does not have, at any depth."""
    if model is None:
        return value
    if isinstance(value, list):
        return [without_unknown(item, model) for item in value]
    if isinstance(value, Mapping):
        names = set(field_names(model, ()))
        return {name: without_unknown(item, field_model(model, name)) for name, item in value.items() if name in names}
    return value
