"""Random changes of images, a function of (seed, epoch, index): no state, so that a resumed run repeats them."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from finetune_api.job import ImageAugmentation

Augment = Callable[[Image.Image, int, int], Image.Image]
_ASPECTS = (3 / 4, 4 / 3)


def image_augmentation(spec: ImageAugmentation, seed: int) -> Augment:
    """(image, epoch, index) → changed image of the same size."""

    def augment(image: Image.Image, epoch: int, index: int) -> Image.Image:
        random = np.random.Generator(np.random.PCG64([seed, epoch, index]))
        angle, flip, share, aspect, left, top = random.random(6)
        if spec.rotate_degrees:
            image = image.rotate((2 * angle - 1) * spec.rotate_degrees, Image.Resampling.BILINEAR)
        if spec.crop_min_area < 1:
            image = _crop(image, spec.crop_min_area + share * (1 - spec.crop_min_area), aspect, left, top)
        if flip < spec.horizontal_flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image

    return augment


def _crop(image: Image.Image, area: float, aspect: float, left: float, top: float) -> Image.Image:
    """A crop of ``area`` (share of the image), aspect ratio between 3:4 and 4:3, scaled back to the image's size."""
    low, high = map(math.log, _ASPECTS)
    ratio = math.exp(low + aspect * (high - low))
    width = min(image.width, image.width * math.sqrt(area * ratio))
    height = min(image.height, image.height * math.sqrt(area / ratio))
    x, y = left * (image.width - width), top * (image.height - height)
    return image.resize(image.size, Image.Resampling.BILINEAR, box=(x, y, x + width, y + height))
