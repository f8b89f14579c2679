"""The metrics that each task has, as the API knows them: which there are, which way is better, which one is watched.

Invariant: it says what the trainer computes; a test compares the two. A task that is not listed is not checked here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from finetune_api.job import JobSpec

Mode = Literal["max", "min"]


@dataclass(frozen=True)
class TaskMetrics:
    """What can be measured of a task."""

    modes: Mapping[str, Mode]
    """Every metric, and whether more or less of it is better."""
    usual: tuple[str, ...]
    """Those that are computed if none are asked for, beside the loss."""
    watched: str
    """The one that early stopping and the best checkpoint go by if none is named."""


_CLASSES: dict[str, Mode] = {
    "loss": "min",
    "accuracy": "max",
    "f1": "max",
    "f1Micro": "max",
    "f1Weighted": "max",
    "auroc": "max",
}
_NUMBERS: dict[str, Mode] = {"loss": "min", "mse": "min", "mae": "min", "r2": "max"}
_TEXTS = ("bleu", "rouge1", "rouge2", "rougeL")
_TOKENS: dict[str, Mode] = {
    "loss": "min",
    "perplexity": "min",
    "tokenAccuracy": "max",
    **dict.fromkeys(_TEXTS, "max"),
}
_TAGS: dict[str, Mode] = {
    "loss": "min",
    "tokenAccuracy": "max",
    **dict.fromkeys(("entityF1", "entityPrecision", "entityRecall"), "max"),
}
_BOXES: dict[str, Mode] = {"loss": "min", "map": "max", "map50": "max"}
_RECALLS = tuple(f"{side}At{k}" for side in ("recall", "textRecall", "imageRecall") for k in (1, 5, 10))
_PAIRS: dict[str, Mode] = {"loss": "min", "accuracy": "max", **dict.fromkeys(_RECALLS, "max")}
_LANGUAGE = TaskMetrics(_TOKENS, ("perplexity", "tokenAccuracy"), "loss")

TASK_METRICS: Mapping[str, TaskMetrics] = {
    "text-classification": TaskMetrics(_CLASSES, ("accuracy", "f1", "auroc"), "accuracy"),
    "text-regression": TaskMetrics(_NUMBERS, ("mse", "mae", "r2"), "mse"),
    "causal-lm": _LANGUAGE,
    "image-classification": TaskMetrics(_CLASSES, ("accuracy", "f1"), "accuracy"),
    "object-detection": TaskMetrics(_BOXES, ("map", "map50"), "map"),
    "image-captioning": _LANGUAGE,
    "image-text-matching": TaskMetrics(_PAIRS, _RECALLS, "recallAt1"),
    "token-classification": TaskMetrics(
        _TAGS, ("entityF1", "entityPrecision", "entityRecall", "tokenAccuracy"), "entityF1"
    ),
    "sequence-to-sequence": _LANGUAGE,
}
"""By `spec.task`."""


def watched_metric(spec: JobSpec) -> str | None:
    """The metric that early stopping and the best checkpoint of a job go by; None if its task is not listed."""
    if spec.early_stopping is not None and spec.early_stopping.metric is not None:
        return spec.early_stopping.metric
    if spec.data.multi_label:
        return "f1"
    known = TASK_METRICS.get(spec.task)
    return known.watched if known else None
