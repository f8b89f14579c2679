"""What the light models of ``folds`` know of a sample.

Of a text: its words and pairs of words, hashed; of an image: what a network that is left as it is makes of it.
Invariant: memory does not grow with the samples; features lie in files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from finetune_trainer.cleaning.contents import Contents, texts_of
from finetune_trainer.cleaning.perceptual import thumbnail_of
from finetune_trainer.cleaning.text_hashes import Indices, pairs_of_words, word_hashes
from finetune_trainer.data.cache import Beat
from finetune_trainer.data.images import read_image

_WEIGHTS = 2**24
"""Weights of all models together, at most: 128 MiB with AdaGrad's squares."""
_WIDEST, _NARROWEST = 2**18, 2**10
_IMAGES = 32


def text_width(models: int) -> int:
    """Features of a text, a power of two, for so many (folds times classes) outputs."""
    return max(_NARROWEST, min(_WIDEST, 1 << ((_WEIGHTS // models).bit_length() - 1)))


@dataclass(frozen=True)
class TextFeatures:
    """TF-IDF, each text of length 1: the words and pairs of words that it has, hashed (Weinberger et al. 2009)."""

    width: int
    ids: NDArray[np.int32]
    offsets: Indices
    rarity: Tensor
    """(width,) log((1 + n) / (1 + texts that have it)) + 1."""

    def take(self, rows: Indices) -> "TakenTexts":
        """Those of some texts."""
        some = [self.ids[self.offsets[row] : self.offsets[row + 1]] for row in rows.tolist()]
        counts = torch.tensor([len(one) for one in some])
        ids = torch.from_numpy(np.concatenate(some).astype(np.int64))
        owner = torch.repeat_interleave(torch.arange(len(some)), counts)
        values = self.rarity[ids]
        norms = torch.zeros(len(some)).index_add_(0, owner, values.square()).sqrt()
        return TakenTexts(ids, values / norms[owner], owner, counts.cumsum(0) - counts)


@dataclass(frozen=True)
class TakenTexts:
    """Features of some texts, flat: (nnz,) each; ``starts`` (n,)."""

    ids: Tensor
    values: Tensor
    owner: Tensor
    starts: Tensor

    def dot(self, weights: Tensor) -> Tensor:
        """(n, M) of weights (width, M)."""
        return embedding_bag(self.ids, weights, self.starts, mode="sum", per_sample_weights=self.values)

    def spread(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The features that occur, and the gradient of each."""
        touched, place = torch.unique(self.ids, return_inverse=True)
        sums = torch.zeros(len(touched), gradient.shape[1])
        return touched, sums.index_add_(0, place, self.values[:, None] * gradient[self.owner])


def text_features(contents: Contents, width: int, folder: Path, beat: Beat) -> TextFeatures:
    """Features of every text; their ids are kept in ``folder``."""
    lengths: list[int] = []
    seen = np.zeros(width, np.int64)
    with (folder / "features").open("wb") as file:
        for batch in contents.chunks():
            for ids in _ids(texts_of(batch), width):
                ids.tofile(file)
                lengths.append(len(ids))
                seen[ids] += 1
            beat()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.memmap(folder / "features", np.int32, "r", shape=(int(offsets[-1]),))
    rarity = np.log((1 + len(lengths)) / (1 + seen)) + 1
    return TextFeatures(width, ids, offsets, torch.from_numpy(rarity.astype(np.float32)))


def _ids(texts: Sequence[str], width: int) -> list[NDArray[np.int32]]:
    """Features that each text has, ascending; feature 0 is always among them, so that none has nothing."""
    words, offsets = word_hashes(texts)
    pairs, pair_offsets = pairs_of_words(words, offsets)
    return [
        np.unique(np.concatenate([[0], words[a:b] % np.uint64(width), pairs[c:d] % np.uint64(width)]).astype(np.int32))
        for (a, b), (c, d) in zip(pairwise(offsets.tolist()), pairwise(pair_offsets.tolist()), strict=True)
    ]


@dataclass(frozen=True)
class ImageFeatures:
    """Numbers a sample, (n, F) float32 in a file, scaled to mean 0 and variance 1; and a constant."""

    values: NDArray[np.float32]
    mean: Tensor
    scale: Tensor

    @property
    def width(self) -> int:
        """F + 1."""
        return int(self.values.shape[1]) + 1

    def take(self, rows: Indices) -> "TakenImages":
        """Those of some images."""
        values = (torch.from_numpy(self.values[rows]) - self.mean) / self.scale / self.values.shape[1] ** 0.5
        return TakenImages(torch.cat([values, torch.ones(len(rows), 1)], dim=1))


@dataclass(frozen=True)
class TakenImages:
    """Features of some images, (n, F + 1)."""

    values: Tensor

    def dot(self, weights: Tensor) -> Tensor:
        """(n, M) of weights (width, M)."""
        return self.values @ weights

    def spread(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """All features, and the gradient of each."""
        return torch.arange(self.values.shape[1]), self.values.T @ gradient


Network = Callable[[list[Any]], Tensor]
"""PIL images → features (n, F)."""


def image_features(contents: Contents, network: Network, folder: Path, beat: Beat) -> ImageFeatures:
    """Features of every image, kept in ``folder``."""
    total: Any = 0.0
    squares: Any = 0.0
    width = 0
    with (folder / "features").open("wb") as file:
        for batch in contents.chunks():
            paths = batch["image"].to_pylist()
            for start in range(0, len(paths), _IMAGES):
                values = network([read_image(path) for path in paths[start : start + _IMAGES]]).float().cpu()
                values.numpy().tofile(file)
                width = values.shape[1]
                total, squares = total + values.double().sum(0), squares + values.double().square().sum(0)
                beat()
    count = len(contents)
    mean = total / count
    scale = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
    kept = np.memmap(folder / "features", np.float32, "r", shape=(count, width))
    return ImageFeatures(kept, mean.float(), scale.clamp(min=1e-3 * float(scale.max())).float())


def thumbnails(images: list[Any]) -> Tensor:
    """Features of images where there is no network that has learned anything: their thumbnails, (n, 256)."""
    return torch.from_numpy(np.stack([thumbnail_of(image) for image in images]).astype(np.float32))
