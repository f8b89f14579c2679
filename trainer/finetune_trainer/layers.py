"""The depth of a model: embeddings, layers 1..L, head.

The layers are the ModuleList that holds the most parameters (`encoder.layer`, `h`, `stages`, …), found by structure and
never by name. Whatever is registered before it is the embeddings; whatever comes after it is the head.

A model of towers (image and text, each with a configuration of its own) has layers in each. They are counted from the
output: the last layers of all towers are layer L, and a shorter tower begins above layer 1.

A model that writes by a decoder what it has read by an encoder (T5, BART) has the layers of both, in the order in which
they compute: layer 1 is the encoder's first, layer L the decoder's last. All else in the two counts as embeddings, for
a norm there may lie below the layers (BART's) or above them (T5's): were the former trained as part of the head, frozen
layers would be computed backwards for its sake.

If the decoder writes no text but finds objects (DETR), the layers of both follow one another as well, and whatever
comes after the decoder's is the head. An encoder of several lists (the pyramid of RT-DETR and D-FINE) counts as
embeddings. The decoder's layers are the largest of its lists; some of the others hold heads.

What a checkpoint lacked or had in another shape (the classifier at RT-DETR's encoder, if the labels are others) is head
unless it lies in a layer: drawn at random, it must be trained wherever it is registered.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from finetune_trainer.adapters import NEW_WEIGHTS, layer_lists
from finetune_trainer.errors import SpecFault


@dataclass(frozen=True)
class Group:
    """Parameters of one depth."""

    name: str
    """`embeddings`, `layer 1` … or `head`."""
    parameters: dict[str, nn.Parameter]
    """Qualified name → parameter; a shared one counts where it is first registered."""


@dataclass(frozen=True)
class Layers:
    """A model by depth."""

    path: str
    """Qualified name of the ModuleList; of several, names with commas."""
    modules: tuple[nn.Module, ...]
    """Its modules, from the input on; of all lists."""
    groups: tuple[Group, ...]
    """Embeddings, each layer, head: (L + 2,)."""

    @property
    def depth(self) -> int:
        """Number of layers, L."""
        return len(self.groups) - 2


def find_layers(model: nn.Module) -> Layers:
    """The layers of a model.

    Raises:
        SpecFault: It has no list of layers.
    """
    stacks = [_stack(prefix, tower) for prefix, tower in _towers(model)]
    top = max(len(stack.layers) for stack in stacks)
    groups: list[dict[str, nn.Parameter]] = [{} for _ in range(top + 2)]
    inside = {
        id(parameter): depth
        for stack in stacks
        for depth, layer in enumerate(stack.layers, top - len(stack.layers) + 1)
        for parameter in layer.parameters()
    }
    new: frozenset[str] = getattr(model, NEW_WEIGHTS, frozenset())
    below = {stack.prefix for stack in stacks}  # those whose last list has not come yet
    for name, parameter in model.named_parameters():
        stack = next((stack for stack in stacks if name.startswith(stack.prefix)), None)
        depth = inside.get(id(parameter))
        if depth is not None and stack is not None and depth > top - len(stack.lists[-1]):
            below.discard(stack.prefix)
        is_below = stack is not None and (stack.prefix in below or name.startswith(stack.parts))
        is_head = not is_below or _without_adapter(name) in new
        groups[depth if depth is not None else top + 1 if is_head else 0][name] = parameter
    names = ["embeddings", *(f"layer {depth}" for depth in range(1, top + 1)), "head"]
    modules = tuple(layer for stack in stacks for layer in stack.layers)
    return Layers(", ".join(stack.path for stack in stacks), modules, tuple(map(Group, names, groups)))


@dataclass(frozen=True)
class _Stack:
    """The layers of a tower."""

    prefix: str
    """Of the names of all that is in the tower."""
    path: str
    lists: tuple[nn.ModuleList, ...]
    """From the input on."""
    parts: tuple[str, ...] = ()
    """Prefixes of the names in encoder and decoder, if it writes what it reads."""

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        return tuple(layer for layers in self.lists for layer in layers)


def _stack(prefix: str, tower: Any) -> _Stack:
    names = {id(module): f"{prefix}{name}" for name, module in tower.named_modules()}
    sides = _sides(tower)
    lists = tuple(_largest_list(side) for side in sides)
    parts = [f"{names[id(side)]}." for side in sides] if len(sides) > 1 and tower.can_generate() else []
    return _Stack(prefix, ", ".join(names[id(layers)] for layers in lists), lists, tuple(parts))


def _sides(model: Any) -> tuple[nn.Module, ...]:
    """Encoder and decoder if both have layers to count, the decoder behind a hybrid encoder, else the model itself."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return (model,)
    encoder, decoder = model.get_encoder(), model.get_decoder()
    is_hybrid = not model.can_generate() and len(layer_lists(encoder)) != 1
    return (decoder,) if is_hybrid else (encoder, decoder)


def _towers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Prefix of names, and module, of each tower; the model itself if it has none.

    Towers are the modules of one parent that have layers and a configuration of another class than the parent has.
    """
    for name, parent in model.named_modules():
        own = type(getattr(parent, "config", None))
        towers = [
            (f"{name}.{child}.".lstrip("."), module)
            for child, module in parent.named_children()
            if type(getattr(module, "config", None)) not in {own, type(None)} and _lists(module)
        ]
        if len(towers) > 1:
            return towers
    return [("", model)]


def _lists(model: nn.Module) -> list[nn.ModuleList]:
    return [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]


def _largest_list(model: nn.Module) -> nn.ModuleList:
    lists = _lists(model)
    if not lists:
        raise SpecFault(
            f"spec.model: {type(model).__name__} has no list of layers; use an architecture of transformers"
        )
    return max(lists, key=lambda layers: sum(parameter.numel() for parameter in layers.parameters()))


def _without_adapter(name: str) -> str:
    """A weight's name in the model that PEFT has laid an adapter on."""
    return name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
