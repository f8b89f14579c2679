"""Losses to choose from: ``spec.training.loss`` → a function of each sample, and the weight that each sample has.

The loop's rule is sum of losses / sum of counts over the whole batch, however it is cut. A class's weight is in both,
so the loss is the weighted mean of the batch, as torch's ``cross_entropy(weight=…)`` has it for one in one piece.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as f

from finetune_api.job import Loss
from finetune_trainer.errors import SpecFault
from finetune_trainer.task import IGNORED, Objective, Target, Task

if TYPE_CHECKING:
    from finetune_trainer.data.dataset import Batch

NUMBERS = frozenset({"mse", "mae", "huber"})
DEFAULT_GAMMA, DEFAULT_DELTA = 2.0, 1.0
LARGE_VOCABULARY = 4096
"""Classes from which on memory for the logits is what matters."""
_CPU_BLOCK, _GPU_BLOCK = 1 << 20, 1 << 24
"""Logits at a time, as many as caches hold in fp32."""


def cross_entropy(logits: Tensor, target: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each sample times its class's weight: (n,) float32.

    Args:
        logits: (n, C).
        target: (n,) int64; -100 for a sample that has no loss.
        weights: (C,) of the classes.
        smoothing: Share of the target that is spread over all classes (https://arxiv.org/abs/1512.00567).
    """
    if weights is None and not smoothing and logits.shape[1] >= LARGE_VOCABULARY:
        losses: Tensor = _BlockwiseCrossEntropy.apply(logits, target)
        return losses
    weights = None if weights is None else weights.to(logits.device)
    return f.cross_entropy(logits.float(), target, weight=weights, label_smoothing=smoothing, reduction="none")


