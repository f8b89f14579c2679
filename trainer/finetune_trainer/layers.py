"""The depth of a model: embeddings, layers 1..L, head.

The layers are the ModuleList that holds the most parameters (`encoder.layer`, `h`, `stages`, …), found by structure and
never by name. Whatever is registered before it is the embeddings; whatever comes after it is the head.

A model of towers (image and text, each with a configuration of its own) has layers in each. They are counted from the
output: the last layers of all towers are layer L, and a shorter tower begins above layer 1.
"""

from dataclasses import dataclass

from torch import nn

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
    """Qualified name of the ModuleList; of several towers, names with commas."""
    modules: tuple[nn.Module, ...]
    """Its modules, from the input on; of all towers."""
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
    stacks = [(prefix, *_largest_list(tower, prefix)) for prefix, tower in _towers(model)]
    top = max(len(stack) for _, _, stack in stacks)
    groups: list[dict[str, nn.Parameter]] = [{} for _ in range(top + 2)]
    inside = {
        id(parameter): depth
        for _, _, stack in stacks
        for depth, layer in enumerate(stack, top - len(stack) + 1)
        for parameter in layer.parameters()
    }
    below = {prefix for prefix, _, _ in stacks}  # towers whose layers have not come yet
    for name, parameter in model.named_parameters():
        tower = next((prefix for prefix, _, _ in stacks if name.startswith(prefix)), None)
        depth = inside.get(id(parameter))
        if depth is not None:
            below.discard(tower or "")
        groups[depth if depth is not None else 0 if tower in below else top + 1][name] = parameter
    names = ["embeddings", *(f"layer {depth}" for depth in range(1, top + 1)), "head"]
    modules = tuple(layer for _, _, stack in stacks for layer in stack)
    return Layers(", ".join(path for _, path, _ in stacks), modules, tuple(map(Group, names, groups)))


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


def _lists(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    return [
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    ]


def _largest_list(model: nn.Module, prefix: str) -> tuple[str, nn.ModuleList]:
    stacks = _lists(model)
    if not stacks:
        raise SpecFault(
            f"spec.model: {type(model).__name__} has no list of layers; use an architecture of transformers"
        )
    name, stack = max(stacks, key=lambda item: sum(parameter.numel() for parameter in item[1].parameters()))
    return prefix + name, stack
