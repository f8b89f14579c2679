"""What is to be seen in an image, in words: BLIP (https://arxiv.org/abs/2201.12086)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from finetune_api.job import Columns, JobSpec
from finetune_trainer.data.captions import CaptionPart
from finetune_trainer.data.dataset import ImagePart, TextPart
from finetune_trainer.data.prepare import image_parts, text_parts
from finetune_trainer.errors import SpecFault
from finetune_trainer.examples import Gallery, Shown
from finetune_trainer.materials import Ingredients, Ready
from finetune_trainer.models import load_processor, load_tokenizer, max_length_of
from finetune_trainer.task import Objective, Target, Task
from finetune_trainer.tasks.causal_lm import next_token_counts, next_token_losses, next_tokens
from finetune_trainer.thumbnails import thumbnail
from finetune_trainer.writing import write_captions

LONGEST_SHOWN = 40
"""Tokens of a caption in the report."""


def build(_spec: JobSpec) -> Task:
    """Loss on every token of the caption, and on its end."""
    return Task(
        name="image-captioning",
        target=Target.TOKENS,
        auto_class="AutoModelForImageTextToText",
        pipeline="image-text-to-text",
        metrics=("perplexity", "tokenAccuracy"),
        monitor="loss",
        objective=Objective(next_token_losses, next_token_counts),
        roles=roles,
        material=material,
        judged=next_tokens,
        reads_images=True,
        has_new_head=False,
        show=show,
        write=write_captions,
    )


def roles(columns: Columns) -> dict[str, str]:
    """An image and its caption."""
    return {"image": columns.image, "text": columns.text}


def material(task: Task, given: Ingredients) -> Ready:
    """Images through the model's image processor, captions through its tokenizer.

    Raises:
        SpecFault: The model is not a BLIP, or does not know all of the tokenizer's tokens.
    """
    from transformers import BlipProcessor

    spec, config, context = given.spec, given.config, given.context
    if config.model_type != "blip":
        raise SpecFault(f"spec.model: image-captioning takes the architecture blip, got {config.model_type}")
    images = load_processor(spec.model, given.folder, config.vision_config, spec.data.image_size)
    tokenizer = load_tokenizer(spec.model, given.folder, context)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    fit_ends(config.text_config, tokenizer, is_new=given.folder is None)
    max_length = max_length_of(spec.data.max_length, tokenizer, config.text_config)
    slices = {
        name: replace(piece, values=np.zeros(len(piece.samples.table))) for name, piece in given.prepared.slices.items()
    }
    pictures = image_parts(
        replace(given.prepared, slices=slices), task, spec, images, channels=3, cache=context.cache, beat=given.beat
    )
    texts = text_parts(
        given.prepared,
        replace(task, target=Target.PAIRS),  # the tokenizer ends captions itself
        spec.data,
        tokenizer,
        max_length=max_length,
        has_gpu=given.has_gpu,
        masks=spec.training.compile,
        cache=context.cache,
        beat=given.beat,
    )
    start = config.text_config.bos_token_id
    parts = {name: _part(pictures[name], text, start) for name, text in texts.items()}
    return Ready(parts, BlipProcessor(image_processor=images, tokenizer=tokenizer), max_length)


def _part(pictures: Any, texts: Any, start_id: int) -> CaptionPart:
    assert isinstance(pictures, ImagePart)
    assert isinstance(texts, TextPart)
    return CaptionPart(pictures.rows, pictures, texts, start_id)


def fit_ends(config: Any, tokenizer: Any, *, is_new: bool) -> None:
    """See that captions begin and end as BLIP generates them: from ``bos_token_id`` to ``sep_token_id``.

    Raises:
        SpecFault: The tokenizer does not put a token before and after each text, or the model lacks one.
    """
    ids = tokenizer("a")["input_ids"]
    if ids[0] not in tokenizer.all_special_ids or ids[-1] not in tokenizer.all_special_ids:
        raise SpecFault("spec.model.tokenizer: must put a special token before and after each text, as BERT's does")
    if is_new:
        config.bos_token_id, config.sep_token_id, config.eos_token_id = ids[0], ids[-1], ids[-1]
        config.pad_token_id = tokenizer.pad_token_id
    field = "spec.model.config.text_config"
    if len(tokenizer) > config.vocab_size:
        raise SpecFault(
            f"{field}.vocab_size: must be {len(tokenizer)} (the tokenizer's) at least, got {config.vocab_size}"
        )
    if config.sep_token_id != ids[-1]:
        raise SpecFault(f"{field}.sep_token_id: must be {ids[-1]}, by which the tokenizer ends a text")


def show(gallery: Gallery) -> Sequence[Shown]:
    """Images with the caption that the model gives them."""
    positions: int = gallery.model.config.text_config.max_position_embeddings  # type: ignore[union-attr,assignment]
    room = min(LONGEST_SHOWN, positions - 1)  # after the token that begins a caption
    shown = []
    for number in range(gallery.count):
        batch = gallery.batch(number)
        with torch.no_grad():
            ids = gallery.model.generate(  # type: ignore[operator]
                pixel_values=batch.inputs["pixel_values"], max_new_tokens=room, do_sample=False
            )
        shown.append(
            Shown(
                origin=gallery.origin(number),
                image=thumbnail(gallery.cell("image", number)),
                expected=gallery.cell("text", number),
                predicted=gallery.companion.decode(ids[0], skip_special_tokens=True),
            )
        )
    return shown
