"""Which text belongs to which image (CLIP, BLIP), and perhaps which class an image is of.

A model's forward pass is replaced by one that gives all that the loss needs, a row (or several) a pair: embeddings that
the whole batch is compared by, and logits of the classification part. What is exported is the model as it was, with
trained weights.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from finetune_api.job import Columns, JobSpec, Matching
from finetune_trainer.contrastive import Rows, contrastive_losses
from finetune_trainer.data.dataset import Batch
from finetune_trainer.data.pairs import pair_parts, pair_values
from finetune_trainer.data.prepare import image_parts, text_parts
from finetune_trainer.errors import SpecFault
from finetune_trainer.materials import Ingredients, Ready
from finetune_trainer.models import load_processor, load_tokenizer, max_length_of
from finetune_trainer.retrieval import RECALLS
from finetune_trainer.task import Objective, Target, Task

TEMPERATURE = 0.07
"""Of the similarities of a model that learns none (https://arxiv.org/abs/2201.12086 starts there)."""
_LEGACY_END = 2
"""Configurations of CLIP with this end-of-text id read a text by its highest id instead."""


def build(spec: JobSpec) -> Task:
    """Contrastive over the whole batch, plus classification: labels (CLIP), or match or no match (BLIP)."""
    matching = spec.training.matching or Matching()
    return Task(
        name="image-text-matching",
        target=Target.PAIRS,
        auto_class="AutoModel",
        model_classes={"blip": "BlipForImageTextRetrieval"},
        pipeline="zero-shot-image-classification",
        metrics=(*RECALLS, "accuracy") if matching.labels else RECALLS,
        monitor="recallAt1",
        objective=Objective(partial(pair_losses, matching), is_joint=True),
        roles=partial(roles, matching),
        material=partial(material, matching),
        judged=judged,
        reads_images=True,
        has_new_head=False,
        adapt=partial(adapt, matching),
    )


def roles(matching: Matching, columns: Columns) -> dict[str, str]:
    """Image and text, and the class if one is learned."""
    both = {"image": columns.image, "text": columns.text}
    return both | {"label": columns.label} if matching.labels else both


def pair_losses(matching: Matching, rows: Rows, batch: Batch) -> Tensor:
    """(n,) loss of each pair among all pairs of the batch. Collective; a stand-in has none and is no negative.

    Args:
        matching: The parts' weights.
        rows: images (n, d) times scale, texts (n, d), and logits: (n, C) of classes, or (n, 2, 2) of the right and a
            wrong text, each no match or match.
        batch: Its target as ``PairPart`` has it.
    """
    target = batch.target
    if not batch.is_counted:
        rows, target = tuple(each[:0] for each in rows), target[:0]
    images, texts, *logits = rows
    losses = matching.contrastive_weight * contrastive_losses(images, texts, target[:, :2])
    for each in logits:
        losses = losses + matching.classification_weight * _classification(each.float(), target)
    return losses


def _classification(logits: Tensor, target: Tensor) -> Tensor:
    """(n,) cross-entropy of each pair; of its right and its wrong text the mean."""
    wanted = classes_of(logits, target)
    losses = cross_entropy(logits.flatten(0, -2), wanted.flatten(), reduction="none").view(wanted.shape)
    return losses.mean(dim=1) if losses.ndim > 1 else losses


def classes_of(logits: Tensor, target: Tensor) -> Tensor:
    """The right classes for ``logits``: labels (n,); or match, no match of each pair: (n, 2)."""
    if logits.ndim == 2:  # noqa: PLR2004 - (n, C)
        return target[:, 3]
    return torch.tensor([1, 0], device=target.device).expand(len(target), 2)


def judged(rows: Rows, batch: Batch, _companion: Any) -> tuple[Any, Any]:
    """Embeddings with what they are of, and the classes of the classification part."""
    images, texts, *logits = rows
    predictions = {"images": images, "texts": texts, "classes": [each.argmax(-1).flatten() for each in logits]}
    wanted = [classes_of(each, batch.target).flatten() for each in logits]
    return predictions, {"pairs": batch.target[:, :3], "classes": wanted}


def material(matching: Matching, task: Task, given: Ingredients) -> Ready:
    """Images through the model's image processor, texts through its tokenizer.

    Raises:
        SpecFault: The model is none that matches images and texts, or it and the tokenizer do not fit.
    """
    check_model(matching, given)
    spec, config, context = given.spec, given.config, given.context
    processor = load_processor(spec.model, given.folder, config.vision_config, spec.data.image_size)
    tokenizer = load_tokenizer(spec.model, given.folder, context)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # all that the two take
    fit_tokenizer(
        config, tokenizer, is_new=given.folder is None, asked=(spec.model.config or {}).get("text_config", {})
    )
    max_length = max_length_of(spec.data.max_length, tokenizer, config.text_config)
    slices = {
        name: replace(piece, values=pair_values(piece.samples.table, piece.values))
        for name, piece in given.prepared.slices.items()
    }
    prepared = replace(given.prepared, slices=slices)
    channels = getattr(config.vision_config, "num_channels", 3)
    images = image_parts(prepared, task, spec, processor, channels=channels, cache=context.cache, beat=given.beat)
    texts = text_parts(
        prepared,
        task,
        spec.data,
        tokenizer,
        max_length=max_length,
        has_gpu=given.has_gpu,
        masks=spec.training.compile,
        cache=context.cache,
        beat=given.beat,
    )
    parts = pair_parts(images, texts, wrong_texts=config.model_type == "blip", seed=spec.training.seed)
    return Ready(parts, _whole_processor(config.model_type, processor, tokenizer), max_length)


def _whole_processor(model_type: str, images: Any, tokenizer: Any) -> Any:
    from transformers import BlipProcessor, CLIPProcessor

    return {"clip": CLIPProcessor, "blip": BlipProcessor}[model_type](image_processor=images, tokenizer=tokenizer)


def check_model(matching: Matching, given: Ingredients) -> None:
    """Raise SpecFault unless the model can be trained as asked."""
    kind, spec = given.config.model_type, given.spec
    if kind not in FORWARDS:
        raise SpecFault(f"spec.model: image-text-matching takes the architectures {' and '.join(FORWARDS)}, got {kind}")
    if matching.labels and kind == "blip":
        raise SpecFault(
            "spec.training.matching.labels: goes with clip; blip's classification part is match or no match"
        )
    asked = (*(spec.evaluation.metrics or ()), spec.early_stopping.metric if spec.early_stopping else None)
    if "accuracy" in asked and kind == "clip" and not matching.labels:
        raise SpecFault("spec.evaluation.metrics: accuracy of clip needs spec.training.matching.labels: true")
    if kind == "clip" and spec.distributed.strategy == "fsdp" and given.context.world_size > 1:
        raise SpecFault("spec.distributed.strategy: fsdp cannot divide clip's logit_scale, a single number; use ddp")


def fit_tokenizer(config: Any, tokenizer: Any, *, is_new: bool, asked: Mapping[str, Any]) -> None:
    """See that the model knows all tokens, and that CLIP finds the end of a text, which is where it reads it.

    Args:
        config: The model's configuration; in a new model's the end is set.
        tokenizer: Its tokenizer.
        is_new: The model is made from its configuration.
        asked: What of ``text_config`` the spec sets.

    Raises:
        SpecFault: One of them is not so.
    """
    text, field = config.text_config, "spec.model.config.text_config"
    if len(tokenizer) > text.vocab_size:
        raise SpecFault(
            f"{field}.vocab_size: must be at least {len(tokenizer)}, as many as the tokenizer has,"
            f" got {text.vocab_size}"
        )
    if config.model_type != "clip":
        return
    last = tokenizer("a")["input_ids"][-1]
    if last not in tokenizer.all_special_ids:
        raise SpecFault("spec.model.tokenizer: ends texts with no special token, which clip needs to read them by")
    if is_new and "eos_token_id" not in asked:
        text.eos_token_id = last
    place = len(tokenizer) - 1 if text.eos_token_id == _LEGACY_END else text.eos_token_id
    if place != last:
        raise SpecFault(
            f"{field}.eos_token_id: clip reads a text at this id (if it is {_LEGACY_END}, at the highest id), and the"
            f" tokenizer ends texts with {last}; got {text.eos_token_id}"
        )


def adapt(matching: Matching, model: Any) -> None:
    """Replace the forward pass of a CLIP or BLIP by one that gives ``Rows``; add a classifier if labels are learned."""
    if matching.labels:
        add_classifier(model)
    model.temperature = matching.temperature or TEMPERATURE
    model.forward = MethodType(FORWARDS[model.config.model_type], model)


def add_classifier(model: Any) -> None:
    """A classifier as CLIPForImageClassification has it, by name, place and first weights: that loads it."""
    config = model.config.vision_config
    model.classifier = nn.Linear(config.hidden_size, model.config.num_labels)
    nn.init.normal_(model.classifier.weight, std=config.hidden_size**-0.5 * model.config.initializer_factor)
    nn.init.zeros_(model.classifier.bias)


def clip_forward(model: Any, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> Rows:
    """Images (n, d) times the learned scale, texts (n, d), and logits (n, C) if there is a classifier."""
    seen = model.vision_model(pixel_values=pixel_values)
    read = model.text_model(input_ids=input_ids, attention_mask=attention_mask)
    images = normalize(model.visual_projection(seen.pooler_output).float(), dim=-1) * model.logit_scale.exp()
    rows = images, normalize(model.text_projection(read.pooler_output).float(), dim=-1)
    if not hasattr(model, "classifier"):
        return rows
    return (*rows, model.classifier(seen.last_hidden_state[:, 1:].mean(dim=1)))


def blip_forward(model: Any, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> Rows:
    """Images (n, d) over the temperature, texts (n, d), and logits (n, 2, 2): right and wrong text, no match or match.

    input_ids: (2n, T), the n right texts, then n wrong ones.
    """
    count = len(pixel_values)
    seen = model.vision_model(pixel_values=pixel_values).last_hidden_state
    mask = None if attention_mask is None else attention_mask[:count]
    read = model.text_encoder(input_ids=input_ids[:count], attention_mask=mask).last_hidden_state
    both = model.text_encoder(
        input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=seen.repeat(2, 1, 1)
    ).last_hidden_state
    match = model.itm_head(both[:, 0]).view(2, count, 2).transpose(0, 1)
    images = normalize(model.vision_proj(seen[:, 0]).float(), dim=-1) / model.temperature
    return images, normalize(model.text_proj(read[:, 0]).float(), dim=-1), match


FORWARDS = {"clip": clip_forward, "blip": blip_forward}
"""Architecture → its forward pass."""
