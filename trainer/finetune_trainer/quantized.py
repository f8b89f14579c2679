"""A frozen base in 4 or 8 bits under an adapter (QLoRA, https://arxiv.org/abs/2305.14314), through bitsandbytes."""

import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from finetune_api.job import JobSpec
from finetune_trainer.adapters import layer_lists
from finetune_trainer.errors import PlatformError, SpecFault

FIELD = "spec.strategy.lora.baseBits"


def bits_of(spec: JobSpec) -> int | None:
    """Bits of the base's weights: 4, 8, or None for full precision."""
    return spec.strategy.lora.base_bits if spec.strategy.lora else None


def check_bits(spec: JobSpec, *, has_gpu: bool, has_library: bool | None = None) -> None:
    """Raise unless the base can be held in as few bits as the spec asks for.

    Raises:
        SpecFault: There is no base to load, or it would be sharded.
        PlatformError: There is no GPU or no bitsandbytes.
    """
    bits = bits_of(spec)
    if bits is None:
        return
    if spec.model.source is None:
        raise SpecFault(f"{FIELD}: needs spec.model.source: a model made from its configuration has no weights to keep")
    if spec.distributed.strategy == "fsdp":
        raise SpecFault(f"{FIELD}: goes with spec.distributed.strategy ddp; a base in {bits} bits is not sharded")
    if not has_gpu:
        raise PlatformError(f"{FIELD}: {bits} bits need a GPU, and there is none; leave it out, or ask for a GPU")
    if not (find_spec("bitsandbytes") is not None if has_library is None else has_library):
        raise PlatformError(f"{FIELD}: {bits} bits need the library bitsandbytes, which the trainer's image lacks")


def loading_options(spec: JobSpec, build: Callable[[], nn.Module], device: Any) -> dict[str, Any]:
    """What ``from_pretrained`` takes to load the base in few bits onto ``device``; nothing if all bits are kept.

    Args:
        spec: The job.
        build: Makes the model from its configuration: what is in few bits is chosen by its modules.
        device: As in transformers' ``device_map``.
    """
    bits = bits_of(spec)
    if bits is None:
        return {}
    from transformers import BitsAndBytesConfig

    with torch.device("meta"):
        kept = [f"{re.escape(name)}$" for name in _outside_layers(build())]
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
    how = four if bits == 4 else {"load_in_8bit": True}  # noqa: PLR2004
    return {
        "quantization_config": BitsAndBytesConfig(**how, llm_int8_skip_modules=kept),
        "device_map": {"": device},
    }


def _outside_layers(model: nn.Module) -> list[str]:
    """Linear modules outside the lists of layers: heads, which are trained whole, and what leads to them."""
    lists = tuple(f"{path}." for path in layer_lists(model))
    return [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and not name.startswith(lists)
    ]


def without_bits(spec: JobSpec) -> JobSpec:
    """The same with its base in full precision: what the adapter is merged into."""
    if bits_of(spec) is None:
        return spec
    assert spec.strategy.lora is not None
    lora = spec.strategy.lora.model_copy(update={"base_bits": None})
    return spec.model_copy(update={"strategy": spec.strategy.model_copy(update={"lora": lora})})


def in_full_precision(model: nn.Module, build: Callable[[], nn.Module]) -> nn.Module:
    """What was trained of ``model`` (an adapter and its head) on a base in full precision, which ``build`` makes."""
    trained = {name: value.detach().cpu() for name, value in model.named_parameters() if value.requires_grad}
    fresh = build()
    unexpected = fresh.load_state_dict(trained, strict=False).unexpected_keys
    assert not unexpected, unexpected
    return fresh
