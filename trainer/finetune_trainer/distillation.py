"""Knowledge distillation: the student learns from a teacher's outputs beside the labels.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (https://arxiv.org/abs/1503.02531). Teacher and
student see the very same samples, changed ones included, so what is taught is a function (Beyer et al.,
https://arxiv.org/abs/2106.05237).

Invariant: a sample (of a language model, a token) counts for the teacher's part of the loss as it does for the labels'
part, so the gradient is that of the whole batch however it is cut.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, logsigmoid

from finetune_api.job import Distillation
from finetune_trainer.data.dataset import Batch
from finetune_trainer.task import IGNORED, Objective, Target, Task

Teach = Callable[[Batch], Tensor]
"""Batch → the teacher's logits: (n, C), or (n, T, V) for a language model."""


@dataclass(frozen=True)
class Logits:
    """A model's output, as far as a task reads it."""

    logits: Tensor


@dataclass(frozen=True)
class Taught:
    """What a forward pass comes to."""

    outputs: Any
    """The student's."""
    teacher: Logits


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher ‖ student) × temperature², of logits divided by ``temperature``: (…, C) to (…) float32.

    The factor keeps the gradient's size as the temperature changes (section 2.1). Columns that only one of the two has
    (a vocabulary that is padded to a round number) are left out.
    """
    width = min(student.shape[-1], teacher.shape[-1])
    ours, theirs = (log_softmax(each[..., :width].float() / temperature, -1) for each in (student, teacher))
    return kl_div(ours, theirs, log_target=True, reduction="none").sum(-1) * temperature**2


def binary_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The same where each class is a yes or no by itself, the mean over the classes: (n, C) to (n,) float32."""
    ours, theirs = student.float() / temperature, teacher.float() / temperature
    yes = theirs.sigmoid() * (logsigmoid(theirs) - logsigmoid(ours))
    no = (-theirs).sigmoid() * (logsigmoid(-theirs) - logsigmoid(-ours))
    return (yes + no).mean(dim=-1) * temperature**2


def taught_losses(task: Task, student: Any, teacher: Logits, batch: Batch, temperature: float) -> Tensor:
    """What the student lacks of the teacher, summed over each sample's targets: (n,)."""
    if task.target == Target.CLASSES:
        return binary_divergence(student.logits, teacher.logits, temperature)
    if task.target == Target.CLASS:
        return divergence(student.logits, teacher.logits, temperature)
    (ours, wanted), (theirs, _) = (task.judged(outputs, batch, None) for outputs in (student, teacher))
    kept = wanted != IGNORED
    losses = torch.zeros(wanted.shape, device=ours.device)
    return losses.masked_scatter(kept, divergence(ours[kept], theirs[kept], temperature)).sum(dim=1)


def taught_objective(
    objective: Objective, task: Task, asked: Distillation, teach: Teach, *, is_weighted: bool
) -> Objective:
    """``objective`` with a teacher beside it: weight × divergence + (1 - weight) × the objective's own loss.

    Args:
        objective: What the labels teach.
        task: Its task.
        asked: ``spec.strategy.distillation``.
        teach: The teacher.
        is_weighted: Samples do not all count the same: the teacher's part has the same weights.
    """

    def forward(model: Any, batch: Batch) -> Taught:
        return Taught(objective.forward(model, batch), Logits(teach(batch)))

    def losses(taught: Taught, batch: Batch) -> Tensor:
        lacking = taught_losses(task, taught.outputs, taught.teacher, batch, asked.temperature)
        if is_weighted:
            lacking = lacking * objective.counts(batch).to(lacking.device)
        return asked.weight * lacking + (1 - asked.weight) * objective.losses(taught.outputs, batch)

    return replace(objective, forward=forward, losses=losses)
