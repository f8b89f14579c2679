"""Mixup and CutMix: a training image, and its class, mixed with another sample's.

Invariant: what a sample is mixed with, and how, is a function of (seed, epoch, index) and of the number of samples. So
it does not matter which samples share a batch, a pass or a process, and a resumed run mixes the same.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from finetune_api.job import ImageAugmentation
from finetune_trainer.data.augment.draws import Stream, generator
from finetune_trainer.data.order import Indices
from finetune_trainer.task import Objective

if TYPE_CHECKING:
    from finetune_trainer.data.dataset import Batch


@dataclass(frozen=True)
class Mix:
    """With what a sample is mixed, and how."""

    partner: int
    """Index of the other sample, itself as the epoch has it."""
    share: float
    """Of the sample itself, 0 to 1 (lambda of both papers)."""
    center: tuple[float, float] | None
    """Of the pasted rectangle, from left and top, as shares of the image; None blends (mixup)."""


@dataclass(frozen=True)
class Mixing:
    """Draws what each sample is mixed with."""

    spec: ImageAugmentation
    seed: int
    count: int
    """Training samples."""

    def draw(self, epoch: int, index: int) -> Mix | None:
        """With what sample ``index`` is mixed in ``epoch``; None if it stays as it is."""
        kinds = [kind for kind in ("mixup", "cutmix") if getattr(self.spec, kind) is not None]
        random = generator(Stream.MIX, self.seed, epoch, index)
        use, partner, which, left, top = random.random(5).tolist()
        if use >= self.spec.mix_probability:
            return None
        kind = kinds[int(which * len(kinds))]
        alpha = getattr(self.spec, kind)
        share = float(random.beta(alpha, alpha))
        return Mix(int(partner * self.count), share, (left, top) if kind == "cutmix" else None)


def mix_images(own: Tensor, other: Tensor, mix: Mix) -> tuple[Tensor, float]:
    """The mixed image (C, H, W), and the share of ``own`` in it: for a pasted rectangle, the share of its pixels."""
    if mix.center is None:
        return mix.share * own + (1 - mix.share) * other, mix.share
    height, width = own.shape[-2:]
    left, top = mix.center
    rows, columns = _span(top, height, mix.share), _span(left, width, mix.share)
    mixed = own.clone()
    mixed[:, rows, columns] = other[:, rows, columns]
    return mixed, 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)


def _span(middle: float, size: int, share: float) -> slice:
    """Where the rectangle lies along one side: sqrt(1 - share) of it, cut at the image's edge (CutMix, section 3.1)."""
    length = size * math.sqrt(1 - share)
    return slice(max(0, round(middle * size - length / 2)), min(size, round(middle * size + length / 2)))


def mix_batch(
    mixing: Mixing,
    epoch: int,
    indices: Indices,
    pixels: Tensor,
    target: Tensor,
    fetch: Callable[[Indices], tuple[Tensor, Tensor]],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Samples mixed with others.

    Args:
        mixing: Draws with which, and how.
        epoch: The epoch.
        indices: (n,) the samples.
        pixels: (n, C, H, W) their images.
        target: (n,) their classes.
        fetch: Indices → images and classes of other samples, as the epoch has them.

    Returns:
        Images (n, C, H, W), and a target of two: ``own`` and ``other`` (n,), and the ``share`` (n,) float32 of ``own``.
    """
    drawn = [mixing.draw(epoch, int(index)) for index in indices]
    mixed = [(at, mix) for at, mix in enumerate(drawn) if mix is not None]
    share, other = torch.ones(len(indices)), target.clone()
    if mixed:
        others, other_target = fetch(np.array([mix.partner for _, mix in mixed]))
        pixels = pixels.clone()
        for (at, mix), image, label in zip(mixed, others, other_target, strict=True):
            pixels[at], share[at] = mix_images(pixels[at], image, mix)
            other[at] = label
    return pixels, {"own": target, "other": other, "share": share}


def mixed_objective(objective: Objective) -> Objective:
    """The objective for targets of ``mix_batch``: share × loss of the one + (1 - share) × loss of the other.

    It is that of the mixed class for cross-entropy (mixup, section 3), and holds for any other loss of a class.
    """

    def blend(function: Callable[["Batch"], Tensor], batch: "Batch") -> Tensor:
        share = batch.target["share"]
        own, other = (function(replace(batch, target=batch.target[name])) for name in ("own", "other"))
        blended: Tensor = share * own + (1 - share) * other
        return blended

    def losses(outputs: Any, batch: "Batch") -> Tensor:
        return blend(lambda one: objective.losses(outputs, one), batch)

    return replace(objective, losses=losses, counts=lambda batch: blend(objective.counts, batch))
