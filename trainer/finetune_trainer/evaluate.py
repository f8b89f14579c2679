"""Judging a model on one part of the data, batch by batch: memory does not grow with the number of samples."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
from finetune_trainer.task import IGNORED, Target, Task

if TYPE_CHECKING:
    from finetune_trainer.families import Bootstrap

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
    companion: Any = None
    """Tokenizer or processor: what the task reads the model's outputs with."""

    def evaluate(
        self,
        model: nn.Module,
        part: Part,
        *,
        details: "Details | None" = None,
        bootstrap: "Bootstrap | None" = None,
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
                        self._judge(model, batch.to(self.accelerator.device), scores, details, bootstrap)
                    self.beat()
                    progress(100 * number / len(batches))
            values = scores.compute(self.group.sum)
            if bootstrap is not None and self.group.rank == 0:  # every rank has all queries
                bootstrap.update_queries(scores.queries())
            return values
        finally:
            set_training(model)

    @property
    def _has_gpu(self) -> bool:
        return str(self.accelerator.device.type) == "cuda"

    def _leave_if_asked(self) -> None:
        if self.group.sum([float(self.is_stopped())])[0]:
            raise Preempted("asked to leave during an evaluation")

    def _judge(
        self,
        model: nn.Module,
        batch: Batch,
        scores: Scores,
        details: "Details | None",
        bootstrap: "Bootstrap | None",
    ) -> None:
        objective = self.task.objective
        with self.accelerator.autocast():
            outputs = objective.forward(model, batch)
            texts = self._write(model, batch) if scores.reads_texts else None
        losses, counts = objective.losses(outputs, batch), objective.counts(batch).to(self.accelerator.device)
        if not batch.is_counted:
            scores.add_loss(torch.zeros_like(losses), torch.zeros_like(counts))
            return
        scores.add_loss(losses, counts)
        predictions, wanted = self.task.judged(outputs, batch, self.companion)
        scores.update(predictions, wanted)
        if texts is not None:
            scores.update_texts(*texts)
        if details is not None:
            details.update(predictions, batch, losses, counts)
        if bootstrap is not None:
            bootstrap.update(predictions, wanted, losses, counts, batch.indices)
            if texts is not None:
                bootstrap.update_texts(*texts, batch.indices)

    def _write(self, model: nn.Module, batch: Batch) -> tuple[list[str], list[str]]:
        assert self.task.write is not None
        return self.task.write(model, batch, self.companion)


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

    def update(self, predictions: Any, batch: Batch, losses: Tensor, counts: Tensor) -> None:
        """Take in one batch: predictions as ``Task.judged`` has them, losses and counts as the objective has them."""
        predicted = self._predicted(predictions, batch)
        if self.task.target == Target.CLASS:
            np.add.at(self.confusion, (batch.target.cpu().numpy(), np.array(predicted)), 1)
        elif self.task.target == Target.NUMBER:
            pairs = zip(batch.target.tolist(), predicted, strict=True)
            self.residuals.extend(list(pairs)[: RESIDUALS - len(self.residuals)])
        if len(losses) != len(batch.indices):  # the objective cannot tell samples apart
            return
        means = losses / torch.where(counts == 0, 1, counts)
        for loss, index, prediction in zip(
            means.flatten(1).sum(1).tolist() if means.ndim > 1 else means.tolist(),
            batch.indices.tolist(),
            predicted,
            strict=True,
        ):
            self._keep((loss, index, prediction))

    def _predicted(self, predictions: Any, batch: Batch) -> list[Any]:
        if self.task.target == Target.CLASS:
            return list(predictions.argmax(-1).tolist())
        if self.task.target == Target.CLASSES:
            return [row.nonzero().flatten().tolist() for row in predictions > 0]
        if self.task.target == Target.NUMBER:
            return list(predictions.squeeze(-1).float().tolist())
        if self.task.target == Target.TAGS:
            found = zip(predictions["tags"], batch.target != IGNORED, strict=True)
            return [tags[kept].tolist() for tags, kept in found]
        return [None] * len(batch.indices)

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
