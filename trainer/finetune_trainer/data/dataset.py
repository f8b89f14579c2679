"""Samples ready for the model: a torch Dataset of encoded texts or of images, fetched a batch at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from finetune_trainer.data.augment.mixing import Mixing, mix_batch
from finetune_trainer.data.augment.turns import Turns
from finetune_trainer.data.order import BatchSize, Indices
from finetune_trainer.data.passes import Key, Passes, Share
from finetune_trainer.task import IGNORED, Target


@dataclass(frozen=True)
class Batch:
    """What one forward pass takes: ``inputs`` of the model, the target, and which samples they are.

    ``input_ids``, ``attention_mask``: (n, T) int64; ``pixel_values``: (n, C, H, W) float32. A stand-in batch has
    ``is_counted`` false: it is computed and left out of loss and metrics.
    """

    inputs: dict[str, Any]
    target: Any
    """What is to be predicted (see ``Target``): a tensor, or tensors in lists, tuples and dicts."""
    indices: Indices
    is_counted: bool = True

    def to(self, device: torch.device) -> "Batch":
        """The batch on ``device``."""
        if device.type == "cpu":
            return self
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory (DataLoader calls this)."""
        return self._changed(Tensor.pin_memory)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(self, inputs=map_tensors(change, self.inputs), target=map_tensors(change, self.target))


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """``value`` with every tensor in it changed, through lists, tuples and dicts; all else is kept."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: map_tensors(change, each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(change, each) for each in value)
    return value


@dataclass(frozen=True)
class Encoded:
    """Token ids of many texts, flat and memory-mapped: text i is ``ids[offsets[i]:offsets[i + 1]]``."""

    ids: np.ndarray[Any, np.dtype[np.int32]]
    offsets: Indices
    second: np.ndarray[Any, np.dtype[np.int32]] | None
    """(N,) where the second text of a pair starts; None if the model does not tell the two apart."""
    truncated: np.ndarray[Any, np.dtype[np.bool_]] | None = None
    """(N,) whether something of the text was cut off; None if nobody looked."""
    targets: np.ndarray[Any, np.dtype[np.int32]] | None = None
    """Target of every token, flat as ``ids``, IGNORED where there is none; None if each is its own."""

    @property
    def lengths(self) -> Indices:
        """(N,) tokens of each text."""
        return np.diff(self.offsets)


class Part(Dataset[list[Batch]]):
    """One part (train, validation, test) of the data."""

    rows: Indices
    """(n,) rows of the source that belong to this part; an index below is a position in it."""
    lengths: Indices | None
    """(n,) tokens of each sample; None for images."""
    padded_lengths: Indices | None
    """(n,) tokens of each sample as it is padded by itself: a batch of n is n times its largest. None for images."""

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, epoch: int) -> "Part":  # noqa: ARG002 - most parts are the same in every epoch
        """The part as ``epoch`` has it: its lengths are those of the epoch's texts."""
        return self

    def __getitem__(self, key: Key) -> list[Batch]:
        return self.__getitems__([[key]])

    def __getitems__(self, passes: Sequence[Sequence[Key]]) -> list[Batch]:
        """What each of these passes takes (DataLoader's way to fetch many at once)."""
        return [self._pass(keys) for keys in passes]

    def _pass(self, keys: Sequence[Key]) -> Batch:
        indices = np.array([index if index >= 0 else -1 - index for _, index in keys])
        return self.batch(keys[0][0], indices, is_counted=keys[0][1] >= 0)

    def batch(self, epoch: int, indices: Indices, *, is_counted: bool) -> Batch:
        """The batch of samples ``indices`` (n,) as ``epoch`` has them."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class TextPart(Part):
    """Texts, padded to the longest of a batch or to a fixed length."""

    rows: Indices
    encoded: Encoded
    targets: Tensor | None
    """(N, …) target of every row of the source; None if the tokens have targets."""
    pad_id: int
    fixed_length: int | None = None
    multiple: int = 1
    always_mask: bool = False
    turns: Turns | None = None
    """Training only: which row an epoch reads for each sample, if texts have variants."""
    lengths: Indices = field(init=False)
    padded_lengths: Indices = field(init=False)

    def __post_init__(self) -> None:
        lengths = self.encoded.lengths[self.rows]
        longest = self.encoded.lengths.reshape(self.turns.versions, -1).max(axis=0) if self.turns else lengths
        padded = np.full_like(longest, self.fixed_length) if self.fixed_length else _round_up(longest, self.multiple)
        object.__setattr__(self, "lengths", lengths)
        object.__setattr__(self, "padded_lengths", padded)

    @property
    def truncated(self) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """(n,) whether something of each text was cut off, as far as anybody looked."""
        cut = self.encoded.truncated
        return np.zeros(len(self), bool) if cut is None else cut[self.rows]

    def at(self, epoch: int) -> "TextPart":
        """Of texts that have variants, those whose turn it is."""
        return self if self.turns is None else replace(self, rows=self.turns.rows(epoch), turns=None)

    def batch(self, epoch: int, indices: Indices, *, is_counted: bool) -> Batch:  # noqa: ARG002 - see ``at``
        """Padded ids; the mask is left out where nothing is padded (attention is faster without one)."""
        lengths = self.lengths[indices]
        width = int(self.padded_lengths[indices].max())
        ids = np.full((len(indices), width), self.pad_id, np.int64)
        positions = np.arange(width)
        mask = positions < lengths[:, None]
        rows = self.rows[indices]
        offsets = self.encoded.offsets
        ids[mask] = np.concatenate([self.encoded.ids[offsets[row] : offsets[row + 1]] for row in rows])
        inputs = {"input_ids": torch.from_numpy(ids)}
        if self.always_mask or not mask.all():
            inputs["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
        if self.encoded.second is not None:
            types = (positions >= self.encoded.second[rows][:, None]) & mask
            inputs["token_type_ids"] = torch.from_numpy(types.astype(np.int64))
        target = self.targets[rows] if self.targets is not None else torch.from_numpy(self._tokens(rows, ids, mask))
        return Batch(inputs, target, indices, is_counted)

    def _tokens(self, rows: Indices, ids: Indices, mask: "np.ndarray[Any, np.dtype[np.bool_]]") -> Indices:
        """Target of each token (n, T)."""
        wanted, offsets = self.encoded.targets, self.encoded.offsets
        if wanted is None:
            return np.where(mask, ids, IGNORED)
        targets = np.full_like(ids, IGNORED)
        targets[mask] = np.concatenate([wanted[offsets[row] : offsets[row + 1]] for row in rows])
        return targets


def _round_up(lengths: Indices, multiple: int) -> Indices:
    return -(-lengths // multiple) * multiple


@dataclass(frozen=True, eq=False)
class ImagePart(Part):
    """Images, read, changed (training only) and scaled for the model."""

    rows: Indices
    paths: Sequence[str]
    """Path of every row of the source."""
    targets: Tensor
    """(N, …) target of every row of the source."""
    read: Callable[[Path], Any]
    """Path → PIL image; raises DataError."""
    process: Callable[[list[Any]], Tensor]
    """PIL images → pixel values (n, C, H, W) float32."""
    augment: Callable[[Any, int, int], Any] | None = None
    """(image, epoch, index) → changed image; a function of the three and of the run's seed."""
    mixing: Mixing | None = None
    """Mixes each image with another sample's; the target is then a dict (see ``mixing.mix_batch``)."""
    lengths: None = None
    padded_lengths: None = None

    def batch(self, epoch: int, indices: Indices, *, is_counted: bool) -> Batch:
        """Pixel values of these images."""
        pixels, target = self._fetch(epoch, indices)
        if self.mixing is not None:
            pixels, target = mix_batch(self.mixing, epoch, indices, pixels, target, partial(self._fetch, epoch))
        return Batch({"pixel_values": pixels}, target, indices, is_counted)

    def _fetch(self, epoch: int, indices: Indices) -> tuple[Tensor, Any]:
        """Pixel values (n, C, H, W) and targets (n, …)."""
        rows = self.rows[indices]
        images = [self.read(Path(self.paths[row])) for row in rows.tolist()]
        if self.augment is not None:
            images = [self.augment(image, epoch, int(index)) for image, index in zip(images, indices, strict=True)]
        return self.process(images), self.targets[rows]


def load_batches(
    part: Part, batches: Sequence[Indices], size: BatchSize, share: Share, *, epoch: int, workers: int, pin: bool
) -> DataLoader[list[Batch]]:
    """A DataLoader of our passes of each of ``batches``, in order.

    Args:
        part: The samples.
        batches: Global batches (see ``order``).
        size: What a full batch holds.
        share: What of a batch is ours.
        epoch: The epoch, for augmentation.
        workers: Processes that fetch ahead; 0 fetches in line.
        pin: Fetch into page-locked memory, for a GPU.
    """
    return DataLoader(
        part,
        batch_sampler=Passes(batches, part.padded_lengths, size, share, epoch),  # keys of ours
        collate_fn=_same,  # __getitems__ makes the batches
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
    )


def _same(passes: list[Batch]) -> list[Batch]:
    return passes


def targets_tensor(target: Target, values: Any) -> Tensor:
    """Targets of all rows as a tensor: ids (N,) int64, 0/1 (N, C) float32 or numbers (N,) float32."""
    dtype = torch.int64 if target in {Target.CLASS, Target.PAIRS} else torch.float32
    return torch.tensor(values, dtype=dtype)
