"""The same model by less work and faster kernels than its modules ask for. Gradients and exports do not change.

Seen under a profiler with GPT-2 in bf16 on an H200 (`benchmarks/gpu_tokens.py`): a quarter of a step's 133 ms were the
three matrix products whose width, the vocabulary, is no multiple of 8; with what is here a step takes 83 ms.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as f

from finetune_trainer.attention import use_fast_attention
from finetune_trainer.compiling import compile_model
from finetune_trainer.dropout import use_fast_dropout
from finetune_trainer.first_token import compute_what_is_read

ALIGNMENT = 64
"""Rows of a weight to which tensor cores are fastest (8 in bf16 at least, or another, far slower kernel runs)."""


def make_fast(model: Any, device: torch.device, *, compiled: bool = False) -> None:
    """Have ``model`` (one of transformers') compute no more than it must, by what is fastest on ``device``.

    Args:
        model: Changed in place.
        device: Where it will compute.
        compiled: By torch's compiler; it makes kernels of its own.

    Raises:
        PlatformError: There is no compiler.
    """
    compute_what_is_read(model)
    if compiled:
        compile_model(model, device)
        return
    use_one_gelu(model)
    if device.type == "cpu":
        use_fast_attention(model)
        use_fast_dropout(model)
        add_rows_alone(model)
    else:
        align_output_layer(model)


def use_one_gelu(model: nn.Module) -> None:
    """Compute GELU's approximation by tanh in one kernel (GPT-2's ``gelu_new``, elsewhere ``gelu_fast``).

    It keeps its input for the backward pass, and none of the terms between.
    """
    from transformers.activations import FastGELUActivation, NewGELUActivation

    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, FastGELUActivation | NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


class AlignedLinear(nn.Linear):
    """nn.Linear that computes with rows of zeros up to a multiple of ALIGNMENT, and leaves their outputs out."""

    def forward(self, values: Tensor) -> Tensor:
        """(…, in) → (…, out), a view of something wider."""
        missing = -self.out_features % ALIGNMENT
        bias = None if self.bias is None else f.pad(self.bias, (0, missing))
        return f.linear(values, f.pad(self.weight, (0, 0, 0, missing)), bias)[..., : self.out_features]


def align_output_layer(model: Any) -> None:
    """Align the layer over the vocabulary, if ``model`` has one and its size is not aligned (GPT-2 has 50,257)."""
    layer = model.get_output_embeddings()
    if type(layer) is nn.Linear and layer.out_features % ALIGNMENT:
        layer.__class__ = AlignedLinear


class RowEmbedding(nn.Embedding):
    """nn.Embedding that adds to a gradient that is there the rows that were looked up, and not a whole table of zeros.

    That is so at each but the first of the passes of a step.
    """

    def forward(self, ids: Tensor) -> Tensor:
        """(…) → (…, hidden)."""
        rows: Tensor = _Rows.apply(self.weight, ids, self.padding_idx)
        return rows


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight, ctx.padding = weight, padding
        return f.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        (ids,), size = ctx.saved_tensors, ctx.weight.shape
        padding = -1 if ctx.padding is None else ctx.padding
        if ctx.weight.grad is None:
            return torch.ops.aten.embedding_dense_backward(slope, ids, size[0], padding, False), None, None
        ids, rows = ids.flatten(), slope.flatten(0, -2)
        if padding >= 0:
            is_read = ids != padding
            ids, rows = ids[is_read], rows[is_read]
        # Forward has looked the rows up: they are within.
        return torch.sparse_coo_tensor(ids[None], rows, size, check_invariants=False), None, None


def add_rows_alone(model: nn.Module) -> None:
    """Have the embeddings of ``model`` be RowEmbedding, but for those with wishes of their own."""
    for module in model.modules():
        if type(module) is nn.Embedding and not (module.max_norm or module.scale_grad_by_freq or module.sparse):
            module.__class__ = RowEmbedding
