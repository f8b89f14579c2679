"""What a run minimises: the loss, and the teacher that it may learn from."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_api.base import ApiModel, Fraction, Rule, Source, Word, cel_list

ClassWeight = Annotated[float, Field(gt=0, le=1e6)]

FITTING: dict[str, tuple[str, ...]] = {
    "crossEntropy": ("text-classification", "image-classification", "causal-lm", "sequence-to-sequence"),
    "focal": ("text-classification", "image-classification"),
    "bce": ("text-classification",),
    "mse": ("text-regression",),
    "mae": ("text-regression",),
    "huber": ("text-regression",),
}
"""Loss → tasks that it goes with. A multi-label classification takes bce and focal, any other all but bce."""


def _only(field: str, attribute: str, *names: str) -> Rule:
    """``field`` goes with the losses ``names`` alone."""
    return Rule(
        cel=f"!has(self.{field}) || self.name in {cel_list(names)}",
        check=lambda loss: getattr(loss, attribute) is None or loss.name in names,
        message=f"goes with {' and '.join(names)} only",
        field=field,
    )


class Loss(ApiModel):
    """The function that training minimises, and what it is adjusted by."""

    name: Literal["crossEntropy", "bce", "focal", "mse", "mae", "huber"]
    """For classes: `crossEntropy`, `bce` (binary cross-entropy, multi-label), or `focal`
    (https://arxiv.org/abs/1708.02002). For numbers: `mse`, `mae` or `huber`."""
    label_smoothing: Fraction | None = None
    """Share of the target that is spread over all classes (https://arxiv.org/abs/1512.00567). Evaluation has none."""
    balanced: bool | None = None
    """Weigh classes by how rare they are among the training samples: N / (classes × samples of the class), and in
    `bce` samples without it / samples with it."""
    class_weights: Annotated[dict[Word, ClassWeight], Field(max_length=256)] | None = None
    """Weight of each of these classes (of its samples; in `bce`, of its positive ones); others have 1. The loss is the
    weighted mean."""
    focal_gamma: Annotated[float, Field(ge=0, le=20)] | None = None
    """How much `focal` turns from samples that are right already; 0 is cross-entropy. Unset: 2."""
    huber_delta: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Error up to which `huber` is squared, in the target's unit; linear above it. Unset: 1."""

    rules: ClassVar[tuple[Rule, ...]] = (
        _only("labelSmoothing", "label_smoothing", "crossEntropy", "bce"),
        _only("balanced", "balanced", "crossEntropy", "bce", "focal"),
        _only("classWeights", "class_weights", "crossEntropy", "bce", "focal"),
        _only("focalGamma", "focal_gamma", "focal"),
        _only("huberDelta", "huber_delta", "huber"),
        Rule(
            cel="!has(self.classWeights) || !has(self.balanced) || !self.balanced",
            check=lambda loss: loss.class_weights is None or not loss.balanced,
            message="must not stand beside balanced: true",
            field="classWeights",
        ),
    )


class Distillation(ApiModel):
    """Learn from a teacher's outputs beside the labels (https://arxiv.org/abs/1503.02531).

    The loss is `weight` × KL(teacher ‖ student) × `temperature`² + (1 − `weight`) × the task's loss.
    """

    teacher: Source
    """Checkpoint folder of a model for the same task, classes and vocabulary; or of a LoRA adapter for one."""
    revision: Word | None = None
    """Commit, tag or branch of an `hf://` teacher."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 2
    """Both models' logits are divided by it: more of it shows more of what the teacher thinks of the other classes."""
    weight: Fraction = 0.5
    """Share of the teacher in the loss; 1 leaves the labels out."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the teacher's weights and arithmetic. `auto`: bf16 where a GPU has it, else fp32."""
    cache_teacher: bool = False
    """Compute the teacher's outputs of the training set once, and keep them beside the prepared data: float32 a class
    for a classification, float16 a token and word of the vocabulary for a language model."""


_LOSS = "!has(self.training) || !has(self.training.loss)"
_TEACHER = "!has(self.strategy) || !has(self.strategy.distillation)"
_LANGUAGE = ("causal-lm", "sequence-to-sequence")
_TAUGHT = ("text-classification", "image-classification", "causal-lm")


_FITS = " || ".join(
    f"(self.training.loss.name == {name!r} && self.task in {cel_list(tasks)})" for name, tasks in FITTING.items()
)

RULES = (
    Rule(
        cel=f"{_LOSS} || {_FITS}",
        check=lambda spec: spec.training.loss is None or spec.task in FITTING[spec.training.loss.name],
        message="does not go with this task: classes take crossEntropy, focal or bce, numbers mse, mae or huber",
        field="training.loss.name",
    ),
    Rule(
        cel=f"{_LOSS} || !(self.training.loss.name in ['bce', 'crossEntropy'])"
        " || (self.training.loss.name == 'bce') == self.data.multiLabel",
        check=lambda spec: (
            spec.training.loss is None
            or spec.training.loss.name not in {"bce", "crossEntropy"}
            or (spec.training.loss.name == "bce") == spec.data.multi_label
        ),
        message="must be bce or focal with multiLabel: true, and crossEntropy or focal without",
        field="training.loss.name",
    ),
    Rule(
        cel=f"{_LOSS} || !(self.task in {cel_list(_LANGUAGE)})"
        " || !(has(self.training.loss.balanced) || has(self.training.loss.classWeights))",
        check=lambda spec: (
            spec.training.loss is None
            or spec.task not in _LANGUAGE
            or (spec.training.loss.balanced is None and spec.training.loss.class_weights is None)
        ),
        message="weighs classes, of which a language model has none; remove balanced and classWeights",
        field="training.loss",
    ),
    Rule(
        cel=f"{_TEACHER} || self.task in {cel_list(_TAUGHT)}",
        check=lambda spec: spec.strategy.distillation is None or spec.task in _TAUGHT,
        message=f"goes with the tasks {', '.join(_TAUGHT)} only",
        field="strategy.distillation",
    ),
    Rule(
        cel=f"{_TEACHER} || !self.strategy.distillation.cacheTeacher || !has(self.data.augmentation)",
        check=lambda spec: (
            spec.strategy.distillation is None
            or not spec.strategy.distillation.cache_teacher
            or spec.data.augmentation is None
        ),
        message="keeps outputs of samples that augmentation changes; remove data.augmentation or set it to false",
        field="strategy.distillation.cacheTeacher",
    ),
)
"""What a spec as a whole must keep to."""
