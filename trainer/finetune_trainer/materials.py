"""From samples that were read to parts of batches: the ways in which tasks make their material."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from finetune_api.job import JobSpec
from finetune_trainer.context import Context
from finetune_trainer.data.augment.images import ImageChanges
from finetune_trainer.data.augment.variants import find_changes
from finetune_trainer.data.cache import Beat
from finetune_trainer.data.chat import encode_answers
from finetune_trainer.data.dataset import Encoded, Part, TextPart
from finetune_trainer.data.detection import DetectionPart, weighing_of
from finetune_trainer.data.encode import encode_texts
from finetune_trainer.data.objects import fit
from finetune_trainer.data.prepare import (
    TRAIN,
    Prepared,
    Slice,
    check_images,
    image_parts,
    pixel_inputs,
    read_channels,
    text_parts,
)
from finetune_trainer.data.sequences import SequencePart
from finetune_trainer.data.words import encode_words
from finetune_trainer.errors import SpecFault
from finetune_trainer.models import load_detection_processor, load_processor, load_tokenizer, max_length_of
from finetune_trainer.task import Task


@dataclass(frozen=True)
class Ingredients:
    """What a task's material is made from."""

    spec: JobSpec
    context: Context
    folder: Path | None
    """The checkpoint's folder; None for a new model."""
    config: Any
    """The model's configuration; what the material settles (``pad_token_id``) may be set in it."""
    prepared: Prepared
    beat: Beat
    has_gpu: bool


@dataclass(frozen=True)
class Ready:
    """What a run trains on."""

    parts: Mapping[str, Part]
    companion: Any
    """Tokenizer, image processor or processor: made the inputs, and is exported with the model."""
    max_length: int | None = None
    """Longest sequence in tokens."""
    task: Task | None = None
    """The task, if it has learned something of the data: what its metrics shall count."""


def text_material(task: Task, given: Ingredients) -> Ready:
    """Texts, or pairs of them, through the model's tokenizer."""
    spec, config = given.spec, given.config
    tokenizer = load_fitting_tokenizer(given)
    max_length = max_length_of(spec.data.max_length, tokenizer, config)
    parts = text_parts(
        given.prepared,
        task,
        spec.data,
        tokenizer,
        max_length=max_length,
        has_gpu=given.has_gpu,
        masks=spec.training.compile,
        cache=given.context.cache,
        beat=given.beat,
        changes=find_changes(spec, given.context, given.beat, has_gpu=given.has_gpu),
    )
    return Ready(parts, tokenizer, max_length)


def load_fitting_tokenizer(given: Ingredients, **options: Any) -> Any:
    """The tokenizer, by which the model's configuration says what padding is, and a new one where texts end."""
    spec, config = given.spec.model, given.config
    tokenizer = load_tokenizer(spec, given.folder, given.context, **options)
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    for name in ("bos_token_id", "eos_token_id"):
        if given.folder is None and name not in (spec.config or {}):
            setattr(config, name, getattr(tokenizer, name))
    return tokenizer


def answer_material(_task: Task, given: Ingredients) -> Ready:
    """Conversations, or prompts and completions, of which only answers are learned."""
    tokenizer = load_fitting_tokenizer(given)
    max_length = max_length_of(given.spec.data.max_length, tokenizer, given.config)

    def part(piece: Slice) -> TextPart:
        samples = piece.samples
        encoded = encode_answers(
            samples.table,
            tokenizer,
            max_length=max_length,
            origin=samples.origin,
            key=samples.key,
            cache=given.context.cache,
            beat=given.beat,
        )
        return _padded(given, tokenizer, max_length, piece, encoded)

    return Ready({name: part(piece) for name, piece in given.prepared.slices.items()}, tokenizer, max_length)


def _padded(given: Ingredients, tokenizer: Any, max_length: int, piece: Slice, encoded: Encoded) -> TextPart:
    """A part of texts whose tokens have targets."""
    fixed = max_length if given.spec.data.padding == "maxLength" else None
    multiple = 8 if given.has_gpu and max_length % 8 == 0 else 1
    masks = given.spec.training.compile
    return TextPart(piece.rows, encoded, None, tokenizer.pad_token_id, fixed, multiple, always_mask=masks)


