"""Texts that a model writes in an evaluation, for the metrics that compare them with those that were expected."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from finetune_trainer.data.dataset import Batch
from finetune_trainer.task import IGNORED

MOST_TOKENS = 128
"""Tokens that are written for a sample, at most."""

Written = tuple[list[str], list[str]]
"""What the model wrote, and what was expected: (n), (n)."""


def write_answers(model: nn.Module, batch: Batch, tokenizer: Any) -> Written:
    """A language model's answers: what comes after the prompt, or after the first half of a text without one.

    The likeliest token is taken each time. Prompts are padded on the left, as ``generate`` wants them.
    """
    ids, wanted = batch.inputs["input_ids"], batch.target
    mask = batch.inputs.get("attention_mask", torch.ones_like(ids)).bool()
    rows = [(one[kept], target[kept]) for one, target, kept in zip(ids, wanted, mask, strict=True)]
    starts = [answer_start(target) for _, target in rows]
    room = max([len(one) - start for (one, _), start in zip(rows, starts, strict=True)])
    width = max(starts)
    prompts = torch.full((len(rows), width), tokenizer.pad_token_id, device=ids.device)
    seen = torch.zeros_like(prompts)
    for row, ((one, _), start) in enumerate(zip(rows, starts, strict=True)):
        prompts[row, width - start :], seen[row, width - start :] = one[:start], 1
    written = _generate(model, tokenizer, room, input_ids=prompts, attention_mask=seen)
    expected = [one[start:] for (one, _), start in zip(rows, starts, strict=True)]
    return _texts(tokenizer, list(written[:, width:])), _texts(tokenizer, expected)


def write_captions(model: nn.Module, batch: Batch, processor: Any) -> Written:
    """Captions of the batch's images."""
    room = int(batch.target.shape[1])
    return _whole_targets(model, batch, processor.tokenizer, room, pixel_values=batch.inputs["pixel_values"])


def write_sequences(model: nn.Module, batch: Batch, tokenizer: Any) -> Written:
    """What the model makes of the batch's texts, at a length that does not depend on what is expected."""
    ids = batch.inputs["input_ids"]
    mask = batch.inputs.get("attention_mask", torch.ones_like(ids))
    positions = getattr(_inner(model).config, "max_position_embeddings", None) or MOST_TOKENS + 1
    return _whole_targets(model, batch, tokenizer, positions - 1, input_ids=ids, attention_mask=mask)


def _whole_targets(model: nn.Module, batch: Batch, tokenizer: Any, room: int, **inputs: Tensor) -> Written:
    """Of a model that writes nothing but the target."""
    written = _generate(model, tokenizer, room, **inputs)
    expected = [target[target != IGNORED] for target in batch.target]
    return _texts(tokenizer, list(written)), _texts(tokenizer, expected)


def answer_start(wanted: Tensor) -> int:
    """Where the last answer begins: the last place from which on all is learned; the middle if everything is."""
    learned = wanted != IGNORED
    starts = (learned[1:] & ~learned[:-1]).nonzero().flatten() + 1
    return int(starts[-1]) if len(starts) else max(1, len(wanted) // 2)


def _generate(model: Any, tokenizer: Any, room: int, **inputs: Tensor) -> Tensor:
    inner = _inner(model)
    written: Tensor = inner.generate(
        **inputs,
        max_new_tokens=max(1, min(room, MOST_TOKENS)),
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        synced_gpus=isinstance(inner, FSDPModule),
    )
    return written


def _inner(model: Any) -> Any:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _texts(tokenizer: Any, rows: list[Tensor]) -> list[str]:
    return [str(tokenizer.decode(row, skip_special_tokens=True)).strip() for row in rows]
