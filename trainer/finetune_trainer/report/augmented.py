"""Training samples beside their changed selves: a picture of images, rows of texts."""

import base64
import io
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from finetune_trainer.report import words
from finetune_trainer.report.records import Augmented, Preparation
from finetune_trainer.report.tables import thumbnail
from finetune_trainer.report.theme import Picture, new_picture

MAX_SAMPLES, MAX_VERSIONS, MAX_TEXT = 6, 6, 300
NAME = "augmented"
_SIDE = 1.25
"""Inches of an image's side."""


def augmented_picture(preparation: Preparation | None) -> Iterator[Picture]:
    """Each sample a row: the original, then what epochs make of it; nothing if no image is changed."""
    rows = [row for sample in _samples(preparation) if (row := _images(sample))]
    if not rows:
        return
    width = max(map(len, rows))
    figure = Figure(figsize=(_SIDE * width, _SIDE * len(rows) + 0.3))
    axes = figure.subplots(len(rows), width, squeeze=False)
    for at, row in enumerate(rows):
        for image, place in zip(row, axes[at], strict=False):
            place.imshow(np.asarray(image), interpolation="nearest", cmap="gray", vmin=0, vmax=255)
    for place in axes.flat:
        place.set_axis_off()
    for at in range(width):
        axes[0, at].set_title(version_name(at), fontsize=9)
    text = f"{words.plural(len(rows), 'training sample')} as read, and as {width - 1} epochs have it."
    yield new_picture(NAME, "Augmented images", text, figure, wide=True)


def augmented_texts(preparation: Preparation | None) -> list[tuple[str, list[tuple[str, str]]]]:
    """(origin, [(which version, text)]) of each sample; none if no text is changed."""
    return [
        (sample.origin, [(version_name(at), words.cut(text, MAX_TEXT)) for at, text in enumerate(_first(sample.texts))])
        for sample in _samples(preparation)
        if sample.texts
    ]


def version_name(number: int) -> str:
    """``original`` for 0, else ``variant`` and the number."""
    return f"variant {number}" if number else "original"


def _samples(preparation: Preparation | None) -> tuple[Augmented, ...]:
    return preparation.augmented[:MAX_SAMPLES] if preparation else ()


def _first(versions: tuple[str, ...]) -> tuple[str, ...]:
    return versions[:MAX_VERSIONS]


def _images(sample: Augmented) -> list[Image.Image]:
    """Those that can be read."""
    found = []
    for uri in _first(sample.images):
        if picture := thumbnail(uri):
            with suppress(OSError, ValueError, Image.DecompressionBombError):
                found.append(Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))).convert("RGB"))
    return found
