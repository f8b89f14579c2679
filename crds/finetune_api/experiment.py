"""FineTuneExperiment: which way of fine-tuning is better, and by how much; every trial is a FineTuneJob.

What the fields cannot say of themselves (overrides, names, metrics) is checked in ``experiment_checks``.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import (
    API_VERSION,
    ApiModel,
    Count,
    Name,
    PositiveCount,
    Rule,
    Steps,
    Unique,
    Word,
    exactly_one,
)
from finetune_api.experiment_status import (
    MAX_TRIALS,
    BestTrial,
    Difference,
    ExperimentCondition,
    ExperimentConditionType,
    ExperimentPhase,
    ExperimentReason,
    ExperimentStatus,
    Settings,
    TrialCounts,
    TrialStatus,
    VariantStatus,
)
from finetune_api.job import JobSpec, Metadata

__all__ = [
    "EXPERIMENT_MUTABLE_FIELDS",
    "MAX_TRIALS",
    "BestTrial",
    "Categorical",
    "Difference",
    "ExperimentCondition",
    "ExperimentConditionType",
    "ExperimentPhase",
    "ExperimentReason",
    "ExperimentSpec",
    "ExperimentStatus",
    "FineTuneExperiment",
    "IntegerRange",
    "LogUniform",
    "Objective",
    "Parameter",
    "Pruner",
    "Search",
    "Settings",
    "TrialCounts",
    "TrialStatus",
    "Uniform",
    "Variant",
    "VariantStatus",
    "immutable_experiment_changes",
]

FIELD_PATH = r"^[a-zA-Z][-a-zA-Z0-9_]*(\.[-a-zA-Z0-9_]+)*$"
FieldPath = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=FIELD_PATH)]
"""A field of a job's spec, as ``strategy.learningRate.value``."""


class Variant(ApiModel):
    """One way of fine-tuning: the template with some fields set otherwise."""

    name: Name
    """What it is called in tables, and in the names of its jobs."""
    set: Settings = {}  # noqa: RUF012 - pydantic copies it
    """Fields of the template's spec and their values, for example `strategy.lora: {r: 8}`. A value replaces what was
    there as a whole; null unsets the field."""


class Uniform(ApiModel):
    """A number, every one as likely."""

    low: float
    """Least value."""
    high: float
    """Greatest value."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("self.low < self.high", lambda range_: range_.low < range_.high, "must be above low", "high"),
    )


class LogUniform(ApiModel):
    """A number whose logarithm is uniform: as likely between 1e-5 and 1e-4 as between 1e-4 and 1e-3."""

    low: Annotated[float, Field(gt=0)]
    """Least value."""
    high: Annotated[float, Field(gt=0)]
    """Greatest value."""

    rules: ClassVar[tuple[Rule, ...]] = Uniform.rules


class IntegerRange(ApiModel):
    """A whole number."""

    low: Steps
    """Least value."""
    high: Steps
    """Greatest value; it may be drawn."""
    step: PositiveCount = 1
    """Distance of the values."""
    log: bool = False
    """Whether its logarithm is uniform."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *Uniform.rules,
        Rule(
            "!self.log || (self.step == 1 && self.low > 0)",
            lambda range_: not range_.log or (range_.step == 1 and range_.low > 0),
            "needs low ≥ 1 and step 1",
            "log",
        ),
    )


class Categorical(ApiModel):
    """One of several values, which have no order."""

    choices: Annotated[tuple[Any, ...], Field(min_length=1, max_length=64)]
    """The values: numbers, strings, true or false."""


class Parameter(ApiModel):
    """One field that a search varies, and what it may be."""

    field: FieldPath
    """Field of the template's spec, for example `strategy.learningRate.value`."""
    uniform: Uniform | None = None
    """A number, every one as likely."""
    log_uniform: LogUniform | None = None
    """A number, every order of magnitude as likely."""
    int_range: IntegerRange | None = None
    """A whole number."""
    categorical: Categorical | None = None
    """One of several values."""

    rules: ClassVar[tuple[Rule, ...]] = (exactly_one("uniform", "logUniform", "intRange", "categorical"),)


class Pruner(ApiModel):
    """Ends trials without hope: those worse than others were at the same step.

    The rule of Vizier (https://dl.acm.org/doi/10.1145/3097983.3098043) with any percentile: a trial ends at an
    evaluation if its best value so far is worse than this percentile of the others' values at that step.
    """

    percentile: Annotated[float, Field(gt=0, lt=100)] = 50
    """Share of the trials, in percent, that are good enough to go on; 50 is the median rule."""
    startup_trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] = 5
    """Finished trials before the first one is ended."""
    warmup_evaluations: Annotated[int, Field(ge=0, le=32)] = 1
    """Evaluations of each trial before it may be ended."""


