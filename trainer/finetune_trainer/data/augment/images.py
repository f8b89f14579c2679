"""Random changes of images, and of the boxes in them."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from finetune_api.job import ColorJitter, Erasing, ImageAugmentation
from finetune_trainer.data.augment.draws import Stream, generator

Boxes = np.ndarray[Any, np.dtype[np.float64]]
"""(n, 4): left, top, right, bottom in pixels."""
Kept = np.ndarray[Any, np.dtype[np.int64]]
_CROP_ASPECTS = (3 / 4, 4 / 3)
_ERASED_ASPECTS = (0.3, 3.3)
_LEAST_ERASED = 0.02
LEAST_VISIBLE = 0.25
"""Share of a box that must still be in the image: of what is left of the others no detector can tell what it was."""


@dataclass(frozen=True)
class Change:
    """One drawn change of one image; numbers without a unit are between 0 and 1."""

    angle: float
    """Degrees, counter-clockwise."""
    crop: tuple[float, float, float, float]
    """Left, top, width and height, as shares of the image."""
    is_mirrored: bool
    is_upside_down: bool
    brightness: float
    """Factor, as the two that follow."""
    contrast: float
    saturation: float
    hue: float
    """Turn of the colour circle, -0.5 to 0.5."""
    erased: tuple[float, float, float, float] | None
    """Left, top, width and height, as shares of the image."""


@dataclass(frozen=True)
class ImageChanges:
    """Changes images as ``spec`` says; an image keeps its size."""

    spec: ImageAugmentation
    seed: int

    def __call__(self, image: Image.Image, epoch: int, index: int) -> Image.Image:
        """The image of sample ``index`` as ``epoch`` has it."""
        return _change_image(image, self._draw(epoch, index))

    def with_boxes(self, image: Image.Image, boxes: Boxes, epoch: int, index: int) -> tuple[Image.Image, Boxes, Kept]:
        """The changed image, its boxes moved along, and which of them (k,) are left, in order.

        A box is the smallest upright one around the corners of what it was. It goes if less than ``LEAST_VISIBLE`` of
        it, or less than a pixel a side, is in the image.

        Args:
            image: The image.
            boxes: Its boxes.
            epoch: The epoch.
            index: The sample.
        """
        change = self._draw(epoch, index)
        moved, kept = _change_boxes(boxes, image.size, change)
        return _change_image(image, change), moved, kept

    def _draw(self, epoch: int, index: int) -> Change:
        spec, random = self.spec, generator(Stream.IMAGE, self.seed, epoch, index)
        angle, flip, upturn, *rest = random.random(16).tolist()  # always as many, whatever is asked for
        crop, color, erased = rest[:4], rest[4:8], rest[8:]
        jitter = spec.color or ColorJitter()
        return Change(
            angle=_around(angle, spec.rotate_degrees),
            crop=_rectangle(spec.crop_min_area, 1, _CROP_ASPECTS, crop) if spec.crop_min_area < 1 else (0, 0, 1, 1),
            is_mirrored=flip < spec.horizontal_flip,
            is_upside_down=upturn < spec.vertical_flip,
            brightness=1 + _around(color[0], jitter.brightness),
            contrast=1 + _around(color[1], jitter.contrast),
            saturation=1 + _around(color[2], jitter.saturation),
            hue=_around(color[3], jitter.hue_degrees) / 360,
            erased=_erased(spec.erasing, erased) if spec.erasing else None,
        )


def _around(drawn: float, spread: float) -> float:
    """A number from ± ``spread``."""
    return (2 * drawn - 1) * spread


def _erased(erasing: Erasing, drawn: list[float]) -> tuple[float, float, float, float] | None:
    if drawn[0] >= erasing.probability:
        return None
    return _rectangle(min(_LEAST_ERASED, erasing.max_area), erasing.max_area, _ERASED_ASPECTS, drawn[1:])


def _rectangle(
    least: float, most: float, aspects: tuple[float, float], drawn: list[float]
) -> tuple[float, float, float, float]:
    """Left, top, width, height of a rectangle in the unit square; its area and its aspect's logarithm are uniform."""
    share, aspect, left, top = drawn[:4]
    area, (low, high) = least + share * (most - least), map(math.log, aspects)
    ratio = math.exp(low + aspect * (high - low))
    width, height = min(1.0, math.sqrt(area * ratio)), min(1.0, math.sqrt(area / ratio))
    return left * (1 - width), top * (1 - height), width, height


def _change_image(image: Image.Image, change: Change) -> Image.Image:
    if change.angle:
        image = image.rotate(change.angle, Image.Resampling.BILINEAR)
    if change.crop != (0, 0, 1, 1):
        image = image.resize(image.size, Image.Resampling.BILINEAR, box=_corners(change.crop, image.size))
    if change.is_mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if change.is_upside_down:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    image = _change_colors(image, change)
    if change.erased is not None:
        image = image.copy()
        left, top, right, bottom = map(round, _corners(change.erased, image.size))
        image.paste(0, (left, top, max(right, left + 1), max(bottom, top + 1)))
    return image


def _corners(rectangle: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom in pixels."""
    left, top, width, height = rectangle
    return left * size[0], top * size[1], (left + width) * size[0], (top + height) * size[1]


def _change_colors(image: Image.Image, change: Change) -> Image.Image:
    factors = {"brightness": change.brightness, "contrast": change.contrast, "saturation": change.saturation}
    for name, value in factors.items():
        if value != 1:
            image = _adjust(image, name, value)
    return _adjust(image, "hue", change.hue) if change.hue else image


def _adjust(image: Image.Image, name: str, value: float) -> Image.Image:
    from torchvision.transforms.v2 import functional

    changed: Image.Image = getattr(functional, f"adjust_{name}")(image, value)
    return changed


def _change_boxes(boxes: Boxes, size: tuple[int, int], change: Change) -> tuple[Boxes, Kept]:
    width, height = size
    left, top, right, bottom = _corners(change.crop, size)
    moved = _rotate_boxes(boxes, size, change.angle)
    moved = (moved - [left, top, left, top]) * ([width / (right - left), height / (bottom - top)] * 2)
    if change.is_mirrored:
        moved = np.stack([width - moved[:, 2], moved[:, 1], width - moved[:, 0], moved[:, 3]], axis=1)
    if change.is_upside_down:
        moved = np.stack([moved[:, 0], height - moved[:, 3], moved[:, 2], height - moved[:, 1]], axis=1)
    seen = moved.clip(0, [width, height, width, height])
    sides = seen[:, 2:] - seen[:, :2]
    whole = (moved[:, 2:] - moved[:, :2]).prod(axis=1)
    kept = np.flatnonzero((sides.prod(axis=1) >= LEAST_VISIBLE * whole) & (sides >= 1).all(axis=1))
    return seen[kept], kept


def _rotate_boxes(boxes: Boxes, size: tuple[int, int], angle: float) -> Boxes:
    import torch
    from torchvision.transforms.v2.functional import rotate_bounding_boxes
    from torchvision.tv_tensors import BoundingBoxFormat

    if not angle or not len(boxes):
        return boxes
    turned, _ = rotate_bounding_boxes(
        torch.from_numpy(boxes), BoundingBoxFormat.XYXY, canvas_size=size[::-1], angle=angle, clamping_mode=None
    )
    rotated: Boxes = turned.numpy()
    return rotated
