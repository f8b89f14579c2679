"""What a task is: the few things in which fine-tuning for one purpose differs from another.

The loop, checkpoints, strategies and evaluation know no task; a task knows none of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import torch
from torch import Tensor

from finetune_api.job import Columns


class Target(StrEnum):
    """What is predicted, and how a batch holds it."""

    CLASS = "class"
    """One of C classes: (n,) int64."""
    CLASSES = "classes"
    """Any of C classes: (n, C) float32 of 0 and 1."""
    NUMBER = "number"
    """A number: (n,) float32."""
    TOKENS = "tokens"
    """The next token everywhere: (n, T) int64, IGNORED where there is none."""


IGNORED = -100
"""Target of a position that has no loss (torch's default ignore_index)."""


@dataclass(frozen=True)
class Task:
    """One purpose of fine-tuning."""

    name: str
    """As in ``spec.task``."""
    reads: Literal["text", "image"]
    """What a sample is made of."""
    target: Target
    """What is predicted."""
    auto_class: str
    """The ``transformers`` class that loads the model with its head."""
    pipeline: str
    """The ``transformers`` pipeline that uses it."""
    metrics: tuple[str, ...]
    """Metrics computed if none are asked for (see ``metrics.METRICS``)."""
    monitor: str
    """Metric that early stopping and the best checkpoint watch if none is asked for."""
    losses: Callable[[Tensor, Tensor], Tensor]
    """(logits, target) → loss of each sample, summed over its targets: (n,) float32."""
    counts: Callable[[Tensor], Tensor]
    """target → number of targets of each sample: (n,) int64. Loss / count is the mean."""
    problem_type: str | None = None
    """``config.problem_type`` of the model, for those who use it without us."""

    def roles(self, columns: Columns) -> dict[str, str]:
        """Role → column of all that is read for a sample."""
        roles = {"text": columns.text} if self.reads == "text" else {"image": columns.image}
        if self.reads == "text" and columns.text_pair is not None:
            roles["text_pair"] = columns.text_pair
        if self.target != Target.TOKENS:
            roles["label"] = columns.label
        return roles


def one_per_sample(target: Tensor) -> Tensor:
    """Counts of a task with one target a sample: (n,) of ones."""
    return torch.ones(len(target), dtype=torch.int64, device=target.device)
