"""What a run leaves for its user: a model folder that ``transformers`` loads as it is, and the adapter alone.

Each folder is written beside its place and renamed, so that it is there whole or not at all.
"""

import logging
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
"""Largest difference of logits (relative to their largest) at which a merged adapter counts as equal to the adapter."""


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
        probe: One batch's inputs, on which the merged model must agree with the adapter.

    Raises:
        PlatformError: The merged model does not agree with the adapter.
    """
    model.eval()
    adapter = None
    if hasattr(model, "merge_and_unload"):
        # PEFT would ask the hub whether the base's vocabulary has another size; here it never has.
        _write(adapter_to, model, companions, save_embedding_layers=False)
        adapter = adapter_to
        model = _merge(model, probe)
    _write(to, model, companions)
    return Exported(to, adapter)


def _merge(model: Any, probe: Mapping[str, Tensor]) -> nn.Module:
    with torch.no_grad():
        before = model(**probe).logits
        merged: nn.Module = model.merge_and_unload()
        after = merged(**probe).logits
    difference = ((before - after).abs().max() / before.abs().max().clamp(min=1)).item()
    if not difference <= MERGE_TOLERANCE:
        raise PlatformError(
            f"the merged model differs from its adapter (logits by {difference:.2g}, {MERGE_TOLERANCE} is allowed);"
            " the adapter is exported, the merged model is not"
        )
    log.info("adapter merged: logits differ by %.2g", difference)
    return merged


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