class Search(ApiModel):
    """Looks for the best values of some fields (https://optuna.org); every proposal is a variant of its own."""

    parameters: Annotated[tuple[Parameter, ...], Field(min_length=1, max_length=32), Unique("field", ordered=True)]
    """Fields to vary."""
    sampler: Literal["tpe", "random"] = "tpe"
    """`tpe` proposes what earlier proposals make promising
    (https://papers.nips.cc/paper/4443-algorithms-for-hyper-parameter-optimization); `random` draws blindly."""
    startup_proposals: Annotated[int, Field(ge=1, le=MAX_TRIALS)] = 10
    """Proposals that `tpe` draws blindly before it looks at results."""
    pruner: Pruner | None = None
    """Ends trials without hope early. Unset: every trial runs to its end."""
    proposals: Annotated[int, Field(ge=1, le=MAX_TRIALS)] = 20
    """How many are tried, at most."""
    minutes: Annotated[float, Field(gt=0, le=1e7)] | None = None
    """Minutes of training, all trials together, after which nothing more is proposed. Unset: no limit."""
    seed: Count = 0
    """Seed of the proposals."""


class Objective(ApiModel):
    """What the trials are compared by."""

    metric: Word
    """A metric of the task. Variants are compared by it on the test set; a search goes by the best value on the
    validation set, so that the test set stays unseen."""
    mode: Literal["max", "min"] | None = None
    """Whether more or less is better. Unset: as the metric has it."""


class ExperimentSpec(ApiModel):
    """What is compared, over how many seeds, and by what."""

    template: JobSpec
    """The spec of every trial, before its variant's fields and its seed are set."""
    variants: (
        Annotated[tuple[Variant, ...], Field(min_length=2, max_length=64), Unique("name", ordered=True)] | None
    ) = None
    """The ways to compare. The first one is what all others are compared to."""
    search: Search | None = None
    """A search for good values, instead of variants."""
    seeds: Annotated[tuple[Count, ...], Field(min_length=1, max_length=64), Unique(ordered=True)] = (0,)
    """`training.seed` of the trials: every variant is trained once with each. To tell a difference takes two at least,
    and rather five."""
    objective: Objective
    """What the trials are compared by."""
    parallelism: Annotated[int, Field(ge=1, le=MAX_TRIALS)] = 1
    """Trials that run at the same time, at most. Mutable."""
    max_failed_trials: Count = 3
    """Trials that may fail; with one more the experiment has failed. Mutable."""
    promote: Literal["keepAll", "keepBest"] = "keepAll"
    """What becomes of the trained models once it is concluded: all are kept, or only the best trial's. Mutable."""
    suspend: bool = False
    """Save, stop every trial and hold no resources until this is false again. Mutable."""
    ttl_seconds_after_finished: Count | None = None
    """Seconds after the end at which the experiment and its jobs are deleted. Unset: never. Mutable."""

    rules: ClassVar[tuple[Rule, ...]] = (
        exactly_one("variants", "search"),
        Rule(
            "!has(self.template.suspend) || !self.template.suspend",
            lambda spec: not spec.template.suspend,
            "belongs to the experiment: use spec.suspend",
            "template.suspend",
        ),
        Rule(
            "!has(self.template.stop) || !self.template.stop",
            lambda spec: not spec.template.stop,
            "would end every trial; leave it out",
            "template.stop",
        ),
        Rule(
            "!has(self.template.ttlSecondsAfterFinished)",
            lambda spec: spec.template.ttl_seconds_after_finished is None,
            "belongs to the experiment: use spec.ttlSecondsAfterFinished",
            "template.ttlSecondsAfterFinished",
        ),
    )


EXPERIMENT_MUTABLE_FIELDS = ("parallelism", "maxFailedTrials", "promote", "suspend", "ttlSecondsAfterFinished")
"""Fields of the spec that may change while the experiment lives. Seeds may not: to add some after a look at the result
until it is significant would make the intervals untrue."""


class FineTuneExperiment(ApiModel):
    """A comparison of ways to fine-tune, or a search for a good one; every trial is a FineTuneJob."""

    api_version: Literal["finetune.dev/v1alpha1"] = API_VERSION  # type: ignore[assignment]
    """`finetune.dev/v1alpha1`"""
    kind: Literal["FineTuneExperiment"] = "FineTuneExperiment"
    """`FineTuneExperiment`"""
    metadata: Metadata
    """Name, namespace, labels."""
    spec: ExperimentSpec
    """What is compared, over how many seeds, and by what. Immutable but for the fields marked mutable."""
    status: ExperimentStatus | None = None
    """What has happened so far, and the answer; written by the operator."""


def immutable_experiment_changes(old: ExperimentSpec, new: ExperimentSpec) -> list[str]:
    """Paths of the immutable fields that differ between two specs, for example ``spec.template``."""
    before, after = old.to_wire(), new.to_wire()
    return [
        f"spec.{name}"
        for name in sorted(before.keys() | after.keys())
        if name not in EXPERIMENT_MUTABLE_FIELDS and before.get(name) != after.get(name)
    ]
