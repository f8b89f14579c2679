"""LoRA for any architecture: which modules get an adapter, and which are trained whole beside it.

Found by the structure of the model, for PEFT knows no targets for ViT, ResNet, YOLOS, CLIP or BLIP:

- every projection and convolution inside a list of layers (both towers of CLIP, backbone, encoder and decoder of DETR)
  gets an adapter, as QLoRA found best (https://arxiv.org/abs/2305.14314, section 4);
- the head is trained whole and kept with the adapter: the modules beside the backbone, and whatever else the
  checkpoint has no weights for (the classifiers inside RT-DETR when the labels are others).

Invariant: no adapter lies on a weight that two modules share. Merged, it would change both: BLIP's output layer shares
its matrix with its word embeddings, so an adapter on "all linear layers" merges into another model.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from finetune_api.job import Lora
from finetune_trainer.errors import SpecFault

NEW_WEIGHTS = "new_weights"
"""Attribute of a loaded model: qualified names of the parameters that its checkpoint did not have."""


def add_adapter(model: nn.Module, lora: Lora, *, has_new_head: bool, revision: str | None = None) -> nn.Module:
    """The model with a LoRA adapter on ``targetModules``, its head trained whole.

    Args:
        model: The base, frozen from here on.
        lora: What is asked for.
        has_new_head: Train the modules beside the backbone whole.
        revision: Of the model's source, which the adapter names as its base.

    Raises:
        SpecFault: A name in ``targetModules`` matches no module that can be adapted, or one whose weight is shared.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    heads = head_modules(model, has_new_head=has_new_head)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
        target_modules=targets(model, heads, lora.target_modules),
        modules_to_save=list(heads) or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2's weights lie transposed
    )
    _have_embeddings(model)
    adapted: nn.Module = get_peft_model(model, config, revision=revision)
    return adapted


def _have_embeddings(model: Any) -> None:
    """PEFT asks every model whose weights may be tied for its embeddings; D-FINE has none and raises."""
    try:
        model.get_input_embeddings()
    except NotImplementedError:
        model.get_input_embeddings = nn.Identity  # a module without parameters


def mark_new(model: nn.Module, found: Mapping[str, Any]) -> None:
    """Note on ``model`` which of its parameters its checkpoint lacked or had in another shape.

    Args:
        model: As ``from_pretrained`` loaded it.
        found: What that said of it (``output_loading_info``).
    """
    new = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    setattr(model, NEW_WEIGHTS, frozenset(new & dict(model.named_parameters()).keys()))


def targets(model: nn.Module, heads: Iterable[str], asked: Sequence[str] | None) -> str:
    """PEFT's ``target_modules`` as a pattern of whole names: those asked for, or all that can be adapted in the layers.

    Args:
        model: The base.
        heads: Modules that are trained whole, and so get no adapter.
        asked: ``spec.strategy.lora.targetModules``.

    Raises:
        SpecFault: See ``add_adapter``.
    """
    able = [name for name in adaptable(model) if not any(_is_inside(name, head) for head in heads)]
    if asked is None:
        shared, lists = shared_weights(model), layer_lists(model)
        wanted = [name for name in able if name not in shared and any(_is_inside(name, path) for path in lists)]
    else:
        wanted = [name for target in asked for name in _named(model, able, target)]
    if not wanted:
        raise SpecFault(
            f"spec.strategy.lora: {type(model).__name__} has no projection or convolution in a list of layers;"
            " name its modules in targetModules"
        )
    return _pattern(wanted, [name for name, _ in model.named_modules()])


def _named(model: nn.Module, able: Sequence[str], target: str) -> list[str]:
    """Of the modules ``able`` to be adapted those called ``target``, by the end of their name."""
    found = [name for name in able if name == target or name.endswith(f".{target}")]
    if not found:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in able if not name.rpartition(".")[2].isdigit()}))
        raise SpecFault(
            f"spec.strategy.lora.targetModules: no module that can be adapted is named {target!r}; there are {known}"
        )
    shared = shared_weights(model)
    for name in found:
        if name in shared:
            raise SpecFault(
                f"spec.strategy.lora.targetModules: {target!r} ({name}) shares its weight with {shared[name]}:"
                " merged, an adapter on one would change the other; leave it out"
            )
    return found


def adaptable(model: nn.Module) -> list[str]:
    """Qualified names of the modules that LoRA can be laid on and merged into: projections and convolutions.

    Not a convolution in groups, whose update cannot be merged; not the inside of torch's own attention, which uses
    weights without calling their module.
    """
    from transformers.pytorch_utils import Conv1D

    inside = {
        id(part) for module in model.modules() if isinstance(module, nn.MultiheadAttention) for part in module.modules()
    }
    return [
        name
        for name, module in model.named_modules()
        if id(module) not in inside
        and (isinstance(module, nn.Linear | Conv1D) or (isinstance(module, nn.Conv2d) and module.groups == 1))
    ]


def layer_lists(model: nn.Module) -> list[str]:
    """Qualified names of the lists of layers that lie in no other: one a tower, one a stage of a detector."""
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(_is_inside(name, path) for path in found):
            found.append(name)
    return found


def shared_weights(model: nn.Module) -> dict[str, str]:
    """Module → another one that holds the same weight matrix, by their qualified names."""
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter):
            holders.setdefault(id(weight), []).append(name)
    return {
        name: other
        for names in holders.values()
        if len(names) > 1
        for name, other in zip(names, (*names[1:], names[0]), strict=True)
    }


def head_modules(model: nn.Module, *, has_new_head: bool) -> tuple[str, ...]:
    """Modules to train whole: those beside the backbone with weights of their own, and those new to the checkpoint.

    Raises:
        SpecFault: A new weight belongs to no module but the model itself, so no adapter could keep it.
    """
    beside = _beside_backbone(model) if has_new_head else []
    new: list[str] = []
    for name in sorted(getattr(model, NEW_WEIGHTS, ())):
        owner = name.rpartition(".")[0]
        if not owner:
            raise SpecFault(f"spec.strategy.lora: {name} is new to the checkpoint and cannot be kept with an adapter")
        if not any(_is_inside(owner, other) for other in (*beside, *new)):
            new.append(owner)
    return (*beside, *new)


def _beside_backbone(model: nn.Module) -> list[str]:
    backbone = getattr(model, "base_model", None)
    shared = {id(parameter) for parameter in backbone.parameters()} if backbone is not None else set()
    return [
        name
        for name, module in model.named_children()
        if module is not backbone and any(id(parameter) not in shared for parameter in module.parameters())
    ]


def _is_inside(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _pattern(names: Sequence[str], every: Sequence[str]) -> str:
    """A pattern that matches ``names`` and nothing else of ``every``, short where layers are alike."""
    by_shape: dict[str, list[str]] = {}
    for name in names:
        by_shape.setdefault(_alike(name), []).append(name)
    wanted = set(names)
    patterns: list[str] = []
    for shape, found in by_shape.items():
        is_exact = all(name in wanted for name in every if re.fullmatch(shape, name))
        patterns += [shape] if is_exact else map(re.escape, found)
    return f"({'|'.join(patterns)})"


def _alike(name: str) -> str:
    """A pattern of this name with any index in the place of each of its."""
    return r"\.".join(r"\d+" if part.isdigit() else re.escape(part) for part in name.split("."))
