"""The same model by fewer and faster kernels than its modules ask for. Weights, gradients and exports do not change.

Seen under a profiler with GPT-2 in bf16 on an H200 (`benchmarks/gpu_tokens.py`): a quarter of a step's 133 ms were the
three matrix products whose width, the vocabulary, is no multiple of 8; with what is here a step takes 83 ms.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from finetune_trainer.dropout import use_fast_dropout

ALIGNMENT = 64
"""Rows of a weight to which tensor cores are fastest (8 in bf16 at least, or another, far slower kernel runs)."""


def use_fast_kernels(model: Any, device: torch.device) -> None:
    """Have ``model`` (one of transformers') compute on ``device`` by the kernels that are fastest there."""
    use_one_gelu(model)
    if device.type == "cpu":
        use_fast_dropout(model)
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
