"""Judging a model on one part of the data, batch by batch: memory does not grow with the number of samples."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from finetune_trainer.data.dataset import Batch, Part, load_batches
from finetune_trainer.data.order import BatchSize, ordered_batches
from finetune_trainer.data.passes import Share
from finetune_trainer.distributed import Group
from finetune_trainer.errors import Preempted
from finetune_trainer.metrics import Scores
from finetune_trainer.strategies import set_training
from finetune_trainer.tasks import Target, Task

WORST = 20
RESIDUALS = 2000


@dataclass(frozen=True)
class Judge:
    """What every evaluation of a run needs."""

    task: Task
    metrics: tuple[str, ...]
    classes: int
    accelerator: Accelerator
    group: Group
    size: BatchSize
    share: Share
    workers: int
    beat: Callable[[], None]
    is_stopped: Callable[[], bool]

    def evaluate(
        self,
        model: nn.Module,
        part: Part,
        *,
        details: "Details | None" = None,
        progress: Callable[[float], None] = lambda _percent: None,
    ) -> dict[str, float]:
        """Metrics of ``model`` on ``part``, the same on every rank.

        Raises:
            Preempted: A process was asked to leave; every rank raises together.
        """
        batches = ordered_batches(len(part), part.padded_lengths, self.size)
        loader = load_batches(part, batches, self.size, self.share, epoch=0, workers=self.workers, pin=self._has_gpu)
        scores = Scores(self.task, self.metrics, self.classes, self.accelerator.device)
        model.eval()
        try:
            with torch.no_grad():
                for number, passes in enumerate(loader, 1):
                    self._leave_if_asked()
                    for batch in passes:
                        self._judge(model, batch.to(self.accelerator.device), scores, details)
                    self.beat()
                    progress(100 * number / len(batches))
            return scores.compute(self.group.sum)
        finally:
            set_training(model)

    @property
    def _has_gpu(self) -> bool:
        return str(self.accelerator.device.type) == "cuda"

    def _leave_if_asked(self) -> None:
        if self.group.sum([float(self.is_stopped())])[0]:
            raise Preempted("asked to leave during an evaluation")

    def _judge(self, model: nn.Module, batch: Batch, scores: Scores, details: "Details | None") -> None:
        with self.accelerator.autocast():
            logits = model(**batch.inputs).logits
        if not batch.is_counted:
            return
        losses, counts = self.task.losses(logits, batch.target), self.task.counts(batch.target)
        scores.update(logits, batch.target, losses, counts)
        if details is not None:
            details.update(logits, batch, losses / counts.clamp(min=1))


@dataclass
class Details:
    """What the report shows of the final evaluation: confusion or residuals, and the examples it got most wrong."""

    task: Task
    classes: int
    confusion: "np.ndarray[Any, np.dtype[np.int64]]" = field(init=False)
    """(C, C) counts: row expected, column predicted."""
    residuals: list[tuple[float, float]] = field(default_factory=list)
    """(expected, predicted), the first 2,000."""
    worst: list[tuple[float, int, Any]] = field(default_factory=list)
    """Heap of (loss, index in the part, prediction), the 20 largest losses."""

    def __post_init__(self) -> None:
        size = self.classes if self.task.target == Target.CLASS else 0
        self.confusion = np.zeros((size, size), np.int64)

    def update(self, logits: Tensor, batch: Batch, losses: Tensor) -> None:
        """Take in one batch; losses: (n,) mean loss of each sample."""
        predicted = self._predictions(logits)
        if self.task.target == Target.CLASS:
            np.add.at(self.confusion, (batch.target.cpu().numpy(), np.array(predicted)), 1)
        elif self.task.target == Target.NUMBER:
            pairs = zip(batch.target.tolist(), predicted, strict=True)
            self.residuals.extend(list(pairs)[: RESIDUALS - len(self.residuals)])
        for loss, index, prediction in zip(losses.tolist(), batch.indices.tolist(), predicted, strict=True):
            self._keep((loss, index, prediction))

    def _predictions(self, logits: Tensor) -> list[Any]:
        if self.task.target == Target.CLASS:
            return list(logits.argmax(-1).tolist())
        if self.task.target == Target.CLASSES:
            return [row.nonzero().flatten().tolist() for row in logits > 0]
        if self.task.target == Target.NUMBER:
            return list(logits.squeeze(-1).float().tolist())
        return [None] * len(logits)

    def _keep(self, item: tuple[float, int, Any]) -> None:
        if len(self.worst) < WORST:
            heapq.heappush(self.worst, item)
        else:
            heapq.heappushpop(self.worst, item)

    def merge(self, others: Sequence["Details"]) -> "Details":
        """The details of all ranks in one."""
        merged = Details(self.task, self.classes)
        merged.confusion = sum((other.confusion for other in others), start=merged.confusion)
        merged.residuals = [pair for other in others for pair in other.residuals][:RESIDUALS]
        merged.worst = heapq.nlargest(WORST, (item for other in others for item in other.worst))
        return merged
