"""AdamW over the depths of a model, and the course of its learning rates.

Weight decay is on matrices and higher only: biases and the vectors of norms have none.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

from finetune_api.job import Training
from finetune_trainer.strategies import Rate


def build_optimizer(model: nn.Module, rates: Sequence[Rate], training: Training) -> torch.optim.AdamW:
    """AdamW (https://arxiv.org/abs/1711.05101) with two groups a depth: with weight decay and without.

    Each group keeps its peak rate as ``peak``; ``set_rates`` sets what is used.
    """
    named = dict(model.named_parameters())
    groups = [
        {"params": parameters, "lr": rate.learning_rate, "peak": rate.learning_rate, "weight_decay": decay}
        for rate in rates
        for decay, parameters in _by_decay([named[name] for name in rate.parameters], training.weight_decay)
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=True)


def _by_decay(parameters: list[nn.Parameter], decay: float) -> list[tuple[float, list[nn.Parameter]]]:
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    vectors = [parameter for parameter in parameters if parameter.dim() <= 1]
    return [(weight_decay, part) for weight_decay, part in ((decay, matrices), (0.0, vectors)) if part]


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to ``factor`` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def rate_factor(done: float, *, warmup: float, scheduler: str) -> float:
    """The rate as a factor of its peak.

    Args:
        done: Share of the run that is done, 0 to 1.
        warmup: Share of the run in which the rate rises from 0, 0 to 1.
        scheduler: What follows: `linear` or `cosine` falls to 0, `constant` stays.
    """
    if done < warmup:
        return done / warmup
    if scheduler == "constant":
        return 1.0
    rest = (done - warmup) / (1 - warmup) if warmup < 1 else 1.0
    return max(0.0, 1.0 - rest) if scheduler == "linear" else 0.5 * (1 + math.cos(math.pi * min(1.0, rest)))
