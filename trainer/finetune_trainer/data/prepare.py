"""From a spec's data to parts (train, validation, test) that can be trained on.

Done before processes join each other, so that none waits in a collective; what is costly is made once, in the cache.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from finetune_api.job import DataSpec, JobSpec
from finetune_trainer.cleaning.stage import clean_sources, judge_labels
from finetune_trainer.context import Context
from finetune_trainer.data.augment.images import ImageChanges
from finetune_trainer.data.augment.mixing import Mixing
from finetune_trainer.data.augment.turns import Turns
from finetune_trainer.data.augment.variants import TextChanges, vary
from finetune_trainer.data.cache import Beat, cached
from finetune_trainer.data.dataset import ImagePart, Part, TextPart, targets_tensor
from finetune_trainer.data.encode import encode_texts
from finetune_trainer.data.images import image_readers, read_image
from finetune_trainer.data.labels import IdLists, find_labels, find_numbers
from finetune_trainer.data.objects import find_objects
from finetune_trainer.data.order import Indices
from finetune_trainer.data.pairs import row_numbers
from finetune_trainer.data.read import Samples, read_samples
from finetune_trainer.data.sequences import SequencePart
from finetune_trainer.data.sources import resolve_source
from finetune_trainer.data.split import split_indices
from finetune_trainer.data.tags import find_tags
from finetune_trainer.errors import DataError
from finetune_trainer.task import Target, Task

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_IMAGE_CHUNK = 512


@dataclass(frozen=True)
class Slice:
    """One part of the data before it is encoded: some rows of some source."""

    samples: Samples
    rows: Indices
    values: Any
    """Target of every row of the source: ids (N,), 0/1 (N, C), numbers (N,) or IdLists; None if it is tokens."""
    weights: Any = None
    """(N,) weight in the loss of every row of the source; None: all alike."""

    def origin(self, index: int) -> str:
        """Where sample ``index`` of the part was read."""
        return self.samples.origin(int(self.rows[index]))


@dataclass(frozen=True)
class Prepared:
    """All parts, and the classes."""

    slices: Mapping[str, Slice]
    """train, validation and (if there is one) test."""
    labels: tuple[str, ...] | None
    """The classes in the order of their ids; None for a regression or a language model."""


def prepare_slices(spec: JobSpec, task: Task, context: Context, beat: Beat) -> Prepared:
    """Read, clean, label and divide the data.

    Raises:
        DataError: Something is wrong with a row, named by file and line; or a part is empty.
        NotFoundError: A source is not there.
    """
    data = spec.data
    read = partial(_read, data=data, task=task, context=context, beat=beat)
    main = read(data.source, "spec.data.source")
    brought = {
        name: read(source, f"spec.data.{name}Source")
        for name, source in ((VALIDATION, data.validation_source), (TEST, data.test_source))
        if source is not None
    }
    main, brought, cleaned = clean_sources(main, brought, spec, context, beat)
    labels, values = _label(main, None, task, data, given=data.labels)
    rows = _divide(data, task, values, main.table, set(brought))
    rows[TRAIN], weights = judge_labels(cleaned, values, labels, rows[TRAIN], spec, context, beat)
    if labels is not None:  # now that it is known which rows train: a class that none of them has is an error
        _label(main, rows[TRAIN], task, data, given=data.labels)
    slices = {name: Slice(main, part, values, weights) for name, part in rows.items() if len(part)}
    for name, samples in brought.items():
        _, own = _label(samples, None, task, data, given=labels)
        slices[name] = Slice(samples, np.arange(len(samples.table)), own)
    return Prepared(slices, labels)


def _read(source: str, field: str, *, data: DataSpec, task: Task, context: Context, beat: Beat) -> Samples:
    path = resolve_source(source, data.revision, field=field, volumes=context.volumes, kind="dataset")
    return read_samples(
        path,
        format=data.format,
        roles=task.roles(data.columns),
        cache=context.cache,
        field=field,
        beat=beat,
        drop_empty=data.cleaning is not None and data.cleaning.empty == "drop",
        needs_label=task.target != Target.CLASSES,
    )


def _divide(data: DataSpec, task: Task, values: Any, table: pa.Table, brought: set[str]) -> dict[str, Indices]:
    wanted = {TRAIN: data.split.train, VALIDATION: data.split.validation, TEST: data.split.test}
    proportions = {name: share for name, share in wanted.items() if name not in brought and share > 0}
    strata = values if data.split.stratify and task.target == Target.CLASS else None
    if {"image", "text"} <= set(table.column_names):  # an image that has several texts is in one part with all of them
        image_of = row_numbers(table["image"])
        images = split_indices(int(image_of.max()) + 1, proportions=proportions, seed=data.split.seed, strata=None)
        return {name: np.flatnonzero(np.isin(image_of, part)) for name, part in images.items()}
    return split_indices(len(table), proportions=proportions, seed=data.split.seed, strata=strata)


def _label(
    samples: Samples, train: Indices | None, task: Task, data: DataSpec, *, given: tuple[str, ...] | None
) -> tuple[tuple[str, ...] | None, Any]:
    """The classes, and every row's target."""
    if task.target == Target.BOXES:
        return find_objects(samples.table["objects"], train, given, samples.origin)
    if task.target == Target.TAGS:
        return find_tags(samples.table["tags"], train, given, samples.origin)
    if task.target == Target.TOKENS or "label" not in samples.table.column_names:
        return None, None
    column = samples.table["label"]
    if task.target == Target.NUMBER:
        return None, find_numbers(column, samples.origin)
    if task.target in {Target.CLASS, Target.PAIRS}:
        return find_labels(column, train, given, samples.origin, multi=False, separator=data.label_separator)
    labels, (offsets, ids) = find_labels(
        column, train, given, samples.origin, multi=True, separator=data.label_separator
    )
    values = np.zeros((len(column), len(labels)), np.float32)
    values[np.repeat(np.arange(len(column)), np.diff(offsets)), ids] = 1
    return labels, values


