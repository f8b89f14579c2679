"""The next token of a text: everywhere in it, or only in answers (``data.chat``)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as f

from finetune_api.job import Columns, JobSpec
from finetune_trainer.data.dataset import Batch
from finetune_trainer.examples import Gallery, Shown
from finetune_trainer.losses import cross_entropy, summed
from finetune_trainer.materials import answer_material, text_material
from finetune_trainer.task import IGNORED, Objective, Target, Task
from finetune_trainer.writing import write_answers

GENERATED_TOKENS = 64
"""Tokens that an example in the report may have."""


def build(spec: JobSpec) -> Task:
    """Loss on every token but the first of a text, its end-of-text token among them; or on those of answers."""
    has_answers = spec.data.columns.messages is not None or spec.data.columns.prompt is not None
    return Task(
        name="causal-lm",
        target=Target.TOKENS,
        auto_class="AutoModelForCausalLM",
        pipeline="text-generation",
        metrics=("perplexity", "tokenAccuracy"),
        monitor="loss",
        objective=Objective(next_token_losses, next_token_counts),
        roles=roles,
        material=answer_material if has_answers else text_material,
        judged=next_tokens,
        has_new_head=False,
        show=show,
        write=write_answers,
    )


def roles(columns: Columns) -> dict[str, str]:
    """The text to learn, which is also the target, or a pair of them, one after the other; or what has answers."""
    if columns.messages is not None:
        return {"messages": columns.messages}
    if columns.prompt is not None and columns.completion is not None:
        return {"prompt": columns.prompt, "completion": columns.completion}
    pair = {"text_pair": columns.text_pair} if columns.text_pair is not None else {}
    return {"text": columns.text, **pair}


def next_token_losses(outputs: Any, batch: Batch) -> Tensor:
    """Cross-entropy summed over each sample's tokens: (n,). logits: (n, T, V); position t predicts t + 1."""
    wanted = f.pad(batch.target[:, 1:], (0, 1), value=IGNORED)  # logits without their last would be a copy of them
    return summed(cross_entropy, outputs.logits, wanted)


def next_token_counts(batch: Batch) -> Tensor:
    """Tokens of each sample that are predicted: (n,)."""
    counts: Tensor = (batch.target[:, 1:] != IGNORED).sum(dim=1)
    return counts


def next_tokens(outputs: Any, batch: Batch, _companion: Any) -> tuple[Any, Any]:
    """Logits beside the token that each shall predict."""
    return outputs.logits[:, :-1], batch.target[:, 1:]


def show(gallery: Gallery) -> Sequence[Shown]:
    """What the model writes after a prompt, or after the first half of a text, taking the likeliest token each time."""
    shown = []
    for number in range(gallery.count):
        batch = gallery.batch(number)
        ids, wanted = batch.inputs["input_ids"][0], batch.target[0]
        if "attention_mask" in batch.inputs:
            kept = batch.inputs["attention_mask"][0].bool()
            ids, wanted = ids[kept], wanted[kept]
        start = answer_start(wanted)
        if start is None:
            continue
        shown.append(
            Shown(
                origin=gallery.origin(number),
                given=gallery.companion.decode(ids[:start], skip_special_tokens=True),
                expected=gallery.companion.decode(ids[start:], skip_special_tokens=True),
                predicted=_continued(gallery, ids[:start]),
            )
        )
    return shown


def answer_start(wanted: Tensor) -> int | None:
    """Where the last answer begins, after 0; the middle, if everything is learned; None if nothing can be written."""
    learned = wanted != IGNORED
    if bool(learned.all()):
        return len(wanted) // 2 or None
    starts = (learned[1:] & ~learned[:-1]).nonzero().flatten() + 1
    return int(starts[-1]) if len(starts) else None


def _continued(gallery: Gallery, ids: Tensor) -> str:
    config = gallery.model.config
    positions = getattr(config, "max_position_embeddings", None) or len(ids) + GENERATED_TOKENS
    room = min(GENERATED_TOKENS, positions - len(ids))
    if room < 1:
        return ""
    with torch.no_grad():
        written = gallery.model.generate(  # type: ignore[operator]
            input_ids=ids[None],
            attention_mask=torch.ones_like(ids)[None],
            max_new_tokens=room,
            do_sample=False,
            pad_token_id=gallery.companion.pad_token_id,
        )
    text: str = gallery.companion.decode(written[0, len(ids) :], skip_special_tokens=True)
    return text
