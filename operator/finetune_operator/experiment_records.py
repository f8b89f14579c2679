"""What is remembered of an experiment and of its trials.

Invariant: as in ``records``: frozen, a function of one version of an object, and small once it has finished: of a
finished experiment neither its tables nor its trials' statuses are kept.
"""

from dataclasses import dataclass

from pydantic_core import to_json

from finetune_api.experiment import ExperimentPhase
from finetune_api.status import ConditionType
from finetune_operator.kinds import FINE_TUNE_EXPERIMENT
from finetune_operator.pods import Raw
from finetune_operator.records import KEPT_METADATA, map_of, owner_reference, version_of
from finetune_operator.schedule import Key

_FINISHED = (ExperimentPhase.SUCCEEDED, ExperimentPhase.FAILED)
_TABLES = ("variants", "trialTable")


@dataclass(frozen=True, slots=True)
class ExperimentRecord:
    """A FineTuneExperiment."""

    uid: str
    version: int
    generation: int
    """Of its spec."""
    phase: str
    is_deleting: bool
    is_finished: bool
    """Concluded or failed."""
    prunes: bool
    """It ends trials by what they say on the way."""
    document: bytes
    """The object as JSON, with only the metadata that matters; without its tables once it has finished."""


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """A FineTuneJob that belongs to an experiment."""

    uid: str
    version: int
    owner: str
    """Uid of its experiment."""
    standing: tuple[object, ...]
    """What its experiment should look at when it changes."""
    evaluations: int
    """How many its status tells of."""
    document: bytes | None
    """The job as JSON; None once its experiment has finished."""


def record_experiment(raw: Raw) -> ExperimentRecord:
    """The record of a FineTuneExperiment."""
    metadata, spec, status = raw["metadata"], map_of(raw.get("spec")), map_of(raw.get("status"))
    phase = str(status.get("phase") or ExperimentPhase.PENDING)
    finished = phase in _FINISHED
    kept = {name: value for name, value in status.items() if not (finished and name in _TABLES)}
    document = {name: raw[name] for name in ("apiVersion", "kind", "spec") if name in raw}
    document["metadata"] = {name: metadata[name] for name in KEPT_METADATA if name in metadata}
    return ExperimentRecord(
        uid=metadata["uid"],
        version=version_of(raw),
        generation=metadata.get("generation") or 0,
        phase=phase,
        is_deleting="deletionTimestamp" in metadata,
        is_finished=finished,
        prunes=map_of(spec.get("search")).get("pruner") is not None,
        document=to_json(document | ({"status": kept} if kept else {})),
    )


def record_trial(raw: Raw, owner: str, document: bytes | None) -> TrialRecord:
    """The record of a job as a trial of the experiment with the uid ``owner``."""
    metadata, spec, status = raw["metadata"], map_of(raw.get("spec")), map_of(raw.get("status"))
    phase = status.get("phase")
    ended = phase if phase in _FINISHED else None
    return TrialRecord(
        uid=metadata["uid"],
        version=version_of(raw),
        owner=owner,
        standing=(metadata["uid"], ended, bool(spec.get("suspend")), bool(spec.get("stop")), _refusal(status)),
        evaluations=len(status.get("evaluations") or ()),
        document=document,
    )


def _refusal(status: Raw) -> str | None:
    """Why a job is not accepted."""
    for one in status.get("conditions") or ():
        if one.get("type") == ConditionType.ACCEPTED and one.get("status") == "False":
            return str(one.get("message"))
    return None


def experiment_key(namespace: str, name: str) -> Key:
    """The key of an experiment."""
    return Key(namespace, name, FINE_TUNE_EXPERIMENT.name)


def experiment_of(raw: Raw) -> tuple[Key, str] | None:
    """Key and uid of the experiment that a job belongs to; None of a job that belongs to none."""
    owner = owner_reference(raw)
    if owner is None or owner.get("kind") != FINE_TUNE_EXPERIMENT.name:
        return None
    return experiment_key(raw["metadata"]["namespace"], owner["name"]), owner["uid"]