def text_parts(
    prepared: Prepared,
    task: Task,
    data: DataSpec,
    tokenizer: Any,
    *,
    max_length: int,
    has_gpu: bool,
    masks: bool,
    cache: Path,
    beat: Beat,
    changes: TextChanges | None = None,
) -> dict[str, Part]:
    """Encoded parts of a text task.

    Args:
        prepared: What ``prepare_slices`` found.
        task: The task.
        data: The spec's data.
        tokenizer: The model's tokenizer.
        max_length: Longest sequence in tokens.
        has_gpu: Pad to multiples of 8, which tensor cores want.
        masks: Always make an attention mask (a compiled model must not see its inputs come and go).
        cache: Folder of prepared data.
        beat: Called for every chunk.
        changes: How training texts are varied; None leaves them as they are.
    """
    end_id = tokenizer.eos_token_id if task.target == Target.TOKENS else None
    fixed = max_length if data.padding == "maxLength" else None

    def part(piece: Slice, changes: TextChanges | None) -> TextPart:
        table, key, rows, turns = piece.samples.table, piece.samples.key, piece.rows, None
        targets = None if piece.values is None else targets_tensor(task.target, piece.values)
        if changes is not None:
            table, key = vary(table, rows, key, changes, cache=cache, beat=beat)
            turns = Turns(changes.seed, len(rows), changes.spec.variants + 1)
            targets = None if targets is None else torch.cat([targets[rows]] * turns.versions)
            rows = np.arange(len(rows))
        encoded = encode_texts(table, tokenizer, max_length=max_length, end_id=end_id, key=key, cache=cache, beat=beat)
        multiple = 8 if has_gpu and max_length % 8 == 0 else 1
        return TextPart(rows, encoded, targets, tokenizer.pad_token_id, fixed, multiple, masks, turns)

    return {name: part(piece, changes if name == TRAIN else None) for name, piece in prepared.slices.items()}


def image_parts(
    prepared: Prepared, task: Task, spec: JobSpec, processor: Any, *, channels: int, cache: Path, beat: Beat
) -> dict[str, Part]:
    """Parts of an image task; every image has been decoded once, so that a damaged one is found now and not in hours.

    Args:
        prepared: What ``prepare_slices`` found.
        task: The task.
        spec: The spec.
        processor: The model's image processor.
        channels: Channels of the model's input: 1 (grey) or 3.
        cache: Folder of prepared data.
        beat: Called for every chunk.
    """
    augmentation = spec.data.augmentation.image if spec.data.augmentation else None
    augment = ImageChanges(augmentation, spec.training.seed) if augmentation else None
    read = partial(read_channels, channels=channels)

    def part(name: str, piece: Slice) -> ImagePart:
        paths = piece.samples.table["image"].to_pylist()
        check_images(piece.samples, paths, cache, beat)
        targets = targets_tensor(task.target, piece.values)
        process = partial(pixels, processor)
        if name != TRAIN or augmentation is None:
            return ImagePart(piece.rows, paths, targets, read, process)
        mixing = Mixing(augmentation, spec.training.seed, len(piece.rows)) if augmentation.mixes else None
        return ImagePart(piece.rows, paths, targets, read, process, augment, mixing)

    return {name: part(name, piece) for name, piece in prepared.slices.items()}


