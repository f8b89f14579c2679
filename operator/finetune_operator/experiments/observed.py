"""What is seen of an experiment, and what a plan may ask for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from finetune_api.experiment import ExperimentStatus, FineTuneExperiment
from finetune_api.job import FineTuneJob


@dataclass(frozen=True)
class ObservedExperiment:
    """Everything that a decision is made from."""

    experiment: FineTuneExperiment
    """As stored, with its status."""
    now: datetime
    jobs: Mapping[str, FineTuneJob] = field(default_factory=dict)
    """Its trials' jobs by name, with their statuses."""
    interrupted: bool = False
    """The command that runs it was asked to stop (local machine)."""
    refusal: str | None = None
    """Why it may not run as it is."""
    obstacle: str | None = None
    """Why the cluster did not take what was planned just now; that is tried again."""
    names: frozenset[str] = frozenset()
    """Names of its trials' jobs of which nothing more is known, for it has finished."""

    @property
    def status(self) -> ExperimentStatus:
        """Its status; that of a new experiment if it has none."""
        return self.experiment.status or ExperimentStatus()

    @property
    def generation(self) -> int:
        """Generation of the spec; 0 where none is counted (local machine)."""
        return int((self.experiment.metadata.model_extra or {}).get("generation", 0))


@dataclass(frozen=True)
class ExperimentPlan:
    """What shall be done now. An empty plan says that everything is as it should be."""

    create: tuple[FineTuneJob, ...] = ()
    """Jobs to make; where one exists already, nothing."""
    change: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Mutable fields to set, by the job's name: ``suspend`` or ``stop``."""
    delete: tuple[str, ...] = ()
    """Jobs to delete, with all that is theirs."""
    delete_experiment: bool = False
    """Its time has come (``ttlSecondsAfterFinished``)."""
    status: ExperimentStatus | None = None
    """The status to write; None if it is as written."""
    look_again_seconds: float | None = None
    """When to look again, even if nothing happens meanwhile; None for never."""

    @property
    def is_empty(self) -> bool:
        """Nothing to do and nothing to write."""
        return not (self.create or self.change or self.delete or self.delete_experiment or self.status)
