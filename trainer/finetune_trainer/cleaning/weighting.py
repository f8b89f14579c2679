"""Samples that count less in the loss: each has a weight, in the sum and in what it is divided by."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune_trainer.cleaning.text_hashes import Indices
from finetune_trainer.data.dataset import Batch
from finetune_trainer.task import Objective


def weighted_objective(objective: Objective, weights: NDArray[np.float32] | None, rows: Indices) -> Objective:
    """``objective`` with each sample's losses and counts times its weight; as it is if there are none.

    ``weights`` (N,) are those of every row of the source, ``rows`` (n,) the rows that train.
    """
    if weights is None:
        return objective
    each = torch.from_numpy(weights[rows])

    def weighted(batch: Batch, values: Tensor) -> Tensor:
        own = each[torch.from_numpy(batch.indices)].to(values.device)
        return values * own.view(-1, *[1] * (values.ndim - 1))

    return replace(
        objective,
        losses=lambda outputs, batch: weighted(batch, objective.losses(outputs, batch)),
        counts=lambda batch: weighted(batch, objective.counts(batch)),
    )
