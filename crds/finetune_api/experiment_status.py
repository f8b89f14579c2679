"""Status of a FineTuneExperiment: where it stands, every trial, every variant, and the answer."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from finetune_api.base import ApiModel, Count, Name, NonNegativeFloat, Steps, Unique
from finetune_api.status import Path, Phase

MAX_TRIALS = 500
"""Trials of one experiment; its status has a row for each."""
Settings = Annotated[dict[str, Any], Field(max_length=64)]
"""Field → value, as ``strategy.lora.r: 8``. The value takes the place of what was there; null unsets it."""


class ExperimentPhase(StrEnum):
    """Where an experiment stands, in one word for people."""

    PENDING = "Pending"
    """No trial was made yet."""
    SUSPENDED = "Suspended"
    """It holds no resources until `spec.suspend` is false again."""
    RUNNING = "Running"
    """Trials run, or wait for their turn."""
    SUCCEEDED = "Succeeded"
    """Every trial has ended, and the answer is given."""
    FAILED = "Failed"
    """Too many trials have failed."""


class ExperimentConditionType(StrEnum):
    """What can be true or false of an experiment."""

    ACCEPTED = "Accepted"
    """The spec is valid, every variant as a job of its own."""
    SUSPENDED = "Suspended"
    """It was asked to hold no resources."""
    RUNNING = "Running"
    """Trials run, or wait for their turn."""
    STALLED = "Stalled"
    """It has failed (kstatus)."""
    CONCLUDED = "Concluded"
    """The answer is given: the message says which variant is better and by how much, or that nobody can tell."""
    FAILED = "Failed"
    """Too many trials have failed."""


class ExperimentReason(StrEnum):
    """Why a condition of an experiment is what it is."""

    VALID = "Valid"
    """Accepted: nothing is wrong with the spec."""
    INVALID = "Invalid"
    """Not accepted: the message names the field."""
    RUNNING = "Running"
    """Trials run."""
    SUSPENDED_BY_USER = "SuspendedByUser"
    """Suspended: `spec.suspend` is true."""
    INTERRUPTED = "Interrupted"
    """Suspended: the local run was interrupted; the same command goes on."""
    NOT_SUSPENDED = "NotSuspended"
    """Not suspended."""
    DIFFERENCE = "Difference"
    """Concluded: at least one variant differs from the first."""
    NO_DIFFERENCE = "NoDifference"
    """Concluded: no difference can be told at this number of seeds."""
    SEARCHED = "Searched"
    """Concluded: the search's budget is spent."""
    TRIALS_FAILED = "TrialsFailed"
    """Failed: more than `spec.maxFailedTrials` trials have failed."""
    NOT_FINISHED = "NotFinished"
    """Neither concluded nor failed so far."""
    FINISHED = "Finished"
    """Not running any more."""


class ExperimentCondition(ApiModel):
    """One condition, as Kubernetes has them (metav1.Condition)."""

    type: ExperimentConditionType
    """What is said of the experiment."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: ExperimentReason
    """Why, in one word."""
    message: Annotated[str, Field(max_length=4096)] = ""
    """Why, in a sentence."""
    last_transition_time: datetime
    """When `status` last changed."""
    observed_generation: Count = 0
    """Generation of the spec that this was said of."""


class TrialStatus(ApiModel):
    """One trial: a variant with a seed."""

    name: Name
    """Name of its FineTuneJob."""
    variant: Name
    """Its variant."""
    seed: Count
    """Its seed."""
    phase: Phase
    """Where its job stands."""
    pruned: bool = False
    """It was ended early, for it had no hope."""
    value: float | None = None
    """The objective; unset before it is known."""
    best: float | None = None
    """Best value of the watched metric on the validation set so far."""
    step: Steps = 0
    """Optimizer steps done."""
    total_steps: Steps = 0
    """Optimizer steps of the whole run; 0 before they are known."""
    worker_seconds: NonNegativeFloat = 0
    """Seconds that it ran, times its workers."""
    gpu_seconds: NonNegativeFloat = 0
    """Seconds that it ran, times its GPUs."""
    model: Path | None = None
    """Folder of its model, once it has ended with a value."""


class Difference(ApiModel):
    """How a variant differs from the first one, over the seeds that both have."""

    seeds: Count
    """How many seeds both have a value of."""
    mean: float
    """Mean of the differences, this variant's value less the first one's."""
    low: float | None = None
    """Lower end of its 95 % interval (paired, Student's t); unset with fewer than two seeds, or without any spread."""
    high: float | None = None
    """Upper end."""
    p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Probability of such a difference by chance, corrected for the number of variants (Holm)."""
    verdict: Literal["better", "worse", "unknown"] = "unknown"
    """Whether it is better or worse than the first one (p < 0.05), or nobody can tell."""


class VariantStatus(ApiModel):
    """What a variant came to."""

    name: Name
    """The variant."""
    set: Settings = {}  # noqa: RUF012 - pydantic copies it
    """The fields that a search proposed."""
    seeds: Count = 0
    """How many seeds have a value."""
    mean: float | None = None
    """Mean of the objective."""
    std: NonNegativeFloat | None = None
    """Standard deviation over the seeds; unset with fewer than two."""
    low: float | None = None
    """Lower end of the mean's 95 % interval (Student's t)."""
    high: float | None = None
    """Upper end."""
    difference: Difference | None = None
    """Difference to the first variant; unset for the first itself."""
    pruned: Count = 0
    """Trials that were ended early."""
    failed: Count = 0
    """Trials that failed."""
    worker_seconds: NonNegativeFloat = 0
    """Seconds of all its trials, times their workers."""
    gpu_seconds: NonNegativeFloat = 0
    """Seconds of all its trials, times their GPUs."""


class BestTrial(ApiModel):
    """The best trial so far."""

    variant: Name
    """Its variant: the one with the best mean."""
    trial: Name
    """The best of that variant's trials."""
    value: float
    """Its objective."""
    model: Path | None = None
    """Folder of its model."""


class TrialCounts(ApiModel):
    """How many trials there are."""

    total: Count = 0
    """Trials that are planned; for a search the most that there can be."""
    running: Count = 0
    """Trials that are made and have not ended."""
    succeeded: Count = 0
    """Trials that ended with a value."""
    pruned: Count = 0
    """Trials that were ended early."""
    failed: Count = 0
    """Trials that failed."""


class ExperimentStatus(ApiModel):
    """What has happened so far, and the answer."""

    phase: ExperimentPhase = ExperimentPhase.PENDING
    """Where it stands, in one word for people; conditions are the truth."""
    conditions: Annotated[tuple[ExperimentCondition, ...], Field(max_length=8), Unique("type")] = ()
    """Accepted, Suspended, Running, Stalled, Concluded, Failed."""
    observed_generation: Count = 0
    """Generation of the spec that this status speaks of."""
    start_time: datetime | None = None
    """When the first trial was made."""
    completion_time: datetime | None = None
    """When it was concluded or failed."""
    trials: TrialCounts = TrialCounts()
    """How many trials there are."""
    best: BestTrial | None = None
    """The best trial so far."""
    variants: Annotated[tuple[VariantStatus, ...], Field(max_length=MAX_TRIALS)] = ()
    """What each variant came to."""
    trial_table: Annotated[tuple[TrialStatus, ...], Field(max_length=MAX_TRIALS)] = ()
    """Every trial that was made."""
