"""How well images find their texts and texts their images: recall at 1, 5 and 10, both ways.

Memory holds the embeddings (8 bytes × width a pair) and one block of similarities, never all of them. An image or a
text that comes in several pairs is one candidate and one query, and every pair it is in is right.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune_trainer.contrastive import gather_rows

DEPTHS = (1, 5, 10)
"""How many of the best candidates recall looks at."""
RECALLS = tuple(f"{way}At{depth}" for way in ("recall", "textRecall", "imageRecall") for depth in DEPTHS)
"""Metrics: ``textRecallAt5`` is the share of images with a text of theirs among the 5 nearest, ``imageRecallAt5`` the
share of texts, ``recallAt5`` the mean of the two."""

_BLOCK = 1 << 24
"""Similarities at a time: 64 MiB."""


@dataclass(frozen=True)
class Queries:
    """How each image (or each text) found what belongs to it; both (Q,) int64."""

    ranks: Tensor
    """How many wrong candidates are at least as near as the nearest right one."""
    samples: Tensor
    """Index in the part of the first pair of its image. Texts of one image are not independent: whoever resamples
    queries takes or leaves all that have the same index."""


class Recall:
    """All recalls of a part, streamed; used as torchmetrics' metrics are, all names at once."""

    def __init__(self) -> None:
        self._device = torch.device("cpu")
        self._taken: list[tuple[Tensor, ...]] = []
        self._found: tuple[Queries, Queries] | None = None

    def to(self, device: torch.device) -> "Recall":
        """Gather over processes by way of this device."""
        self._device = device
        return self

    def update(self, predictions: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Take in one batch: ``images``, ``texts`` (n, d); ``pairs`` (n, 3) int64: image, text, index in the part."""
        rows = predictions["images"].float(), predictions["texts"].float(), wanted["pairs"]
        self._taken.append(tuple(each.cpu() for each in rows))
        self._found = None

    def compute(self) -> dict[str, float]:
        """Every metric of ``RECALLS`` over all processes. Collective."""
        return _shares(*self.queries())

    def queries(self) -> tuple[Queries, Queries]:
        """All images, then all texts, of all processes. Collective where it was not computed since the last batch."""
        if self._found is None:
            images, texts, pairs = self._gathered()
            order = pairs[:, 2].argsort()
            self._found = _queries(images[order], texts[order], pairs[order])
        return self._found

    def _gathered(self) -> tuple[Tensor, ...]:
        own = torch.tensor([self._taken[0][0].shape[1] if self._taken else 0], device=self._device)
        width = int(gather_rows(own).max())  # of a process that has no rows, too
        nothing = torch.empty(0, width), torch.empty(0, width), torch.empty(0, 3, dtype=torch.int64)
        columns = zip(nothing, *self._taken, strict=True)
        return tuple(gather_rows(torch.cat(parts).to(self._device)).cpu() for parts in columns)


def recalls(images: Tensor, texts: Tensor, ids: Tensor) -> dict[str, float]:
    """Every metric of ``RECALLS``. images, texts: (N, d); ids: (N, 2) int64, image and text of each pair."""
    return _shares(*_queries(images, texts, torch.cat([ids, torch.arange(len(ids))[:, None]], dim=1)))


def _queries(images: Tensor, texts: Tensor, pairs: Tensor) -> tuple[Queries, Queries]:
    """Of images and texts (N, d): all images, all texts. pairs: (N, 3) int64, image, text and index."""
    first_image, image_of = _unique(pairs[:, 0])
    first_text, text_of = _unique(pairs[:, 1])
    shown, read = images[first_image], texts[first_text]
    both, sample_of = torch.stack([image_of, text_of], dim=1), pairs[first_image, 2]
    return (
        Queries(ranks(shown, read, both), sample_of),
        Queries(ranks(read, shown, both.flip(1)), sample_of[image_of[first_text]]),
    )


def _shares(images: Queries, texts: Queries) -> dict[str, float]:
    found = {"textRecall": images.ranks, "imageRecall": texts.ranks}
    values = {f"{way}At{depth}": _share(rank < depth) for way, rank in found.items() for depth in DEPTHS}
    means = {
        f"recallAt{depth}": (values[f"textRecallAt{depth}"] + values[f"imageRecallAt{depth}"]) / 2 for depth in DEPTHS
    }
    return {name: (means | values)[name] for name in RECALLS}


def ranks(queries: Tensor, candidates: Tensor, pairs: Tensor) -> Tensor:
    """For each query, how many wrong candidates are at least as near as the nearest right one: (Q,) int64.

    Args:
        queries: (Q, d).
        candidates: (V, d).
        pairs: (P, 2) int64, query and candidate that belong together; every query is in one at least.
    """
    pairs = pairs[pairs[:, 0].argsort(stable=True)]
    rows = max(1, _BLOCK // len(candidates))
    starts = range(0, len(queries), rows)
    cuts = torch.searchsorted(pairs[:, 0].contiguous(), torch.tensor([*starts, len(queries)])).tolist()
    found = []
    for start, low, high in zip(starts, cuts, cuts[1:], strict=False):
        similarity = queries[start : start + rows] @ candidates.T
        right = torch.zeros(similarity.shape, dtype=torch.bool)
        right[pairs[low:high, 0] - start, pairs[low:high, 1]] = True
        best = similarity.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        found.append((~(similarity < best) & ~right).sum(dim=1))  # NaN is never less: it finds nothing
    return torch.cat(found)


def _unique(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of ids (N,): where each is first, in their order, and which of them each row has."""
    _, first, number = np.unique(ids.numpy(), return_index=True, return_inverse=True)
    return torch.from_numpy(first), torch.from_numpy(number)


def _share(found: Tensor) -> float:
    return float(found.double().mean())
