"""Dropout on a CPU, with masks drawn ten times as fast as torch draws them there.

torch draws one number after another from a Mersenne Twister, about 10 ns each, in one thread: on a small encoder a
tenth of the training time. Here numpy's SFC64 fills the mask, 16 random bits an element, and torch's generator gives
the seed: the mask is a function of torch's seed, as it is with torch's own dropout, also when gradient checkpointing
draws it again.

The probability is rounded to 1/65,536, and the scale 1 / (1 - p) is that of the rounded one: the mean stays exact.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

_LEVELS = 1 << 16


def new_seed() -> int:
    """A number of torch's generator, from which ``kept`` draws."""
    return int(torch.randint(2**63 - 1, ()))


def rounded(p: float) -> float:
    """The probability with which an element is dropped for ``p``."""
    return round(p * _LEVELS) / _LEVELS


def scale_of(p: float) -> float:
    """What is kept is multiplied by this, so that the mean stays; 0 if nothing is."""
    rate = rounded(p)
    return 1 / (1 - rate) if rate < 1 else 0.0


def kept(bits: np.random.SFC64, shape: torch.Size, p: float) -> Tensor:
    """What is kept of a tensor of ``shape``, as the next of ``bits`` say: 1 or, with probability ``rounded(p)``, 0."""
    count = math.prod(shape)
    drawn = bits.random_raw(-(-count // 4)).view(np.uint16)[:count]
    # Compared by numpy, and as numbers: a comparison by torch, or to float from bool, takes four to ten times as long.
    return torch.from_numpy((drawn >= round(p * _LEVELS)).view(np.uint8)).view(shape)


def drop(values: Tensor, p: float) -> Tensor:
    """``values`` (any shape, on the CPU), each set to 0 with probability ``p``, the others scaled by 1 / (1 - p)."""
    if rounded(p) == 0:
        return values
    mask = kept(np.random.SFC64(new_seed()), values.shape, p).to(values.dtype)
    return values * mask.mul_(scale_of(p))


class CpuDropout(nn.Dropout):
    """nn.Dropout by ``drop``."""

    def forward(self, values: Tensor) -> Tensor:
        """The same as nn.Dropout's, for tensors on the CPU."""
        return drop(values, self.p) if self.training else values


def use_fast_dropout(model: nn.Module) -> None:
    """Have ``model`` (on the CPU) draw its dropout masks by this module; attention's are of ``attention.py``."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, CpuDropout(child.p))
