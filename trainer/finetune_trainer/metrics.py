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

from finetune_trainer.errors import SpecFault
from finetune_trainer.tasks import IGNORED, Target, Task

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


def _accuracy(target: Target, classes: int) -> "Metric":
    from torchmetrics import classification as c

    if target == Target.CLASSES:
        return c.MultilabelAccuracy(classes, average="micro", validate_args=False)
    ignored = IGNORED if target == Target.TOKENS else None
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


_CLASSES = frozenset({Target.CLASS, Target.CLASSES})
_NUMBER = frozenset({Target.NUMBER})
_TOKENS = frozenset({Target.TOKENS})

METRICS: Mapping[str, Definition] = {
    "loss": Definition("min", frozenset(Target), None),
    "accuracy": Definition("max", _CLASSES, _accuracy),
    "f1": Definition("max", _CLASSES, _f1("macro")),
    "f1Micro": Definition("max", _CLASSES, _f1("micro")),
    "f1Weighted": Definition("max", _CLASSES, _f1("weighted")),
    "auroc": Definition("max", _CLASSES, _auroc),
    "mse": Definition("min", _NUMBER, _regression("MeanSquaredError")),
    "mae": Definition("min", _NUMBER, _regression("MeanAbsoluteError")),
    "r2": Definition("max", _NUMBER, _r2),
    "perplexity": Definition("min", _TOKENS, None),
    "tokenAccuracy": Definition("max", _TOKENS, _accuracy),
}
"""Name → metric. f1 is the macro average; auroc one class against the rest, macro average."""


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
    known = [metric for metric, definition in METRICS.items() if task.target in definition.targets]
    if name not in known:
        raise SpecFault(f"{field}: {task.name} has the metrics {', '.join(known)}, got {name}")


class Scores:
    """Running values of the chosen metrics over one evaluation."""

    def __init__(self, task: Task, names: Sequence[str], classes: int, device: torch.device) -> None:
        self._task = task
        self._names = names
        builders = {name: METRICS[name].build for name in names}
        self._metrics = {name: build(task.target, classes).to(device) for name, build in builders.items() if build}
        self._loss = torch.zeros((), dtype=torch.float64, device=device if device.type != "mps" else "cpu")
        self._count = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, logits: Tensor, target: Tensor, losses: Tensor, counts: Tensor) -> None:
        """Take in one batch. logits and target as the task has them; losses, counts: (n,)."""
        self._loss += losses.double().sum()
        self._count += counts.sum()
        for name, metric in self._metrics.items():
            metric.update(*_arguments(self._task.target, name, logits, target))

    def compute(self, total: Callable[[Sequence[float]], list[float]]) -> dict[str, float]:
        """Values over all ranks. ``total`` sums numbers over ranks; torchmetrics gathers its own states."""
        loss, count = total([self._loss.item(), self._count.item()])
        mean = loss / max(1, count)
        values = {"loss": mean, "perplexity": math.exp(min(mean, 700.0))}
        values |= {name: float(metric.compute()) for name, metric in self._metrics.items()}
        return {name: values[name] for name in self._names}


def _arguments(target: Target, name: str, logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    if target == Target.NUMBER:  # in float32 the variance of years or prices would be lost in their mean
        return logits.squeeze(-1).double(), wanted.double()
    if target == Target.TOKENS:
        return logits[:, :-1].argmax(-1), wanted[:, 1:]
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