class _BlockwiseCrossEntropy(torch.autograd.Function):
    """Cross-entropy over a large vocabulary, some rows at a time.

    Beside the logits there is one more tensor of their size and precision, their gradient, made with the losses.
    torch's own keeps in fp32 a copy of the logits, its log-softmax and a gradient: of a language model the most that a
    pass holds.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        rows = max(1, (_GPU_BLOCK if logits.is_cuda else _CPU_BLOCK) // logits.shape[1])
        losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        ctx.slopes = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for start in range(0, len(logits), rows):
            block = slice(start, start + rows)
            logs = logits[block].float().log_softmax(1)
            ignored = (target[block] == IGNORED).unsqueeze(1)
            right = target[block].clamp(min=0).unsqueeze(1)
            of_right = logs.gather(1, right)
            losses[block] = -of_right.masked_fill(ignored, 0).squeeze(1)
            if ctx.slopes is not None:
                slopes = logs.exp_().scatter_add_(1, right, -torch.ones_like(of_right))
                ctx.slopes[block] = slopes.masked_fill_(ignored, 0)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        gradient, ctx.slopes = ctx.slopes, None
        return gradient.mul_(slopes[0].unsqueeze(1)), None


def token_losses(outputs: Any, batch: "Batch") -> Tensor:
    """Cross-entropy summed over the targets of each sample: (n,). logits: (n, T, C); target: (n, T)."""
    return summed(cross_entropy, outputs.logits, batch.target)


def token_counts(batch: "Batch") -> Tensor:
    """Targets of each sample: (n,)."""
    counts: Tensor = (batch.target != IGNORED).sum(dim=1)
    return counts


def summed(function: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> Tensor:
    """A loss of each of ``logits`` (n, T, C) and ``target`` (n, T), summed over T: (n,)."""
    return function(logits.flatten(0, 1), target.flatten()).view(target.shape).sum(dim=1)


def focal(logits: Tensor, target: Tensor, *, gamma: float, weights: Tensor | None = None) -> Tensor:
    """Focal loss (https://arxiv.org/abs/1708.02002, equation 5) of each sample, by softmax: (n,) float32.

    (1 - p)^gamma × cross-entropy, p the probability of the right class. logits: (n, C), target: (n,) int64.
    """
    right = f.log_softmax(logits.float(), -1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    losses = -_rest(right, gamma) * right
    return losses if weights is None else losses * weights.to(logits.device)[target]


def binary_cross_entropy(
    logits: Tensor, target: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Binary cross-entropy of each sample, its mean over the classes: (n,) float32.

    Args:
        logits: (n, C).
        target: (n, C) of 0 and 1.
        weights: (C,) of the positive samples of each class (torch's ``pos_weight``).
        smoothing: Share of the target that is spread over yes and no.
    """
    weights = None if weights is None else weights.to(logits.device)
    wanted = target * (1 - smoothing) + smoothing / 2
    losses = f.binary_cross_entropy_with_logits(logits.float(), wanted, pos_weight=weights, reduction="none")
    return losses.mean(dim=1)


def binary_focal(logits: Tensor, target: Tensor, *, gamma: float, weights: Tensor | None = None) -> Tensor:
    """Focal loss of each sample, by sigmoid, its mean over the classes: (n,) float32. logits, target: (n, C)."""
    weights = torch.ones(()) if weights is None else weights
    signed = logits.float() * (2 * target - 1)
    right = f.logsigmoid(signed)
    losses = -_rest(right, gamma) * right
    return (losses * torch.where(target > 0, weights.to(logits.device), 1.0)).mean(dim=1)


def _rest(log_probability: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma. Bounded from 0, for the slope of a power below 1 is infinite there."""
    return (-torch.expm1(log_probability)).clamp(min=torch.finfo(torch.float32).tiny) ** gamma


def numbers(logits: Tensor, target: Tensor, *, name: str, delta: float = DEFAULT_DELTA) -> Tensor:
    """Loss of each number: ``mse``, ``mae``, or ``huber``, which is linear above ``delta``. logits: (n, 1); (n,)."""
    found = logits.squeeze(-1).float()
    if name == "huber":
        return f.huber_loss(found, target, delta=delta, reduction="none")
    return f.mse_loss(found, target, reduction="none") if name == "mse" else f.l1_loss(found, target, reduction="none")


@dataclass(frozen=True)
class Classes:
    """The training samples by class, as far as a loss needs to know."""

    labels: Sequence[str]
    """Their names, in the order of their ids: (C,)."""
    counts: "np.ndarray[Any, np.dtype[np.int64]]"
    """Training samples of each: (C,)."""
    samples: int
    """Training samples in all."""
    is_multi: bool
    """Whether a sample may have any number of classes."""


def class_weights(loss: Loss, classes: Classes) -> Tensor | None:
    """Weights (C,) float32 of the classes; None if all are alike.

    ``balanced`` is scikit-learn's "balanced" (King and Zeng, "Logistic Regression in Rare Events Data", 2001); a class
    without samples has 1.

    Raises:
        SpecFault: ``classWeights`` names a class that there is not.
    """
    if loss.balanced:
        return torch.tensor(_balanced(loss, classes), dtype=torch.float32)
    if loss.class_weights is None:
        return None
    for label in loss.class_weights:
        if label not in classes.labels:
            known = ", ".join(classes.labels[:10])
            raise SpecFault(f"spec.training.loss.classWeights: there is no class {label!r}; there are {known}")
    return torch.tensor([loss.class_weights.get(label, 1.0) for label in classes.labels], dtype=torch.float32)


def _balanced(loss: Loss, classes: Classes) -> Any:
    present = classes.counts > 0
    counts = np.where(present, classes.counts, 1)
    if classes.is_multi and loss.name == "bce":
        return np.where(present, np.maximum(classes.samples - counts, 1) / counts, 1.0)
    return np.where(present, classes.samples / (len(counts) * counts), 1.0)


def loss_of(loss: Loss, classes: Classes | None, weights: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    """(logits, target) → losses (n,), as ``loss`` asks for; ``classes`` None where there are none to weigh."""
    smoothing = loss.label_smoothing or 0.0
    if loss.name in NUMBERS:
        return partial(numbers, name=loss.name, delta=loss.huber_delta or DEFAULT_DELTA)
    is_multi = classes is not None and classes.is_multi
    if loss.name == "focal":
        gamma = DEFAULT_GAMMA if loss.focal_gamma is None else loss.focal_gamma
        return partial(binary_focal if is_multi else focal, gamma=gamma, weights=weights)
    return partial(binary_cross_entropy if is_multi else cross_entropy, weights=weights, smoothing=smoothing)


def chosen_objective(task: Task, loss: Loss | None, classes: Classes | None) -> Objective:
    """The task's objective with the loss that is asked for.

    Args:
        task: The task, of one output a sample or a token.
        loss: ``spec.training.loss``; None for the task's own.
        classes: The training samples by class; None for numbers and tokens.

    Raises:
        SpecFault: See ``class_weights``.
    """
    if loss is None:
        return task.objective
    weights = class_weights(loss, classes) if classes is not None else None
    function = loss_of(loss, classes, weights)

    def losses(outputs: Any, batch: "Batch") -> Tensor:
        return function(outputs.logits, batch.target)

    def of_tokens(outputs: Any, batch: "Batch") -> Tensor:
        return summed(function, *task.judged(outputs, batch, None))

    def weighted(batch: "Batch") -> Tensor:
        assert weights is not None
        return weights.to(batch.target.device)[batch.target]

    if task.target == Target.TOKENS:
        return replace(task.objective, losses=of_tokens)
    if weights is None or task.target == Target.CLASSES:
        return replace(task.objective, losses=losses)
    return replace(task.objective, losses=losses, counts=weighted)
