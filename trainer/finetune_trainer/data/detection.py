"""Batches of images with boxes.

Invariant: a box is normalised by the frame that the model answers in. A model that is told which pixels are padding
(``pixel_mask``) answers in the image itself, as the original DETR; one that is not, in the padded picture that it sees.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune_trainer.data.augment.images import ImageChanges
from finetune_trainer.data.dataset import Batch, Part
from finetune_trainer.data.objects import Objects
from finetune_trainer.data.order import Indices


@dataclass(frozen=True)
class Weighing:
    """By what the two parts of a detection loss are divided: boxes, and (if it is told apart) weighted queries."""

    queries: int
    """Objects that the model can find in an image; 0 where classes are divided by the number of boxes as well."""
    background: float
    """Weight of a query that finds nothing."""

    def counts(self, boxes: int) -> tuple[float, float]:
        """For an image with so many boxes."""
        if not self.queries:
            return float(boxes), 0.0
        matched = min(boxes, self.queries)
        return float(boxes), matched + self.background * (self.queries - matched)


WEIGHTED_ARCHITECTURES = ("yolos", "detr", "table-transformer")
"""Those with transformers' ``ForObjectDetectionLoss``, which weighs classes; the others divide by boxes alone."""


def weighing_of(config: Any) -> Weighing:
    """How the loss of a model with this configuration is divided."""
    if config.model_type not in WEIGHTED_ARCHITECTURES:
        return Weighing(0, 0.0)
    queries = getattr(config, "num_detection_tokens", None) or config.num_queries
    return Weighing(queries, config.eos_coefficient)


@dataclass(frozen=True, eq=False)
class DetectionPart(Part):
    """Images and the objects in them."""

    rows: Indices
    paths: Sequence[str]
    objects: Objects
    read: Callable[[Path], Any]
    """Path → PIL image; raises DataError."""
    process: Callable[[list[Any]], dict[str, Tensor]]
    """PIL images → ``pixel_values`` (n, C, H, W) and, if they are padded, ``pixel_mask`` (n, H, W)."""
    has_mask: bool
    """Whether the model takes ``pixel_mask``."""
    weighing: Weighing
    changes: ImageChanges | None = None
    lengths: None = None
    padded_lengths: None = None

    def batch(self, epoch: int, indices: Indices, *, is_counted: bool) -> Batch:
        """Pixel values; the target is a dict an image, which the model takes as ``labels``.

        ``class_labels`` (m,) int64; ``boxes`` (m, 4) float32, centre, width and height as shares of the frame;
        ``frame`` (2,) float32, the frame's height and width in pixels of the original; ``size`` (2,) those of the
        original; ``corners`` (m, 4) float32, boxes in those pixels; ``counts`` (2,) float32 (see ``Weighing``).
        """
        images, found = [], []
        for index in indices.tolist():
            row = int(self.rows[index])
            image, (boxes, ids) = self.read(Path(self.paths[row])), self.objects.of(row)
            if self.changes is not None:
                image, boxes, kept = self.changes.with_boxes(image, boxes, epoch, index)
                ids = ids[kept]
            images.append(image)
            found.append((boxes, ids))
        inputs = self.process(images)
        frames = self._frames(images, inputs)
        target = [
            self._target(image, boxes, ids, frame)
            for image, (boxes, ids), frame in zip(images, found, frames, strict=True)
        ]
        if not self.has_mask:
            inputs.pop("pixel_mask", None)
        return Batch(inputs, target, indices, is_counted)

    def _frames(self, images: list[Any], inputs: dict[str, Tensor]) -> list[tuple[float, float]]:
        """Height and width of each image's frame, in pixels of the original."""
        mask = inputs.get("pixel_mask")
        if mask is None or self.has_mask:
            return [(image.height, image.width) for image in images]
        height, width = mask.shape[1:]
        return [
            (image.height * height / int(one[:, 0].sum()), image.width * width / int(one[0].sum()))
            for image, one in zip(images, mask, strict=True)
        ]

    def _target(self, image: Any, boxes: Any, ids: Any, frame: tuple[float, float]) -> dict[str, Tensor]:
        corners = torch.as_tensor(np.asarray(boxes, np.float32)).reshape(-1, 4)
        height, width = frame
        shares = corners / torch.tensor([width, height, width, height])
        return {
            "class_labels": torch.as_tensor(np.asarray(ids, np.int64)),
            "boxes": torch.cat([(shares[:, :2] + shares[:, 2:]) / 2, shares[:, 2:] - shares[:, :2]], dim=1),
            "frame": torch.tensor(frame),
            "size": torch.tensor([float(image.height), float(image.width)]),
            "corners": corners,
            "counts": torch.tensor(self.weighing.counts(len(corners))),
        }
