"""What a task is: the few things in which fine-tuning for one purpose differs from another.

The loop, checkpoints, strategies and evaluation know no task; a task knows none of them. The tasks themselves lie in
``tasks``; this module is below everything that asks what a task is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from finetune_api.job import Columns
    from finetune_trainer.data.dataset import Batch
    from finetune_trainer.examples import Gallery, Shown
    from finetune_trainer.materials import Ingredients, Ready


class Target(StrEnum):
    """What is predicted, and how a batch and a metric have it."""

    CLASS = "class"
    """One of C classes: (n,) int64."""
    CLASSES = "classes"
    """Any of C classes: (n, C) float32 of 0 and 1."""
    NUMBER = "number"
    """A number: (n,) float32."""
    TOKENS = "tokens"
    """A token at every position: (n, T) int64, IGNORED where there is none."""
    TAGS = "tags"
    """One of C classes for every word: (n, T) int64, IGNORED at tokens that begin no word."""
    BOXES = "boxes"
    """Boxes of C classes: a dict an image (see ``data.detection``)."""
    PAIRS = "pairs"
    """Which text belongs to which image: (n,) int64, equal where an image and a text belong together."""


IGNORED = -100
"""Target of a position that has no loss (torch's default ignore_index)."""


def plain_forward(model: nn.Module, batch: Batch) -> Any:
    """The model's own output."""
    return model(**batch.inputs)


def one_per_sample(batch: Batch) -> Tensor:
    """Counts of an objective with one target a sample: (n,) of ones."""
    return torch.ones(len(batch.indices), dtype=torch.int64)


def logits_and_target(outputs: Any, batch: Batch, _companion: Any) -> tuple[Any, Any]:
    """What most metrics take."""
    return outputs.logits, batch.target


@dataclass(frozen=True)
class Objective:
    """What is minimised: the mean loss over all targets of a batch, however it is cut and shared by processes.

    An objective of K parts (boxes and classes, say) minimises the sum of K such means. Wrap one with
    ``dataclasses.replace``: distillation replaces ``forward`` (the teacher's outputs beside the student's) and
    ``losses``.
    """

    losses: Callable[[Any, Batch], Tensor]
    """(outputs, batch) → loss of each sample, summed over its targets: (n,) or (n, K) float; or (1,) or (1, K), the sum
    over the pass, where samples cannot be told apart. Loss / count is the mean."""
    counts: Callable[[Batch], Tensor] = one_per_sample
    """batch (on the CPU, before the forward pass) → number or weight of the targets of each sample: (n,) or (n, K)."""
    forward: Callable[[nn.Module, Batch], Any] = plain_forward
    """(model, batch) → outputs. Every process calls it equally often, a stand-in batch (``is_counted`` false) included,
    so it may gather over processes; it calls ``model`` once, for DDP and FSDP."""
    is_joint: bool = False
    """Losses are of samples among all others of the batch. Outputs are then a tuple of tensors (n, …); where a batch is
    cut into passes ``losses`` gets those of all passes, with a batch that has their target (n, …) and no inputs."""


@dataclass(frozen=True)
class Task:
    """One purpose of fine-tuning."""

    name: str
    """As in ``spec.task``."""
    target: Target
    """What is predicted."""
    auto_class: str
    """The ``transformers`` class that loads the model with its head."""
    pipeline: str | None
    """The ``transformers`` pipeline that uses it, if there is one."""
    metrics: tuple[str, ...]
    """Metrics computed if none are asked for (see ``metrics.METRICS``)."""
    monitor: str
    """Metric that early stopping and the best checkpoint watch if none is asked for."""
    objective: Objective
    """What is minimised; evaluations report its mean as ``loss``."""
    roles: Callable[[Columns], dict[str, str]]
    """Role (see ``data.columns``) → column of all that is read for a sample."""
    material: Callable[[Task, Ingredients], Ready]
    """What was read → parts of batches, and the tokenizer or processor that made them."""
    judged: Callable[[Any, Batch, Any], tuple[Any, Any]] = logits_and_target
    """(outputs, batch, companion) → predictions and targets, as the metrics for ``target`` take them."""
    write: Callable[[nn.Module, Batch, Any], tuple[list[str], list[str]]] | None = None
    """(model, batch, companion) → texts that the model writes and those that are expected, for BLEU and ROUGE."""
    reads_images: bool = False
    """Whether reading a sample is worth processes of its own."""
    has_new_head: bool = True
    """Whether the checkpoint lacks the head: LoRA then trains it whole."""
    problem_type: str | None = None
    """``config.problem_type`` of the model, for those who use it without us."""
    model_classes: Mapping[str, str] = field(default_factory=dict)
    """Architecture (``model_type``) → class, where ``auto_class`` does not know the head."""
    adapt: Callable[[nn.Module], None] | None = None
    """Changes the loaded model before anything wraps it."""
    show: Callable[[Gallery], Sequence[Shown]] | None = None
    """Examples of what the trained model does, for the report."""
