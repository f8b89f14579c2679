"""From a spec's data to parts (train, validation, test) that can be trained on.

Done before processes join each other, so that none waits in a collective; what is costly is made once, in the cache.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune_api.job import DataSpec, JobSpec
from finetune_trainer.context import Context
from finetune_trainer.data.augment import image_augmentation
from finetune_trainer.data.cache import Beat, cached
from finetune_trainer.data.dataset import ImagePart, Part, TextPart, targets_tensor
from finetune_trainer.data.encode import encode_texts
from finetune_trainer.data.images import read_image
from finetune_trainer.data.labels import find_labels, find_numbers
from finetune_trainer.data.order import Indices
from finetune_trainer.data.read import Samples, read_samples
from finetune_trainer.data.sources import resolve_source
from finetune_trainer.data.split import split_indices
from finetune_trainer.errors import DataError
from finetune_trainer.tasks import Target, Task

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_IMAGE_CHUNK = 512


@dataclass(frozen=True)
class Slice:
    """One part of the data before it is encoded: some rows of some source."""

    samples: Samples
    rows: Indices
    values: Any
    """Target of every row of the source: ids (N,), 0/1 (N, C) or numbers (N,); None if tokens are the target."""

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
    """Read, label and divide the data.

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
    labels, values = _label(main, None, task, data, given=data.labels)
    rows = _divide(data, task, values, len(main.table), set(brought))
    if labels is not None:  # now that it is known which rows train: a class that none of them has is an error
        _label(main, rows[TRAIN], task, data, given=data.labels)
    slices = {name: Slice(main, part, values) for name, part in rows.items() if len(part)}
    for name, samples in brought.items():
        _, own = _label(samples, None, task, data, given=labels)
        slices[name] = Slice(samples, np.arange(len(samples.table)), own)
    return Prepared(slices, labels)


def _read(source: str, field: str, *, data: DataSpec, task: Task, context: Context, beat: Beat) -> Samples:
    path = resolve_source(source, data.revision, field=field, volumes=context.volumes, kind="dataset")
    roles = task.roles(data.columns)
    return read_samples(path, format=data.format, roles=roles, cache=context.cache, field=field, beat=beat)


def _divide(data: DataSpec, task: Task, values: Any, count: int, brought: set[str]) -> dict[str, Indices]:
    wanted = {TRAIN: data.split.train, VALIDATION: data.split.validation, TEST: data.split.test}
    proportions = {name: share for name, share in wanted.items() if name not in brought and share > 0}
    strata = values if data.split.stratify and task.target == Target.CLASS else None
    return split_indices(count, proportions=proportions, seed=data.split.seed, strata=strata)


def _label(
    samples: Samples, train: Indices | None, task: Task, data: DataSpec, *, given: tuple[str, ...] | None
) -> tuple[tuple[str, ...] | None, Any]:
    """The classes, and every row's target."""
    if task.target == Target.TOKENS:
        return None, None
    column = samples.table["label"]
    if task.target == Target.NUMBER:
        return None, find_numbers(column, samples.origin)
    if task.target == Target.CLASS:
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
    """
    end_id = tokenizer.eos_token_id if task.target == Target.TOKENS else None
    fixed = max_length if data.padding == "maxLength" else None

    def part(piece: Slice) -> TextPart:
        encoded = encode_texts(
            piece.samples.table,
            tokenizer,
            max_length=max_length,
            end_id=end_id,
            key=piece.samples.key,
            cache=cache,
            beat=beat,
        )
        targets = None if piece.values is None else targets_tensor(task.target, piece.values)
        multiple = 8 if has_gpu and max_length % 8 == 0 else 1
        return TextPart(piece.rows, encoded, targets, tokenizer.pad_token_id, fixed, multiple, masks)

    return {name: part(piece) for name, piece in prepared.slices.items()}


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
    augment = image_augmentation(augmentation, spec.training.seed) if augmentation else None
    read = partial(_read_channels, channels=channels)

    def part(name: str, piece: Slice) -> ImagePart:
        paths = piece.samples.table["image"].to_pylist()
        _check_images(piece.samples, paths, cache, beat)
        targets = targets_tensor(task.target, piece.values)
        process = partial(_pixels, processor)
        return ImagePart(piece.rows, paths, targets, read, process, augment if name == TRAIN else None)

    return {name: part(name, piece) for name, piece in prepared.slices.items()}


def _read_channels(path: Path, *, channels: int) -> Any:
    image = read_image(path)
    return image.convert("L") if channels == 1 else image


def _pixels(processor: Any, images: list[Any]) -> torch.Tensor:
    """(n, C, H, W) float32."""
    arrays = [np.array(image) for image in images]  # copies: torch wants memory it may write to
    if arrays[0].ndim == 2:  # noqa: PLR2004 - grey: (H, W) to (H, W, 1)
        arrays = [array[..., None] for array in arrays]
    pixels: torch.Tensor = processor(images=arrays, return_tensors="pt", input_data_format="channels_last")[
        "pixel_values"
    ]
    return pixels


def _check_images(samples: Samples, paths: list[str], cache: Path, beat: Beat) -> None:
    def build(folder: Path) -> None:
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(paths), _IMAGE_CHUNK):
                for _ in pool.map(read_image, paths[start : start + _IMAGE_CHUNK]):
                    pass
                beat()
        (folder / "checked").touch()

    cached(cache, "images", {"images": dict(samples.key)}, build=build, load=lambda _folder: None, beat=beat)


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
    texts = [part for part in parts.values() if isinstance(part, TextPart)]
    if texts:
        described["lengths"] = _lengths(texts)
    return described


def _counts(piece: Slice, labels: tuple[str, ...]) -> dict[str, int]:
    values = piece.values[piece.rows]
    counts = values.sum(axis=0) if values.ndim > 1 else np.bincount(values, minlength=len(labels))
    return {label: int(count) for label, count in zip(labels, counts, strict=True)}


def _lengths(parts: list[TextPart]) -> dict[str, int]:
    lengths = np.concatenate([part.lengths for part in parts])
    p50, p90, p99 = np.percentile(lengths, (50, 90, 99)).astype(int).tolist()
    cut = sum(int(part.encoded.truncated[part.rows].sum()) for part in parts if part.encoded.truncated is not None)
    return {"p50": p50, "p90": p90, "p99": p99, "max": int(lengths.max()), "truncated": cut}


def require_parts(prepared: Prepared) -> None:
    """Raise DataError unless there is something to train on and something to judge by."""
    for name in (TRAIN, VALIDATION):
        if name not in prepared.slices:
            raise DataError(f"spec.data: the {name} set is empty; give more samples or another spec.data.split")
