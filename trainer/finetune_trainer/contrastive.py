"""The contrastive loss of image-text pairs, whose negatives are all other pairs of the whole batch.

Invariant: the sum of the losses, and its gradient, is that of the batch in one process and one pass, however it is
shared by processes (embeddings are gathered with their gradient) and cut into passes (embeddings are cached).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from finetune_trainer.data.dataset import Batch
from finetune_trainer.distributed import gradient_sync
from finetune_trainer.task import Objective

Rows = tuple[Tensor, ...]
"""What a loss is computed from: tensors with a row (or several) a sample, (n, …)."""


def contrastive_losses(images: Tensor, texts: Tensor, ids: Tensor) -> Tensor:
    """Symmetric InfoNCE of our pairs among the pairs of all processes: (n,) float32. Collective.

    Args:
        images: (n, d), of length 1 times the scale of the logits (the inverse of the temperature).
        texts: (n, d), of length 1.
        ids: (n, 2) int64, which image and which text each pair is made of.
    """
    images, texts = images.float(), texts.float()
    return losses_among(images, texts, ids, (gather_rows(images), gather_rows(texts), gather_rows(ids)))


def losses_among(images: Tensor, texts: Tensor, ids: Tensor, candidates: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Symmetric InfoNCE of n pairs among N ``candidates`` (images, texts, ids): (n,) float32.

    InfoNCE: https://arxiv.org/abs/1807.03748; over images and over texts, each half: CLIP, figure 3 of
    https://arxiv.org/abs/2103.00020. A pair with the same image or the same text as another is a second positive, not a
    negative: cross-entropy with equal shares for all positives, equation 3 of https://arxiv.org/abs/2204.03610.
    """
    all_images, all_texts, all_ids = candidates
    positive = (ids[:, :1] == all_ids[:, 0]) | (ids[:, 1:2] == all_ids[:, 1])
    with torch.autocast(images.device.type, enabled=False):
        by_image = _cross_entropy(images @ all_texts.T, positive)
        by_text = _cross_entropy(texts @ all_images.T, positive)
    return (by_image + by_text) / 2


def _cross_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    """(n,) cross-entropy with equal shares for the positives among (n, N) logits."""
    shares = positive / positive.sum(dim=1, keepdim=True)
    return logits.logsumexp(dim=1) - (logits * shares).sum(dim=1)


def gather_rows(local: Tensor) -> Tensor:
    """The rows (n, …) of every process, rank by rank: (N, …). Collective; processes may have different numbers of rows.

    The gradient of our rows is the sum of what the processes' losses have for them.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return local
    sizes = [torch.zeros(1, dtype=torch.int64, device=local.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(local)], device=local.device))
    gathered: Tensor = _GatherRows.apply(local, [int(size) for size in sizes])
    return gathered


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, local: Tensor, sizes: list[int]) -> Tensor:
        rank = dist.get_rank()
        context.rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        padded = local.new_zeros((max(sizes), *local.shape[1:]))
        padded[: len(local)] = local
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        whole = gradient.contiguous()
        dist.all_reduce(whole)
        return whole[context.rows], None


class Precision(Protocol):
    """What of an Accelerator a backward pass needs."""

    @property
    def device(self) -> torch.device:
        """Where the model lies."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of a forward pass."""

    def backward(self, loss: Tensor) -> None:
        """Take a scalar back to the weights."""


def backward_jointly(
    objective: Objective, model: nn.Module, batches: Sequence[Batch], scales: Tensor, precision: Precision
) -> list[float]:
    """Backward of a joint objective over all passes of a batch; returns the sum of each part of the loss: (K,).

    Args:
        objective: What is minimised.
        model: The model, perhaps shared by processes.
        batches: Our passes.
        scales: (K,), what each part's sum is multiplied by for the backward pass.
        precision: Autocast, and scaling of the loss.
    """
    counted = [batch for batch in batches if batch.is_counted]
    targets = torch.cat([batch.target for batch in counted] or [batches[0].target[:0]])
    whole = Batch({}, targets, np.concatenate([batch.indices for batch in counted] or [batches[0].indices[:0]]))
    sums: list[float] = []

    def forward(batch: Batch) -> Rows:
        with precision.autocast():
            rows: Rows = objective.forward(model, batch)
        return rows if batch.is_counted else tuple(each[:0] for each in rows)

    def loss_of(rows: Rows) -> Tensor:
        parts = objective.losses(rows, whole).sum(0).reshape(-1)
        sums.extend(parts.tolist())
        return (parts * scales).sum()

    backward_in_passes(
        [partial(forward, batch) for batch in batches],
        loss_of,
        precision.backward,
        sync=lambda is_last: gradient_sync(model, is_last=is_last),
        device=precision.device,
    )
    return sums


def backward_in_passes(
    forwards: Sequence[Callable[[], Rows]],
    loss_of: Callable[[Rows], Tensor],
    backward: Callable[[Tensor], None],
    *,
    sync: Callable[[bool], AbstractContextManager[None]],
    device: torch.device,
) -> None:
    """Backward of a loss over all passes of a batch, with the memory of one pass.

    Gradient caching, https://arxiv.org/abs/2101.06983: all rows are computed without a graph, then the gradient of the
    loss for them; each pass is computed again, with the same dropout, and takes its rows' gradient back to the weights.
    It costs one more forward.

    Args:
        forwards: One a pass: computes its rows.
        loss_of: Rows of all passes → loss, scaled for the backward pass.
        backward: Takes a scalar back to the weights.
        sync: (is the last pass) → context of a pass's forward and backward; processes share gradients in the last.
        device: Of the model, whose generator dropout draws from.
    """
    states, cached = [], []
    with torch.no_grad():
        for forward in forwards:
            states.append(_generators(device))
            cached.append(forward())
    gradients = _gradients(cached, loss_of)
    for number, (forward, state, gradient) in enumerate(zip(forwards, states, gradients, strict=True), 1):
        _restore(device, state)
        with sync(number == len(forwards)):
            backward(torch.stack([(rows * each).sum() for rows, each in zip(forward(), gradient, strict=True)]).sum())


def _gradients(cached: Sequence[Rows], loss_of: Callable[[Rows], Tensor]) -> list[Rows]:
    """The gradient of the loss for the rows of each pass."""
    leaves = [tuple(rows.requires_grad_() for rows in each) for each in cached]
    loss = loss_of(tuple(torch.cat(parts) for parts in zip(*leaves, strict=True)))
    flat = iter(torch.autograd.grad(loss, [rows for each in leaves for rows in each]))
    return [tuple(next(flat) for _ in each) for each in leaves]


def _generators(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
