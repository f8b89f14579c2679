"""Metrics that torchmetrics does not have as they are needed: streamed, exact enough for any score, always a number.

Imports torchmetrics, which costs seconds: import this module at the first evaluation, not before.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torchmetrics import Metric
from torchmetrics.regression import R2Score

from finetune_trainer.entities import entity_scores

_FINEST = 100.0
"""Log-odds below 1 / 100 (from even) are told apart evenly, larger ones by their relation."""
_LIMIT = 15.0
"""Where the bins end: asinh of 100 times a log-odds of 16,000."""
_MOST_BINS, _LEAST_BINS, _CELLS = 8192, 512, 2**20


class Auroc(Metric):
    """Area under the ROC curve of each class against the rest, averaged over the classes; error below 0.005.

    Counts log-odds in bins of asinh: a sure model's scores are as far apart there as a hesitant one's, where thresholds
    between 0 and 1 lose them at both ends. A pair of samples in one bin counts as a tie. A class without samples, or
    without others, is left out; 0.5 if that leaves none. Memory: 16 MiB, up to 80 for 10,000 classes.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    counts: Tensor

    def __init__(self, classes: int, *, exclusive: bool) -> None:
        """``exclusive``: of the classes one is right (softmax), else any may be (sigmoid)."""
        super().__init__()
        self._exclusive = exclusive
        self._bins = min(_MOST_BINS, max(_LEAST_BINS, _CELLS // classes))
        self.add_state("counts", torch.zeros(2, classes, self._bins, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Take in logits (n, C) and the classes: ids (n,) or 0/1 (n, C)."""
        cells = auroc_cells(logits, target, bins=self._bins, exclusive=self._exclusive)
        self.counts.view(-1).index_add_(0, cells, torch.ones_like(cells))

    def compute(self) -> Tensor:
        """() float64."""
        others, own = self.counts.double()
        return auroc_area(others, own)


def auroc_cells(logits: Tensor, target: Tensor, *, bins: int, exclusive: bool) -> Tensor:
    """Cells (n × C,) of a histogram (2, C, bins), without the class and with it, that each sample's classes fall into.

    Args:
        logits: (n, C).
        target: Ids (n,), or 0/1 (n, C).
        bins: Bins of log-odds a class.
        exclusive: One of the classes is right (softmax), else any may be (sigmoid).
    """
    classes = logits.shape[1]
    scores = log_odds(logits) + math.log(max(1, classes - 1)) if exclusive else logits.double()
    right = one_hot(target, classes) if exclusive else target.long()
    place = ((scores * _FINEST).asinh().nan_to_num(0.0) / _LIMIT + 1) * (bins / 2)
    found = place.clamp(0, bins - 1).long()
    return ((right * classes + torch.arange(classes, device=logits.device)) * bins + found).flatten()


def auroc_area(others: Tensor, own: Tensor) -> Tensor:
    """Area under the curve, mean of the classes, from histograms without and with the class: (…, C, bins) to (…)."""
    pairs = own.sum(-1) * others.sum(-1)
    below = others.cumsum(-1) - others / 2
    areas = torch.where(pairs > 0, (own * below).sum(-1) / pairs.clamp(min=1e-9), 0.0)
    found = (pairs > 0).sum(-1)
    return torch.where(found > 0, areas.sum(-1) / found.clamp(min=1), 0.5)


def log_odds(logits: Tensor) -> Tensor:
    """Log-odds of each class against all others by softmax: (n, C) float64, exact also where p rounds to 0 or 1."""
    logits = logits.double()
    top = logits.argmax(-1, keepdim=True)
    others = logits.scatter(-1, top, -math.inf).logsumexp(-1, keepdim=True)
    surprise = logits.logsumexp(-1, keepdim=True) - logits
    odds = -surprise - torch.log1p(-torch.exp(-surprise))
    return odds.scatter(-1, top, logits.gather(-1, top) - others)


class R2(R2Score):
    """Coefficient of determination; 0 for fewer than two samples, as for targets that are all alike."""

    total: Tensor

    def compute(self) -> Tensor:
        """() in the dtype of its states."""
        score: Any = super().compute() if self.total > 1 else torch.zeros(())
        result: Tensor = score
        return result


class SummedScores(Metric):
    """Several scores, the higher the better, from sums over samples."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    sums: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")


class EntityScores(SummedScores):
    """Precision, recall and F1 of entities, over all texts."""

    def __init__(self) -> None:
        super().__init__(3)

    def update(self, counts: Tensor) -> None:
        """Take in entities (n, 3) of each text, as ``entity_counts`` has them."""
        self.sums += counts.sum(0)

    def compute(self) -> dict[str, float]:
        """By name."""
        return {name: value.item() for name, value in entity_scores(self.sums).items()}
