"""Attention with dropout on a CPU, a few samples at a time, so that what it computes in between stays in the cache.

torch has one kernel for attention without dropout there; with it, it goes six times through all pairs of positions
forwards and as often backwards, each time through the memory. Here a block of pairs is computed to its end before the
next one begins, and of all pairs one matrix is kept for the backward pass in place of three, with a byte for what is
dropped: what is masked has no weight, and so no gradient.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from finetune_trainer.dropout import kept, new_seed, rounded, scale_of

NAME = "finetune_cpu"
"""Among transformers' implementations of attention."""
_BLOCK = 1 << 17
"""Pairs of positions of a block: half a MiB in fp32, of which a block has three at once."""


class _Attention(torch.autograd.Function):
    """See ``attention``; of float tensors, with dropout."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, p: float
    ) -> Tensor:
        """(n, heads, queries, d)."""
        ctx.scale, ctx.rescale = scale, scale_of(p)
        bits = np.random.SFC64(new_seed())
        out = _like(query, value.shape[-1])
        weights, masks = [], []
        for block in _blocks(query, key):
            scores = torch.matmul(query[block] * scale, key[block].transpose(-1, -2))
            if bias is not None:
                scores += bias[block]
            weights.append(scores.softmax(-1))
            masks.append(kept(bits, scores.shape, p))
            dropped = masks[-1].to(scores.dtype).mul_(weights[-1])
            out[block] = torch.matmul(dropped, value[block])
        ctx.save_for_backward(query, key, value, *weights, *masks)
        return out.mul_(ctx.rescale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """Slopes of queries, keys and values."""
        query, key, value, *saved = ctx.saved_tensors
        blocks = _blocks(query, key)
        weights, masks = saved[: len(blocks)], saved[len(blocks) :]
        slopes = _like(query, query.shape[-1]), _like(key, key.shape[-1]), _like(value, value.shape[-1])
        for block, weight, is_kept in zip(blocks, weights, masks, strict=True):
            mask = is_kept.to(weight.dtype)
            above = slope[block] * ctx.rescale
            of_weights = torch.matmul(above, value[block].transpose(-1, -2)).mul_(mask)
            slopes[2][block] = torch.matmul(mask.mul_(weight).transpose(-1, -2), above)
            of_scores = torch._softmax_backward_data(of_weights, weight, -1, weight.dtype)  # noqa: SLF001
            slopes[0][block] = torch.matmul(of_scores, key[block] * ctx.scale)
            slopes[1][block] = torch.matmul(of_scores.transpose(-1, -2), query[block] * ctx.scale)
        return (*slopes, None, None, None)


def _blocks(query: Tensor, key: Tensor) -> list[slice]:
    samples, heads, queries, _ = query.shape
    size = max(1, _BLOCK // max(1, heads * queries * key.shape[2]))
    return [slice(start, start + size) for start in range(0, samples, size)]


def _like(tensor: Tensor, width: int) -> Tensor:
    """(n, heads, T, width), in memory as the modules around have it: (n, T, heads, width)."""
    samples, heads, length, _ = tensor.shape
    return tensor.new_empty(samples, length, heads, width).transpose(1, 2)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention (https://arxiv.org/abs/1706.03762), as transformers calls it.

    query: (n, heads, queries, d); key, value: (n, heads, T, d); attention_mask: (n or 1, 1 or heads, queries, T), bool
    (true attends) or additive. Returns (n, queries, heads, d). Without dropout, with fewer keys' heads, causal, or with
    what else a model has of its own, it is transformers' way to torch's.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    is_plain = query.shape[:2] == key.shape[:2] and not set(options) & {"position_bias", "softcap", "cache"}
    causal = attention_mask is None and (options.get("is_causal") or getattr(module, "is_causal", False))
    is_learned = attention_mask is not None and attention_mask.requires_grad
    if not rounded(dropout) or not is_plain or causal or is_learned:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return plain
    dtype = torch.promote_types(query.dtype, torch.float32)
    bias = attention_mask
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.zeros(bias.shape, dtype=dtype).masked_fill_(~bias, torch.finfo(dtype).min)
    if bias is not None:
        bias = bias.expand(len(query), -1, -1, -1)
    wide = (one.to(dtype) for one in (query, key, value))
    with torch.autocast("cpu", enabled=False):
        out = _Attention.apply(*wide, bias, scaling or query.shape[-1] ** -0.5, dropout)
    return out.to(value.dtype).transpose(1, 2), None


def use_fast_attention(model: Any) -> None:
    """Have ``model`` (of transformers, on the CPU) attend by this module where it has no wish of its own."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if getattr(model.config, "_attn_implementation", None) == "sdpa":
        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)
