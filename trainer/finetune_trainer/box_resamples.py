"""Confidence intervals of average precision: images are resampled, and the precision of each resample computed anew.

Which boxes are right does not depend on what other images there are, so boxes are matched once, as COCO does it
(https://cocodataset.org/#detection-eval, ``COCOeval.evaluateImg``): the surest first, each with the object of its class
that it overlaps most of those that are still free. A resample then gives the boxes and the objects of an image the
image's weight (see ``bootstrap``), and the area under the curve of precision over recall is that of weighted counts.

Memory: 24 bytes a box, 100 boxes an image; and some arrays of 16 MiB, for which a few resamples are computed at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from finetune_api.intervals import Interval, Intervals
from finetune_trainer.bootstrap import RESAMPLES_AT_ONCE, Array, percentiles, poisson_weights
from finetune_trainer.box_metrics import LEVELS, THRESHOLDS
from finetune_trainer.data.order import Indices
from finetune_trainer.distributed import Group

_MOST_BOXES = 100
_MOST_BYTES = 16 * 2**20
_TOLERANCE = 1e-10


def match(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """Which of the boxes found in an image, the surest first, are right at each threshold: (n, 10) bool.

    Args:
        found: boxes (n, 4) by their corners, labels (n,).
        wanted: boxes (m, 4), labels (m,).
    """
    overlap = box_iou(found["boxes"].double(), wanted["boxes"].double())
    overlap = overlap.masked_fill(found["labels"][:, None] != wanted["labels"], -1)
    is_right = torch.zeros(len(overlap), len(THRESHOLDS), dtype=torch.bool)
    is_free = torch.ones(len(THRESHOLDS), overlap.shape[1], dtype=torch.bool)
    least = torch.tensor(THRESHOLDS, dtype=torch.float64) - _TOLERANCE
    for row in (overlap >= least[0]).any(1).nonzero().flatten().tolist():
        free = torch.where(is_free, overlap[row], -1.0).flip(1)  # of equals COCO takes the last
        best, place = free.max(1)
        is_right[row] = best >= least
        is_free[is_right[row], is_free.shape[1] - 1 - place[is_right[row]]] = False
    return is_right


@dataclass(frozen=True)
class Kind:
    """All of one class: boxes that were found, the surest first, and objects that are there."""

    images: Tensor
    """(n,) int64, which image each box is in."""
    is_right: Tensor
    """(n, 10) bool."""
    objects: Tensor
    """(m,) int64, which image each object is in; at least one."""


def average_precisions(kind: Kind, weights: Tensor) -> Tensor:
    """Average precision at each threshold where image i counts ``weights[:, i]`` times: (B, images) to (10, B).

    NaN where no object counts.
    """
    present = weights[:, kind.objects].sum(1, keepdim=True)
    found = weights[:, kind.images].cumsum(1)
    values = [
        _area(weights[:, kind.images[right]].cumsum(1), found[:, right], present)
        for right in (column.nonzero().flatten() for column in kind.is_right.unbind(1))
    ]
    return torch.stack(values).masked_fill(present[:, 0] == 0, torch.nan)


def _area(hits: Tensor, found: Tensor, present: Tensor) -> Tensor:
    """Mean over the levels of recall of the best precision from there on: (B,).

    Args:
        hits: (B, k), right boxes up to and with each right box.
        found: (B, k), all boxes up to and with it.
        present: (B, 1), objects.
    """
    precision = (hits / found.clamp(min=1)).flip(1).cummax(1).values.flip(1) if hits.shape[1] else hits
    recall = hits / present.clamp(min=1)
    place = torch.searchsorted(recall, torch.tensor(LEVELS, dtype=recall.dtype).repeat(len(recall), 1))
    beyond = torch.zeros(len(recall), 1, dtype=precision.dtype)
    return torch.cat([precision, beyond], dim=1).gather(1, place).mean(1)


class BoxResamples:
    """Intervals of ``map`` and ``map50``."""

    def __init__(self, wanted: Intervals) -> None:
        self._wanted = wanted
        self._boxes: list[Array] = []
        """Of each image: rows (n, 3) of its index, class and the thresholds it is right at, as bits."""
        self._scores: list[Array] = []
        """Of each image: (n,) float32."""
        self._objects: list[Array] = []
        """Of each image: rows (m, 2) of its index and class."""

    def update(
        self, found: Sequence[Mapping[str, Tensor]], wanted: Sequence[Mapping[str, Tensor]], indices: Indices
    ) -> None:
        """Take in one batch, as ``BoxPrecision`` has it; indices: (n,) of its images in the part."""
        if not self._wanted.resamples:
            return
        for one, there, index in zip(found, wanted, indices.tolist(), strict=True):
            scores, order = one["scores"].float().cpu().sort(descending=True, stable=True)
            best = {name: one[name].cpu()[order[:_MOST_BOXES]] for name in ("boxes", "labels")}
            objects = {name: there[name].cpu() for name in ("boxes", "labels")}
            bits = match(best, objects).long() @ 2 ** torch.arange(len(THRESHOLDS))
            self._boxes.append(_rows(index, best["labels"], bits))
            self._scores.append(scores[:_MOST_BOXES].numpy())
            self._objects.append(_rows(index, objects["labels"]))

    def intervals(self, exact: Mapping[str, float], confidence: float, group: Group) -> dict[str, Interval]:
        """Of ``map`` and ``map50`` if they are in ``exact``. Every rank takes part."""
        if not self._wanted.resamples or not {"map", "map50"} & exact.keys():
            return {}
        images, kinds = self._gathered(group)
        values = torch.zeros(2, self._wanted.resamples + 1, dtype=torch.float64)
        if group.rank == 0:
            values[:, -1] = _means(kinds, torch.ones(1, len(images), dtype=torch.float64))[:, 0]
        for only in list(self._blocks(images, kinds))[group.rank :: group.size]:
            weights = poisson_weights(images, self._wanted.resamples, self._wanted.seed, only)
            values[:, only.start : only.stop] = _means(kinds, torch.from_numpy(weights).T.contiguous())
        group.add_up(values)
        found = {name: row for name, row in zip(("map", "map50"), values, strict=True) if name in exact}
        return percentiles(found, exact, confidence, most=1.0)

    def _gathered(self, group: Group) -> tuple[Array, list[Kind]]:
        """Indices of all images with a box or an object (the places of ``Kind`` are among them), and every class."""
        own = [_joined(self._boxes, 3), _joined(self._scores, 0), _joined(self._objects, 2)]
        boxes, scores, objects = (np.concatenate(each) for each in zip(*group.gather(own), strict=True))
        order = np.lexsort((boxes[:, 0], -scores))  # stable: an image's own boxes keep their order
        boxes = boxes[order]
        images = np.unique(np.concatenate([boxes[:, 0], objects[:, 0]]))
        classes = np.unique(objects[:, 1])
        return images, [_kind(boxes[boxes[:, 1] == one], objects[objects[:, 1] == one], images) for one in classes]

    def _blocks(self, images: Array, kinds: Sequence[Kind]) -> Iterator[range]:
        """Resamples to compute at a time."""
        most = max([1, len(images), *(max(len(kind.images), len(kind.objects)) for kind in kinds)])
        step = max(1, _MOST_BYTES // (8 * most * RESAMPLES_AT_ONCE)) * RESAMPLES_AT_ONCE
        for start in range(0, self._wanted.resamples, step):
            yield range(start, min(start + step, self._wanted.resamples))


def _means(kinds: Sequence[Kind], weights: Tensor) -> Tensor:
    """Both metrics of each resample, means over the classes that have an object in it: (2, B)."""
    total, count = torch.zeros(2, len(weights), dtype=torch.float64), torch.zeros(len(weights), dtype=torch.float64)
    for kind in kinds:
        values = average_precisions(kind, weights)
        both = torch.stack([values.mean(0), values[0]])
        total += both.nan_to_num(0.0)
        count += both[0].isfinite()
    return total / count


def _kind(boxes: Array, objects: Array, images: Array) -> Kind:
    bits = torch.from_numpy(boxes[:, 2])
    return Kind(
        torch.from_numpy(np.searchsorted(images, boxes[:, 0])),
        (bits[:, None] >> torch.arange(len(THRESHOLDS)) & 1).bool(),
        torch.from_numpy(np.searchsorted(images, objects[:, 0])),
    )


def _rows(index: int, *columns: Tensor) -> Array:
    rows: Array = torch.stack([torch.full_like(columns[0], index), *columns], dim=1).long().numpy()
    return rows


def _joined(parts: Sequence[Array], width: int) -> Array:
    if parts:
        return np.concatenate(parts)
    return np.empty((0, width), np.int64) if width else np.empty(0, np.float32)