def word_material(_task: Task, given: Ingredients) -> Ready:
    """Words and their tags; a byte-level tokenizer sees a blank before every word, as it did in pretraining."""
    tokenizer = load_fitting_tokenizer(given, add_prefix_space=True)
    max_length = max_length_of(given.spec.data.max_length, tokenizer, given.config)

    def part(piece: Slice) -> TextPart:
        encoded = encode_words(
            piece.samples.table,
            piece.values,
            tokenizer,
            max_length=max_length,
            key={"samples": piece.samples.key, "labels": given.prepared.labels},
            cache=given.context.cache,
            beat=given.beat,
        )
        return _padded(given, tokenizer, max_length, piece, encoded)

    return Ready({name: part(piece) for name, piece in given.prepared.slices.items()}, tokenizer, max_length)


def sequence_material(_task: Task, given: Ingredients) -> Ready:
    """Texts, and texts to write, through the model's tokenizer.

    Raises:
        SpecFault: See ``fit_written_ends``.
    """
    tokenizer = load_fitting_tokenizer(given)
    fit_written_ends(given, tokenizer)
    max_length = max_length_of(given.spec.data.max_length, tokenizer, given.config)

    def part(piece: Slice) -> SequencePart:
        def padded(role: str) -> TextPart:
            encoded = encode_texts(
                piece.samples.table,
                tokenizer,
                max_length=max_length,
                end_id=None,
                key=piece.samples.key,
                cache=given.context.cache,
                beat=given.beat,
                role=role,
            )
            return _padded(given, tokenizer, max_length, piece, encoded)

        return SequencePart(piece.rows, padded("text"), padded("target"), given.config.decoder_start_token_id)

    return Ready({name: part(piece) for name, piece in given.prepared.slices.items()}, tokenizer, max_length)


def fit_written_ends(given: Ingredients, tokenizer: Any) -> None:
    """See that texts begin and end in training as they do where the model writes them.

    Raises:
        SpecFault: The tokenizer does not end a text with the model's end-of-text token; or the model does not say from
            which token on it writes.
    """
    config, asked = given.config, given.spec.model.config or {}
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    nothing, something = (tokenizer(text_target=text)["input_ids"] for text in ("", "a"))
    if not nothing or nothing[-1] != something[-1]:
        raise SpecFault("spec.model.tokenizer: must put a token after each text, as T5's does")
    end = nothing[-1]
    if given.folder is None:  # a new model takes over what the tokenizer has, and begins as T5 and Marian do
        fitting = dict.fromkeys(("pad_token_id", "decoder_start_token_id"), tokenizer.pad_token_id)
        fitting |= {name: end for name in ("eos_token_id", "forced_eos_token_id") if hasattr(config, name)}
        for name in fitting.keys() - asked.keys():
            setattr(config, name, fitting[name])
    if config.eos_token_id != end:
        raise SpecFault(f"spec.model.config.eos_token_id: must be {end}, by which the tokenizer ends a text")
    if getattr(config, "decoder_start_token_id", None) is None:
        raise SpecFault("spec.model.config.decoder_start_token_id: must be the token from which on a text is written")


def detection_material(_task: Task, given: Ingredients) -> Ready:
    """Images with boxes through the model's image processor; every image was decoded and every box lies in one."""
    spec, config, cache, beat = given.spec, given.config, given.context.cache, given.beat
    processor = load_detection_processor(spec.model, given.folder, config, spec.data.image_size)
    from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING

    kind = MODEL_FOR_OBJECT_DETECTION_MAPPING.get(type(config), None)
    if kind is None:
        raise SpecFault(f"spec.model: cannot be used for object-detection: {config.model_type} has no such head")
    has_mask = "pixel_mask" in inspect.signature(kind.forward).parameters
    wanted = spec.data.augmentation.image if spec.data.augmentation else None
    changes = ImageChanges(wanted, spec.training.seed) if wanted else None

    def part(name: str, piece: Slice) -> DetectionPart:
        samples = piece.samples
        paths = samples.table["image"].to_pylist()
        objects = fit(piece.values, check_images(samples, paths, cache, beat), samples.origin)
        read = partial(read_channels, channels=getattr(config, "num_channels", 3))
        process = partial(pixel_inputs, processor)
        weighing = weighing_of(config)
        augment = changes if name == TRAIN else None
        return DetectionPart(piece.rows, paths, objects, read, process, has_mask, weighing, augment)

    return Ready({name: part(name, piece) for name, piece in given.prepared.slices.items()}, processor)


def image_material(task: Task, given: Ingredients) -> Ready:
    """Images through the model's image processor."""
    spec, config = given.spec, given.config
    processor = load_processor(spec.model, given.folder, config, spec.data.image_size)
    channels = getattr(config, "num_channels", 3)
    cache, beat = given.context.cache, given.beat
    parts = image_parts(given.prepared, task, spec, processor, channels=channels, cache=cache, beat=beat)
    return Ready(parts, processor)
