"""Clipping by the norm of the whole gradient: the same number however the gradient is divided over processes.

On a CPU torch's own ``clip_grad_norm_`` adds up a tensor's squares in fp32 one after the other, and loses the small
beside the sum: 3e-4 of the norm for the 12 M gradients of an embedding, and another share for each half of it under
FSDP. Here a row is summed in fp32 and the rows in float64, at the same cost. (A GPU adds in a tree, and loses nothing.)
"""

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Scale all gradients down to norm ``limit`` if theirs is greater; returns their norm before, alike on every rank.

    Collective if gradients are sharded (FSDP2). Not finite if a gradient is not.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return 0.0
    local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    norms = torch._foreach_norm(local) if local[0].is_cuda else tuple(map(_norm, local))  # noqa: SLF001
    square = torch.stack(norms).double().square().sum()
    if isinstance(gradients[0], DTensor):  # FSDP2 shards every parameter, or none
        dist.all_reduce(square, group=gradients[0].device_mesh.get_group())
    norm = math.sqrt(square.item())
    if norm > limit:
        torch._foreach_mul_(local, limit / norm)
    return norm


def _norm(gradient: Tensor) -> Tensor:
    """The Euclidean norm: () float64."""
    rows = torch.linalg.vector_norm(gradient, dim=-1) if gradient.dim() else gradient
    norm: Tensor = torch.linalg.vector_norm(rows, dtype=torch.float64)
    return norm