def read_channels(path: Path, *, channels: int) -> Any:
    """The image at ``path``, in grey if ``channels`` is 1."""
    image = read_image(path)
    return image.convert("L") if channels == 1 else image


def pixel_inputs(processor: Any, images: list[Any]) -> dict[str, torch.Tensor]:
    """``pixel_values`` (n, C, H, W) float32, and ``pixel_mask`` (n, H, W) where the processor pads."""
    arrays = [np.array(image) for image in images]  # copies: torch wants memory it may write to
    if arrays[0].ndim == 2:  # noqa: PLR2004 - grey: (H, W) to (H, W, 1)
        arrays = [array[..., None] for array in arrays]
    return dict(processor(images=arrays, return_tensors="pt", input_data_format="channels_last"))


def pixels(processor: Any, images: list[Any]) -> torch.Tensor:
    """(n, C, H, W) float32."""
    return pixel_inputs(processor, images)["pixel_values"]


def check_images(samples: Samples, paths: list[str], cache: Path, beat: Beat) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Width and height (N, 2) of every image, each of which was decoded. Raises DataError for one that cannot be."""

    def build(folder: Path) -> None:
        sizes: list[tuple[int, int]] = []
        with image_readers() as pool:
            for start in range(0, len(paths), _IMAGE_CHUNK):
                sizes += pool.map(_size, paths[start : start + _IMAGE_CHUNK])
                beat()
        np.save(folder / "sizes.npy", np.array(sizes, np.int64))

    def load(folder: Path) -> Any:
        return np.load(folder / "sizes.npy")

    sizes: np.ndarray[Any, np.dtype[np.int64]] = cached(
        cache, "images", {"images": dict(samples.key)}, build=build, load=load, beat=beat
    )
    return sizes


def _size(path: str) -> tuple[int, int]:
    return read_image(path).size


def describe(prepared: Prepared, parts: Mapping[str, Part]) -> dict[str, Any]:
    """preparation.json: samples a part, classes and their counts, lengths in tokens."""
    described: dict[str, Any] = {
        "samples": {name: len(part) for name, part in parts.items()},
        "labels": prepared.labels,
        "labelCounts": None,
        "lengths": None,
    }
    if prepared.labels is not None:
        described["labelCounts"] = {name: _counts(piece, prepared.labels) for name, piece in prepared.slices.items()}
    texts = [part for part in parts.values() if isinstance(part, TextPart | SequencePart)]
    if texts:
        described["lengths"] = _lengths(texts)
    return described


def _counts(piece: Slice, labels: tuple[str, ...]) -> dict[str, int]:
    if isinstance(piece.values, IdLists):
        counted = piece.values.counts(piece.rows, len(labels)).tolist()
        return dict(zip(labels, counted, strict=True))
    values = piece.values[piece.rows]
    counts = values.sum(axis=0) if values.ndim > 1 else np.bincount(values, minlength=len(labels))
    return {label: int(count) for label, count in zip(labels, counts, strict=True)}


def _lengths(parts: Sequence[TextPart | SequencePart]) -> dict[str, int]:
    lengths = np.concatenate([part.lengths for part in parts])
    p50, p90, p99 = np.percentile(lengths, (50, 90, 99)).astype(int).tolist()
    cut = sum(int(part.truncated.sum()) for part in parts)
    return {"p50": p50, "p90": p90, "p99": p99, "max": int(lengths.max()), "truncated": cut}


def require_parts(prepared: Prepared) -> None:
    """Raise DataError unless there is something to train on and something to judge by."""
    for name in (TRAIN, VALIDATION):
        if name not in prepared.slices:
            raise DataError(f"spec.data: the {name} set is empty; give more samples or another spec.data.split")
