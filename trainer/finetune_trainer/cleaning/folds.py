"""Probabilities of classes for each sample, from light models that have not seen its label.

Samples are dealt into folds; fold f's model is a softmax regression (on features, see ``features``) trained on all
others. All are trained in one pass, side by side: the weights of fold f hear nothing from its own samples. Rates are
AdaGrad's (Duchi et al. 2011). One thread, so that the result is a function of samples, labels and seed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune_trainer.cleaning.text_hashes import Indices
from finetune_trainer.data.cache import Beat

_SMALLEST, _LARGEST = 16, 256
"""Samples of a batch: a sixteenth of all, within these bounds."""
_CHUNK = 2048
_RATE = 0.5
_FLOOR = 1e-6
_LOOKS = 40_000
"""Samples that training sees, at least, if that takes no more than ``_MOST_EPOCHS``."""
_LEAST_EPOCHS, _MOST_EPOCHS = 3, 20


class Taken(Protocol):
    """Features of some samples."""

    def dot(self, weights: Tensor) -> Tensor:
        """(n, M) of weights (width, M)."""

    def spread(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows (t,) of the weights the gradient (n, M) reaches, and what it adds to each, (t, M)."""


class Features(Protocol):
    """Features of all samples, kept in files."""

    @property
    def width(self) -> int:
        """Numbers a sample, (width,)."""

    def take(self, rows: Indices) -> Taken:
        """Those of some samples."""


def deal(labels: Indices, folds: int, seed: int) -> Indices:
    """(n,) fold of each sample: at random, and evenly within each class."""
    keys = np.random.PCG64(seed).random_raw(len(labels))
    fold = np.empty(len(labels), np.int64)
    fold[np.lexsort((keys, labels))] = np.arange(len(labels)) % folds
    return fold


def out_of_fold(
    features: Features, labels: Indices, fold: Indices, classes: int, *, seed: int, file: Path, beat: Beat
) -> NDArray[np.float32]:
    """(n, C) float32, in ``file``: probabilities of each sample's classes by the model of the other folds."""
    folds = int(fold.max()) + 1
    probabilities = np.memmap(file, np.float32, "w+", shape=(len(labels), classes))
    with _one_thread(), torch.no_grad():
        weights = _train(features, labels, fold, (folds, classes), seed, beat)
        for start in range(0, len(labels), _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, len(labels)))
            scores = features.take(rows).dot(weights).view(len(rows), folds, classes)
            own = scores[torch.arange(len(rows)), torch.from_numpy(fold[rows])]
            probabilities[rows] = own.softmax(-1).numpy()
            beat()
    return probabilities


def _train(features: Features, labels: Indices, fold: Indices, shape: tuple[int, int], seed: int, beat: Beat) -> Tensor:
    """Weights (width, folds * classes)."""
    weights = torch.zeros(features.width, shape[0] * shape[1])
    squares = torch.full_like(weights, _FLOOR)
    epochs = min(_MOST_EPOCHS, max(_LEAST_EPOCHS, round(_LOOKS / len(labels))))
    batch = min(_LARGEST, max(_SMALLEST, len(labels) // 16))
    for epoch in range(epochs):
        order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(len(labels))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            taken = features.take(rows)
            slope = taken.dot(weights).view(len(rows), *shape).softmax(-1)
            each = torch.arange(len(rows))
            slope[each, :, torch.from_numpy(labels[rows])] -= 1
            slope[each, torch.from_numpy(fold[rows])] = 0
            touched, sums = taken.spread(slope.view(len(rows), -1) / len(rows))
            seen = squares.index_select(0, touched).add_(sums.square())
            squares.index_copy_(0, touched, seen)
            weights.index_add_(0, touched, sums * seen.rsqrt_(), alpha=-_RATE)
            beat()
    return weights


@contextmanager
def _one_thread() -> Iterator[None]:
    threads: Any = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
