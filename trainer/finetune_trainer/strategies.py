"""What is trained, and how fast: freezing, learning rates by depth, LoRA. Wraps any task and any architecture."""

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune_api.job import LearningRate, Strategy
from finetune_trainer.adapters import add_adapter
from finetune_trainer.errors import SpecFault
from finetune_trainer.layers import Group, Layers, find_layers


@dataclass(frozen=True)
class Rate:
    """The learning rate of one depth."""

    group: str
    """`embeddings`, `layer 3`, `head`."""
    learning_rate: float
    """At its peak."""
    parameters: tuple[str, ...]
    """Qualified names of the trained parameters."""


def apply_strategy(
    model: nn.Module, strategy: Strategy, *, has_new_head: bool, revision: str | None = None
) -> tuple[nn.Module, tuple[Rate, ...]]:
    """Freeze what is not trained, add an adapter if asked for, and give each depth its rate.

    Args:
        model: The model to train.
        strategy: What is asked for.
        has_new_head: The head is not part of the checkpoint: LoRA trains it whole and keeps it with the adapter.
        revision: Of the model's source, which an adapter names as its base.

    Returns:
        The model (a PEFT model for LoRA), and the rates of the depths that are trained, from the bottom up.

    Raises:
        SpecFault: The model has fewer layers than the strategy names, or nothing would be trained.
    """
    layers = find_layers(model)
    if strategy.lora is not None:
        model = add_adapter(model, strategy.lora, has_new_head=has_new_head, revision=revision)
        layers = find_layers(model)
    else:
        _freeze(layers, strategy)
    rates = _rates(layers, strategy.learning_rate)
    if not rates:
        raise SpecFault(
            f"spec.strategy: leaves nothing to train in {type(model).__name__}: its output layer shares its weights"
            " with the embeddings; use lastLayers or lora"
        )
    return model, rates


def _freeze(layers: Layers, strategy: Strategy) -> None:
    for group in layers.groups[: _first_trained(layers, strategy)]:
        _set_frozen(group)
    if strategy.freeze is not None and strategy.freeze.embeddings:
        _set_frozen(layers.groups[0])


def _set_frozen(group: Group) -> None:
    for parameter in group.parameters.values():
        parameter.requires_grad = False


def _first_trained(layers: Layers, strategy: Strategy) -> int:
    """Index of the lowest group that is trained: 0 embeddings, d layer d, L + 1 head."""
    if strategy.trainable == "head":
        return layers.depth + 1
    if strategy.last_layers is not None:
        _check_depth("spec.strategy.lastLayers", strategy.last_layers, layers)
        return layers.depth + 1 - strategy.last_layers
    if strategy.freeze is not None and strategy.freeze.bottom_layers is not None:
        _check_depth("spec.strategy.freeze.bottomLayers", strategy.freeze.bottom_layers, layers)
        return strategy.freeze.bottom_layers + 1
    return 0


def _check_depth(field: str, asked: int, layers: Layers) -> None:
    if asked > layers.depth:
        raise SpecFault(f"{field}: must be at most {layers.depth} (the layers in {layers.path}), got {asked}")


def _rates(layers: Layers, rate: LearningRate) -> tuple[Rate, ...]:
    rates = []
    for depth, group in enumerate(layers.groups):
        trained = tuple(name for name, parameter in group.parameters.items() if parameter.requires_grad)
        if trained:
            rates.append(Rate(group.name, rate_at(rate, depth, layers.depth + 1), trained))
    return tuple(rates)


def rate_at(rate: LearningRate, depth: int, top: int) -> float:
    """The peak rate at ``depth`` (0 embeddings, ``top`` head).

    Discriminative rates: https://arxiv.org/abs/1801.06146 (section 3.2); decay per layer: https://arxiv.org/abs/2003.10555.
    """
    if rate.bottom is not None and rate.top is not None:
        return rate.bottom + (rate.top - rate.bottom) * depth / top
    assert rate.value is not None
    return rate.value * (rate.layer_decay or 1.0) ** (top - depth)


def set_training(model: nn.Module) -> None:
    """Training mode, but for batch norms that are frozen: their statistics are as little to change as their weights."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()
