"""The depth of a model: embeddings, layers 1..L, head.

The layers are the ModuleList that holds the most parameters (`encoder.layer`, `h`, `stages`, …), found by structure and
never by name. Whatever is registered before it is the embeddings; whatever comes after it is the head.
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
    """Qualified name of the ModuleList."""
    modules: tuple[nn.Module, ...]
    """Its modules, from the input on."""
    groups: tuple[Group, ...]
    """Embeddings, each layer, head: (L + 2,)."""

    @property
    def depth(self) -> int:
        """Number of layers, L."""
        return len(self.modules)


def find_layers(model: nn.Module) -> Layers:
    """The layers of a model.

    Raises:
        SpecFault: It has no list of layers.
    """
    path, stack = _largest_list(model)
    groups: list[dict[str, nn.Parameter]] = [{} for _ in range(len(stack) + 2)]
    inside = {id(parameter): depth for depth, layer in enumerate(stack, 1) for parameter in layer.parameters()}
    seen_stack = False
    for name, parameter in model.named_parameters():
        depth = inside.get(id(parameter))
        seen_stack = seen_stack or depth is not None
        groups[depth if depth is not None else len(stack) + 1 if seen_stack else 0][name] = parameter
    names = ["embeddings", *(f"layer {depth}" for depth in range(1, len(stack) + 1)), "head"]
    return Layers(path, tuple(stack), tuple(map(Group, names, groups)))


def _largest_list(model: nn.Module) -> tuple[str, nn.ModuleList]:
    stacks = [
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    ]
    if not stacks:
        raise SpecFault(
            f"spec.model: {type(model).__name__} has no list of layers; use an architecture of transformers"
        )
    return max(stacks, key=lambda item: sum(parameter.numel() for parameter in item[1].parameters()))
