"""FineTuneJob: one fine-tuning run, as its user writes it.

Every field has a default unless it must be said; each says its unit and its range. Cross-field rules are ``Rule``s.
The parts of the spec lie in ``inputs``, ``training`` and ``execution``, and are all to be had from here.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from finetune_api.augmentation import (
    AUGMENTATION_RULES,
    Augmentation,
    BackTranslation,
    ColorJitter,
    Erasing,
    ImageAugmentation,
    Synonyms,
    TextAugmentation,
)
from finetune_api.base import (
    API_VERSION,
    DNS_LABEL,
    ApiModel,
    Count,
    Name,
    ObjectName,
    Rule,
    Source,
)
from finetune_api.cleaning import CLEANING_RULES, Cleaning, LabelNoise, NearDuplicates
from finetune_api.execution import (
    Checkpoint,
    Distributed,
    Hub,
    MaxRestarts,
    MlflowTracking,
    Recovery,
    Resources,
    SecretKey,
    Tracking,
    Volume,
    WandbTracking,
)
from finetune_api.inputs import Columns, DataSpec, ModelSpec, Split
from finetune_api.matching import MATCHING_RULES, Matching
from finetune_api.objective import RULES as OBJECTIVE_RULES
from finetune_api.objective import Distillation, Loss
from finetune_api.status import JobStatus
from finetune_api.task_rules import TASK_RULES
from finetune_api.training import (
    EarlyStopping,
    Evaluation,
    Every,
    Freeze,
    LearningRate,
    Lora,
    Strategy,
    Training,
    Warmup,
)

__all__ = [
    "MUTABLE_FIELDS",
    "Augmentation",
    "BackTranslation",
    "Checkpoint",
    "Cleaning",
    "ColorJitter",
    "Columns",
    "DataSpec",
    "Distillation",
    "Distributed",
    "EarlyStopping",
    "Erasing",
    "Evaluation",
    "Every",
    "FineTuneJob",
    "Freeze",
    "Hub",
    "ImageAugmentation",
    "JobSpec",
    "LabelNoise",
    "LearningRate",
    "Lora",
    "Loss",
    "Matching",
    "MaxRestarts",
    "Metadata",
    "MlflowTracking",
    "ModelSpec",
    "NearDuplicates",
    "Recovery",
    "Resources",
    "SecretKey",
    "Split",
    "Strategy",
    "Synonyms",
    "TaskName",
    "TextAugmentation",
    "Tracking",
    "Training",
    "Volume",
    "WandbTracking",
    "Warmup",
    "immutable_changes",
]

TaskName = Literal[
    "text-classification",
    "text-regression",
    "causal-lm",
    "image-classification",
    "image-text-matching",
    "object-detection",
    "image-captioning",
    "token-classification",
    "sequence-to-sequence",
]


class JobSpec(ApiModel):
    """What to train, on what, and how."""

    runtime: ObjectName = "default"
    """The FineTuneRuntime that says where and with which image pods run."""
    task: TaskName
    """What the model learns to do."""
    model: ModelSpec
    """The model to start from."""
    data: DataSpec
    """The samples."""
    hub: Hub | None = None
    """Access to `hf://` sources that are private or gated."""
    strategy: Strategy = Strategy()
    """What is trained, and how fast."""
    training: Training = Training()
    """The optimization."""
    evaluation: Evaluation = Evaluation()
    """When and by what the model is judged."""
    early_stopping: EarlyStopping | None = None
    """Stop when the metric no longer improves. Unset: never."""
    checkpoint: Checkpoint = Checkpoint()
    """When the state of the run is saved."""
    distributed: Distributed = Distributed()
    """Workers and processes."""
    recovery: Recovery = Recovery()
    """What happens when an attempt fails."""
    tracking: Tracking = Tracking()
    """Trackers to report to."""
    suspend: bool = False
    """Save, stop and hold no resources until this is false again. Mutable."""
    stop: bool = False
    """End the run for good where it is: it saves, and has succeeded with reason Pruned, without an exported model. What
    an experiment does to a hopeless trial. Mutable."""
    queue: Name | None = None
    """Kueue's LocalQueue that admits the run. Mutable."""
    priority_class: ObjectName | None = None
    """PriorityClass of the pods. Mutable."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    """Seconds of running (time in a queue or suspended does not count) after which the job fails. Mutable."""
    ttl_seconds_after_finished: Count | None = None
    """Seconds after the end at which the job is deleted. Unset: never. Mutable."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!self.data.multiLabel || self.task == 'text-classification'",
            check=lambda spec: not spec.data.multi_label or spec.task == "text-classification",
            message="goes with task text-classification only",
            field="data.multiLabel",
        ),
        *TASK_RULES,
        *OBJECTIVE_RULES,
        *MATCHING_RULES,
        *AUGMENTATION_RULES,
        *CLEANING_RULES,
    )

    @property
    def sources(self) -> dict[str, Source]:
        """Every source that is given, by its field, for example ``spec.data.source``."""
        given = {
            "spec.model.source": self.model.source,
            "spec.model.tokenizer": self.model.tokenizer,
            "spec.data.source": self.data.source,
            "spec.data.validationSource": self.data.validation_source,
            "spec.data.testSource": self.data.test_source,
            "spec.strategy.distillation.teacher": self.strategy.distillation.teacher
            if self.strategy.distillation
            else None,
        }
        if self.data.augmentation and self.data.augmentation.text:
            changes = self.data.augmentation.text.sources
            given |= {f"spec.data.augmentation.text.{name}": source for name, source in changes.items()}
        return {field: source for field, source in given.items() if source is not None}


MUTABLE_FIELDS = ("suspend", "stop", "queue", "priorityClass", "activeDeadlineSeconds", "ttlSecondsAfterFinished")
"""Fields of the spec that may change while the job lives; all others are fixed from the start."""


class Metadata(ApiModel):
    """Kubernetes object metadata; only what the product reads is checked."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(min_length=1, max_length=52, pattern=DNS_LABEL)]
    """Name of the job: a DNS label of 52 characters at most, so that its children's names fit in 63."""
    namespace: Name = "default"
    """Namespace of the job."""


class FineTuneJob(ApiModel):
    """One fine-tuning run."""

    api_version: Literal["finetune.dev/v1alpha1"] = API_VERSION  # type: ignore[assignment]
    """`finetune.dev/v1alpha1`"""
    kind: Literal["FineTuneJob"] = "FineTuneJob"
    """`FineTuneJob`"""
    metadata: Metadata
    """Name, namespace, labels."""
    spec: JobSpec
    """What to train, on what, and how. Immutable but for the fields marked mutable."""
    status: JobStatus | None = None
    """What has happened so far; written by the operator."""


def immutable_changes(old: JobSpec, new: JobSpec) -> list[str]:
    """Paths of the immutable fields that differ between two specs, for example ``spec.training``."""
    before, after = old.to_wire(), new.to_wire()
    return [
        f"spec.{name}"
        for name in sorted(before.keys() | after.keys())
        if name not in MUTABLE_FIELDS and before.get(name) != after.get(name)
    ]
