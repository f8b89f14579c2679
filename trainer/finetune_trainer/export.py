"""What a run leaves for its user: a model folder that ``transformers`` loads as it is, and the adapter alone.

Each folder is written beside its place and renamed, so that it is there whole or not at all.
"""

import logging
import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from finetune_trainer.errors import PlatformError

log = logging.getLogger(__name__)

MERGE_TOLERANCE = 1e-4
"""Largest difference of an output (relative to its largest value, where that is above 1) at which a merged adapter
counts as equal to the adapter."""


def whole_state(model: nn.Module) -> dict[str, Any]:
    """All weights on the CPU of rank 0; every rank takes part when the model is sharded."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


@dataclass(frozen=True)
class Exported:
    """The folders that were written."""

    model: Path
    adapter: Path | None


def export(
    model: nn.Module, companions: list[Any], *, to: Path, adapter_to: Path, probe: Mapping[str, Tensor]
) -> Exported:
    """Write ``model`` (merged, if it has an adapter) and its tokenizer or processor.

    Args:
        model: The trained model on the CPU, unwrapped.
        companions: Tokenizer or image processor.
        to: Folder of the model.
        adapter_to: Folder of the adapter.
        probe: One real batch's inputs, on which the merged model must agree with the adapter in every output.

    Raises:
        PlatformError: The merged model does not agree with the adapter.
    """
    model.eval()
    adapter = None
    if hasattr(model, "merge_and_unload"):
        # PEFT would ask the hub whether the base's vocabulary has another size; here it never has.
        _write(
            adapter_to, model, [*companions, model.config], save_embedding_layers=False
        )  # PEFT leaves the labels out
        adapter = adapter_to
        model = merge(model, probe)
    _write(to, model, companions)
    return Exported(to, adapter)


def merge(model: Any, probe: Mapping[str, Any]) -> nn.Module:
    """The base with the adapter merged into its weights, seen to compute the same as the adapter.

    Raises:
        PlatformError: It does not: an output differs, or weights that the model ties have become two.
    """
    worst, difference = _merged_in_place(model, probe)
    if difference > MERGE_TOLERANCE:
        worst, difference = _merged_in_double(model, probe)
    if difference > MERGE_TOLERANCE:
        raise _not_merged(f"{worst} by {difference:.2g}, {MERGE_TOLERANCE} is allowed")
    merged: nn.Module = model.unload()
    torn = torn_ties(merged)
    if torn:
        raise _not_merged(f"{torn[0]} and {torn[1]} are one weight in this architecture, and two now")
    log.info("adapter merged: %s differs most, by %.2g", worst, difference)
    return merged


def _merged_in_place(model: Any, probe: Mapping[str, Any]) -> tuple[str, float]:
    """Merge; returns the output that differs most from the adapter's, and by how much."""
    with torch.no_grad():
        before = output_tensors(model(**probe))
        model.merge_adapter()
        after = output_tensors(model(**probe))
    return max(_differences(before, after).items(), key=lambda item: item[1])


def _merged_in_double(model: Any, probe: Mapping[str, Any]) -> tuple[str, float]:
    """The same in float64: what is gone there was rounding, as where a detector ranks its queries."""
    model.unmerge_adapter()
    exact = {name: value.double() if value.is_floating_point() else value for name, value in probe.items()}
    torch.set_default_dtype(torch.float64)
    try:
        found = _merged_in_place(model.double(), exact)
    finally:
        torch.set_default_dtype(torch.float32)
        model.float()
    return found


def _not_merged(why: str) -> PlatformError:
    return PlatformError(
        f"the merged model differs from its adapter ({why}); the adapter is exported, the merged model is not"
    )


def output_tensors(output: Any, name: str = "") -> dict[str, Tensor]:
    """Every tensor of floats in a model's output, by its path (`logits`, `text_model_output.pooler_output`)."""
    if isinstance(output, Tensor):
        return {name: output} if output.is_floating_point() else {}
    inside = dict(enumerate(output)) if isinstance(output, list | tuple) else output
    if not isinstance(inside, Mapping):
        return {}  # a cache of keys and values: logits tell of it
    found: dict[str, Tensor] = {}
    for key, value in inside.items():
        found |= output_tensors(value, f"{name}.{key}".lstrip("."))
    return found


def _differences(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """Largest difference of each output, relative to its largest value where that is above 1; inf if one is NaN."""
    found = {
        name: ((value - after[name]).abs().max() / value.abs().max().clamp(min=1)).item()
        for name, value in before.items()
        if value.numel()
    }
    return {name: math.inf if math.isnan(difference) else difference for name, difference in found.items()}


def torn_ties(model: nn.Module) -> tuple[str, str] | None:
    """Two names of weights that transformers ties when it loads the model, and which differ; None if there are none."""
    ties: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    weights = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name, source in ties.items():
        if name in weights and source in weights and not torch.equal(weights[name], weights[source]):
            return name, source
    return None


def _write(to: Path, model: Any, companions: list[Any], **options: Any) -> None:
    with whole_folder(to) as folder:
        model.save_pretrained(folder, **options)
        for companion in companions:
            companion.save_pretrained(folder)


@contextmanager
def whole_folder(to: Path) -> Any:
    """A folder to write into, which takes the place of ``to`` when all is written."""
    temporary = to.with_name(f".tmp-{to.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    shutil.rmtree(to, ignore_errors=True)
    temporary.rename(to)


Build = Callable[[], nn.Module]
"""Makes the model anew, unwrapped, with random or base weights."""


def unsharded(state: Mapping[str, Any], build: Build) -> nn.Module:
    """A fresh model with the weights of ``whole_state``: what a sharded model is exported through."""
    model = build()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    assert set(missing) <= tied, missing
    return model
