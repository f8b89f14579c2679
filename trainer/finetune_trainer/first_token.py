"""Classifiers that read the first token alone: their last layer computes no more than what that token needs.

Its keys and values are of all tokens; the queries, the attention's output, norms and the products between are only of
the first: five sixths of the layer's work are saved, an eighth of a model with six layers, a fifteenth of one with
twelve. Outputs and gradients are what they were.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import Tensor, nn

from finetune_trainer.attention import NAME
from finetune_trainer.layers import find_layers


def compute_what_is_read(model: nn.Module) -> None:
    """Have the last layer of ``model``, or of what it wraps, return (n, 1, hidden), if no more is read of it."""
    for module in model.modules():
        forward = _FORWARDS.get(type(module).__name__)
        config: Any = getattr(module, "config", None)
        # Other implementations take masks of their own shapes; a decoder's first token sees itself alone.
        if (
            forward is not None
            and config._attn_implementation in {"sdpa", NAME}  # noqa: SLF001 - it has no public name
            and not getattr(config, "is_decoder", False)
        ):
            layer = find_layers(module).modules[-1]
            layer.forward = MethodType(forward, layer)


def _bert(layer: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **options: Any) -> Tensor:
    own = layer.attention.self
    first = hidden_states[:, :1]
    projected = own.query(first), own.key(hidden_states), own.value(hidden_states)
    seen = _attend(own, projected, attention_mask, own.dropout.p, options)
    rows: Tensor = layer.feed_forward_chunk(layer.attention.output(seen, first))
    return rows


def _distilbert(layer: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Tensor:
    own = layer.attention
    first = hidden_states[:, :1]
    projected = own.q_lin(first), own.k_lin(hidden_states), own.v_lin(hidden_states)
    seen = own.out_lin(_attend(own, projected, attention_mask, own.dropout.p, options))
    first = layer.sa_layer_norm(seen + first)
    rows: Tensor = layer.output_layer_norm(layer.ffn(first) + first)
    return rows


def _vit(layer: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Tensor:
    own = layer.attention
    normed = layer.layernorm_before(hidden_states)
    projected = own.q_proj(normed[:, :1]), own.k_proj(normed), own.v_proj(normed)
    seen = own.o_proj(_attend(own, projected, attention_mask, own.attention_dropout, options))
    first = layer.dropout(seen) + hidden_states[:, :1]
    rows: Tensor = layer.dropout(layer.mlp(layer.layernorm_after(first))) + first
    return rows


def _attend(
    module: Any, projected: tuple[Tensor, ...], mask: Tensor | None, dropout: float, options: dict[str, Any]
) -> Tensor:
    """(n, 1, heads x d) from queries of that shape, and keys and values (n, T, heads x d)."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    size = getattr(module, "head_dim", None) or module.attention_head_size
    query, key, value = (one.view(*one.shape[:2], -1, size).transpose(1, 2) for one in projected)
    attend = ALL_ATTENTION_FUNCTIONS[module.config._attn_implementation]  # noqa: SLF001
    if mask is not None:
        mask = mask[:, :, :1]
    rate = dropout if module.training else 0.0
    rows: Tensor = attend(module, query, key, value, mask, dropout=rate, scaling=module.scaling, **options)[0]
    return rows.flatten(2)


_FORWARDS: dict[str, Callable[..., Any]] = {
    "BertForSequenceClassification": _bert,
    "CamembertForSequenceClassification": _bert,
    "DeiTForImageClassification": _vit,
    "DistilBertForSequenceClassification": _distilbert,
    "ElectraForSequenceClassification": _bert,
    "RobertaForSequenceClassification": _bert,
    "ViTForImageClassification": _vit,
    "XLMRobertaForSequenceClassification": _bert,
}
