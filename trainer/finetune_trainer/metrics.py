"""Metrics, streamed: each keeps sums and counts, so that memory does not grow with the data set.

AUC-ROC is computed from bins instead of every score for the same reason (error below 0.005; see ``streamed``).
torchmetrics is imported at the first evaluation: it costs seconds that the first step should not wait for.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from finetune_trainer.entities import ENTITY_SCORES
from finetune_trainer.errors import SpecFault
from finetune_trainer.retrieval import RECALLS, Queries, Recall
from finetune_trainer.task import IGNORED, Target, Task

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclass(frozen=True)
class Definition:
    """One metric that can be asked for."""

    mode: str
    """`max` or `min`: what is better."""
    targets: frozenset[Target]
    """Kinds of target it is defined for."""
    build: Callable[[Target, int], "Metric"] | None
    """(target, classes) → torchmetrics metric; None if it is a function of the loss."""
    arguments: Callable[[Target, str, Any, Any], tuple[Any, ...]] | None = None
    """(target, name, predictions, wanted), the last two as ``Task.judged`` has them → what the metric's ``update``
    takes; None for what suits most (see ``_arguments``)."""
    is_of_texts: bool = False
    """It takes the texts of ``Task.write``."""


def _accuracy(target: Target, classes: int) -> "Metric":
    from torchmetrics import classification as c

    if target == Target.CLASSES:
        return c.MultilabelAccuracy(classes, average="micro", validate_args=False)
    ignored = IGNORED if target in (Target.TOKENS, Target.TAGS) else None
    return c.MulticlassAccuracy(classes, average="micro", ignore_index=ignored, validate_args=False)


def _f1(average: str) -> Callable[[Target, int], "Metric"]:
    def build(target: Target, classes: int) -> "Metric":
        from torchmetrics import classification as c

        kind = c.MultilabelF1Score if target == Target.CLASSES else c.MulticlassF1Score
        return kind(classes, average=average, validate_args=False)  # type: ignore[arg-type]

    return build


def _auroc(target: Target, classes: int) -> "Metric":
    from finetune_trainer.streamed import Auroc

    return Auroc(classes, exclusive=target == Target.CLASS)


def _regression(name: str) -> Callable[[Target, int], "Metric"]:
    def build(_target: Target, _classes: int) -> "Metric":
        from torchmetrics import regression as r

        metric: Metric = getattr(r, name)()
        return metric.set_dtype(torch.float64)

    return build


def _r2(_target: Target, _classes: int) -> "Metric":
    from finetune_trainer.streamed import R2

    return R2().set_dtype(torch.float64)


def _precision(thresholds: list[float] | None) -> Callable[[Target, int], "Metric"]:
    def build(_target: Target, _classes: int) -> "Metric":
        from finetune_trainer.box_metrics import BoxPrecision

        return BoxPrecision(thresholds)

    return build


def _recall(_target: Target, _classes: int) -> Any:
    return Recall()


def _entities(_target: Target, _classes: int) -> "Metric":
    from finetune_trainer.streamed import EntityScores

    return EntityScores()


def _tokens(target: Target, _name: str, predictions: Any, wanted: Any) -> tuple[Any, ...]:
    return predictions["tags"] if target == Target.TAGS else predictions.argmax(-1), wanted


def _entity_counts(_target: Target, _name: str, predictions: Any, _wanted: Any) -> tuple[Any, ...]:
    return (predictions["entities"],)


def _text_scores(_target: Target, _classes: int) -> "Metric":
    from finetune_trainer.text_scores import TextScores

    return TextScores()


TEXT_SCORES = ("bleu", "rouge1", "rouge2", "rougeL")
_CLASSES = frozenset({Target.CLASS, Target.CLASSES})
_NUMBER = frozenset({Target.NUMBER})
_TOKENS = frozenset({Target.TOKENS})
_PAIRS = frozenset({Target.PAIRS})
_BOXES = frozenset({Target.BOXES})
_TAGS = frozenset({Target.TAGS})

METRICS: Mapping[str, Definition] = {
    "loss": Definition("min", frozenset(Target), None),
    "accuracy": Definition("max", _CLASSES | _PAIRS, _accuracy),
    "f1": Definition("max", _CLASSES, _f1("macro")),
    "f1Micro": Definition("max", _CLASSES, _f1("micro")),
    "f1Weighted": Definition("max", _CLASSES, _f1("weighted")),
    "auroc": Definition("max", _CLASSES, _auroc),
    "mse": Definition("min", _NUMBER, _regression("MeanSquaredError")),
    "mae": Definition("min", _NUMBER, _regression("MeanAbsoluteError")),
    "r2": Definition("max", _NUMBER, _r2),
    "perplexity": Definition("min", _TOKENS, None),
    "tokenAccuracy": Definition("max", _TOKENS | _TAGS, _accuracy, _tokens),
    **{name: Definition("max", _TAGS, _entities, _entity_counts) for name in ENTITY_SCORES},
    **{name: Definition("max", _PAIRS, _recall) for name in RECALLS},
    **{name: Definition("max", _TOKENS, _text_scores, is_of_texts=True) for name in TEXT_SCORES},
    "map": Definition("max", _BOXES, _precision(None)),
    "map50": Definition("max", _BOXES, _precision([0.5])),
}
"""Name → metric. f1 is the macro average; auroc one class against the rest, macro average; map as COCO
has it, over IoU 0.5 to 0.95."""


def choose_metrics(
    task: Task, asked: Sequence[str] | None, *, field: str = "spec.evaluation.metrics"
) -> tuple[str, ...]:
    """The metrics to compute: those asked for, or the task's; the loss is always among them.

    Raises:
        SpecFault: One is unknown or not defined for the task.
    """
    for name in asked or ():
        check_metric(task, name, field=field)
    return tuple(dict.fromkeys(("loss", *(asked or task.metrics))))


def check_metric(task: Task, name: str, *, field: str) -> None:
    """Raise SpecFault unless metric ``name`` exists and is defined for the task."""
    known = [
        metric
        for metric, definition in METRICS.items()
        if task.target in definition.targets and (task.write is not None or not definition.is_of_texts)
    ]
    if name not in known:
        raise SpecFault(f"{field}: {task.name} has the metrics {', '.join(known)}, got {name}")


class Scores:
    """Running values of the chosen metrics over one evaluation."""

    def __init__(self, task: Task, names: Sequence[str], classes: int, device: torch.device) -> None:
        self._task = task
        self._names = names
        builders = {name: METRICS[name].build for name in names}
        one_of_each = {build: name for name, build in builders.items() if build}  # recalls share their embeddings
        self._metrics = {name: build(task.target, classes).to(device) for build, name in one_of_each.items()}
        self._device = device if device.type != "mps" else torch.device("cpu")
        self._loss = torch.zeros(1, dtype=torch.float64, device=self._device)
        self._count = torch.zeros(1, dtype=torch.float64, device=self._device)

    def add_loss(self, losses: Tensor, counts: Tensor) -> None:
        """Take in one batch's losses and counts, as the objective has them: (n,) or (n, K)."""
        self._loss = self._loss + losses.to(self._device).double().sum(0).reshape(-1)
        self._count = self._count + counts.to(self._device).double().sum(0).reshape(-1)

    def update(self, predictions: Any, wanted: Any) -> None:
        """Take in one batch's predictions and targets, as ``Task.judged`` has them."""
        for name, metric in self._metrics.items():
            if METRICS[name].is_of_texts:
                continue
            take = METRICS[name].arguments or _arguments
            metric.update(*take(self._task.target, name, predictions, wanted))

    @property
    def reads_texts(self) -> bool:
        """Whether a metric is of texts that the model writes."""
        return any(METRICS[name].is_of_texts for name in self._metrics)

    def update_texts(self, written: Sequence[str], expected: Sequence[str]) -> None:
        """Take in what ``Task.write`` made of one batch."""
        for name, metric in self._metrics.items():
            if METRICS[name].is_of_texts:
                metric.update(written, expected)

    def queries(self) -> tuple[Queries, ...]:
        """Images and texts as the recalls have them, once ``compute`` has; none if no recall is computed."""
        recall: Any = next((metric for metric in self._metrics.values() if isinstance(metric, Recall)), None)
        return recall.queries() if recall else ()

    def compute(self, total: Callable[[Sequence[float]], list[float]]) -> dict[str, float]:
        """Values over all ranks. ``total`` sums numbers over ranks; torchmetrics gathers its own states."""
        sums = total([*self._loss.tolist(), *self._count.tolist()])
        parts = len(sums) // 2
        mean = sum(loss / (count or 1.0) for loss, count in zip(sums[:parts], sums[parts:], strict=True))
        values = {"loss": mean, "perplexity": math.exp(min(mean, 700.0))}
        for name, metric in self._metrics.items():
            value = metric.compute()
            values |= value if isinstance(value, dict) else {name: float(value)}
        return {name: values[name] for name in self._names}


def _arguments(target: Target, name: str, logits: Any, wanted: Any) -> tuple[Any, Any]:
    if target == Target.PAIRS and name == "accuracy":
        return torch.cat(logits["classes"]), torch.cat(wanted["classes"])
    if target in (Target.BOXES, Target.PAIRS):
        return logits, wanted
    if target == Target.NUMBER:  # in float32 the variance of years or prices would be lost in their mean
        return logits.squeeze(-1).double(), wanted.double()
    if name == "auroc":
        return logits, wanted.long()
    return (logits.sigmoid() if target == Target.CLASSES else logits.argmax(-1)), wanted.long()


def is_better(value: float, best: float | None, *, mode: str, min_delta: float) -> bool:
    """Whether ``value`` improves on ``best`` by more than ``min_delta`` (any gain at all if that is 0)."""
    if math.isnan(value):
        return False
    if best is None:
        return True
    gain = value - best if mode == "max" else best - value
    return gain > min_delta


def summary(values: Mapping[str, Any]) -> str:
    """Metrics on one line."""
    return " ".join(f"{name}={value:.4g}" for name, value in values.items())
