"""What a job asks for, as rows of (name, value) for people."""

from finetune_api import FineTuneJob
from finetune_api.job import LearningRate, Strategy, Training
from finetune_trainer.report.words import count, number, plural, rate

Row = tuple[str, str]

DEFAULT_EPOCHS = 3.0
_OLD_HEADS = ("causal-lm", "image-captioning", "sequence-to-sequence")
"""Tasks whose head is the checkpoint's own."""
_PRECISIONS = {"auto": "bf16 where a GPU has it, else fp32"}


def setting_rows(job: FineTuneJob) -> tuple[Row, ...]:
    """The choices that a reader of the result wants to know, strategy first."""
    spec, training = job.spec, job.spec.training
    return (
        ("What is trained", strategy_words(spec.strategy, has_new_head=spec.task not in _OLD_HEADS)),
        ("Learning rate", learning_rate_words(spec.strategy.learning_rate)),
        *_objective_rows(job),
        ("Schedule", f"{training.scheduler}, {_warmup_words(training)}"),
        ("Optimizer", f"AdamW, weight decay {number(training.weight_decay)}"),
        ("Batch", _batch_words(training)),
        ("Length", _length_words(training)),
        ("Gradient norm limit", number(training.max_grad_norm) if training.max_grad_norm else "none"),
        ("Dropout", "as the checkpoint has it" if spec.model.dropout is None else number(spec.model.dropout)),
        ("Precision", _PRECISIONS.get(training.precision, training.precision)),
        ("Seed", f"{training.seed} (order, dropout, new weights), {spec.data.split.seed} (division of the data)"),
        ("Processes", f"{spec.distributed.world_size} ({spec.distributed.strategy})"),
        ("Early stopping", _stopping_words(job)),
    )


def _objective_rows(job: FineTuneJob) -> tuple[Row, ...]:
    """What is minimised, where that is not the task's own loss."""
    loss, teacher = job.spec.training.loss, job.spec.strategy.distillation
    rows: list[Row] = []
    if loss is not None:
        smoothing = f", label smoothing {number(loss.label_smoothing)}" if loss.label_smoothing else ""
        weights = ", balanced classes" if loss.balanced else ", weighted classes" if loss.class_weights else ""
        rows.append(("Loss", f"{loss.name}{smoothing}{weights}"))
    if teacher is not None:
        share = f"weight {number(teacher.weight)}, temperature {number(teacher.temperature)}"
        rows.append(("Teacher", f"{teacher.teacher}: {share}"))
    return tuple(rows)


def strategy_words(strategy: Strategy, *, has_new_head: bool) -> str:
    """What is trained. With LoRA, a head that the checkpoint does not have is trained beside the adapter."""
    if strategy.lora:
        lora = strategy.lora
        kind = f"{'rank-stabilised ' if lora.use_rslora else ''}{'DoRA' if lora.use_dora else 'LoRA'}"
        bits = f" on a base of {lora.base_bits} bits" if lora.base_bits else ""
        adapter = f"{kind}{bits}: rank {lora.r}, alpha {number(lora.alpha)}, dropout {number(lora.dropout)}"
        return f"{adapter}; and the head" if has_new_head else adapter
    if strategy.trainable == "head":
        return "the head alone"
    if strategy.trainable == "lastLayers":
        return f"the head and the last {plural(strategy.last_layers or 0, 'layer')}"
    freeze = strategy.freeze
    if freeze and freeze.bottom_layers:
        return f"all but the embeddings and the lowest {plural(freeze.bottom_layers, 'layer')}"
    return "all but the embeddings" if freeze and freeze.embeddings else "all parameters"


def learning_rate_words(learning_rate: LearningRate) -> str:
    """The rate or rates at their peak."""
    if learning_rate.bottom and learning_rate.top:
        return f"{rate(learning_rate.bottom)} at the bottom to {rate(learning_rate.top)} at the top"
    value = rate(learning_rate.value or 0)
    decay = learning_rate.layer_decay
    return f"{value} at the head, times {number(decay)} a layer down" if decay else value


def _warmup_words(training: Training) -> str:
    if training.warmup.steps is not None:
        return f"warm-up of {plural(training.warmup.steps, 'step')}"
    return f"warm-up in {100 * (training.warmup.ratio or 0):.3g} % of the steps"


def _batch_words(training: Training) -> str:
    if training.tokens_per_batch:
        return f"{count(training.tokens_per_batch)} tokens a step"
    return f"{plural(training.samples_per_batch or 0, 'sample')} a step"


def _length_words(training: Training) -> str:
    if training.max_steps:
        return plural(training.max_steps, "step")
    return plural(training.epochs or DEFAULT_EPOCHS, "epoch")


def _stopping_words(job: FineTuneJob) -> str:
    stopping = job.spec.early_stopping
    if stopping is None:
        return "none"
    return f"after {plural(stopping.patience, 'evaluation')} without improvement"
