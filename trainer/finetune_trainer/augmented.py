"""A few training samples beside their changed selves, for the report."""

from dataclasses import replace
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from finetune_trainer.data.augment.mixing import Mix, mix_images
from finetune_trainer.data.captions import CaptionPart
from finetune_trainer.data.dataset import ImagePart, Part, TextPart
from finetune_trainer.data.detection import DetectionPart
from finetune_trainer.data.pairs import PairPart
from finetune_trainer.data.prepare import Slice
from finetune_trainer.thumbnails import data_uri

SAMPLES, VARIANTS = 4, 4
_SIDE = 128
_TEXT = 2000
_BOX_COLOR = (255, 64, 64)


def augmented_samples(part: Part, piece: Slice, tokenizer: Any) -> list[dict[str, Any]]:
    """A few samples of the training part, each as it was and as some epochs have it; none if nothing is changed.

    Args:
        part: The training part.
        piece: The same before it was encoded.
        tokenizer: Of a text task: texts are shown as it has them.

    Returns:
        For each sample ``origin``, and ``images`` (data URIs) or ``texts``, the original first.
    """
    indices = range(0, len(part), max(1, len(part) // SAMPLES))[:SAMPLES]
    shown = {index: _versions(part, index, tokenizer) for index in indices}
    return [{"origin": piece.origin(index)} | versions for index, versions in shown.items() if versions]


@singledispatch
def _versions(_part: Part, _index: int, _tokenizer: Any) -> dict[str, list[str]]:
    return {}


@_versions.register
def _of_text(part: TextPart, index: int, tokenizer: Any) -> dict[str, list[str]]:
    if part.turns is None:
        return {}
    rows = range(index, part.turns.samples * part.turns.versions, part.turns.samples)[: VARIANTS + 1]
    offsets = part.encoded.offsets
    ids = [part.encoded.ids[offsets[row] : offsets[row + 1]] for row in rows]
    return {"texts": [tokenizer.decode(each, skip_special_tokens=True)[:_TEXT] for each in ids]}


@_versions.register(PairPart)
@_versions.register(CaptionPart)
def _of_pair(part: PairPart | CaptionPart, index: int, tokenizer: Any) -> dict[str, list[str]]:
    return _of_image(part.images, index, tokenizer)


@_versions.register
def _of_image(part: ImagePart, index: int, _tokenizer: Any) -> dict[str, list[str]]:
    if part.augment is None:
        return {}
    plain = replace(part, augment=None, mixing=None)
    images = [_image(plain, 0, index), *(_image(part, epoch, index) for epoch in range(VARIANTS))]
    return {"images": [data_uri(_small(image)) for image in images]}


@_versions.register
def _of_detection(part: DetectionPart, index: int, _tokenizer: Any) -> dict[str, list[str]]:
    if part.changes is None:
        return {}
    row = int(part.rows[index])
    image, (boxes, _) = part.read(Path(part.paths[row])), part.objects.of(row)
    changed = [part.changes.with_boxes(image, boxes, epoch, index)[:2] for epoch in range(VARIANTS)]
    return {"images": [data_uri(_boxed(*each)) for each in ((image, boxes), *changed)]}


def _image(part: ImagePart, epoch: int, index: int) -> Image.Image:
    """The image of a sample as an epoch has it, in its own size."""
    image = part.read(Path(part.paths[int(part.rows[index])]))
    if part.augment is not None:
        image = part.augment(image, epoch, index)
    mix = part.mixing.draw(epoch, index) if part.mixing is not None else None
    return image if mix is None else _mixed(image, _image(replace(part, mixing=None), epoch, mix.partner), mix)


def _mixed(own: Image.Image, other: Image.Image, mix: Mix) -> Image.Image:
    mixed, _ = mix_images(_planes(own), _planes(other.resize(own.size)), mix)
    array = mixed.permute(1, 2, 0).round().to(torch.uint8).numpy()
    return Image.fromarray(array.squeeze(-1) if own.mode == "L" else array)


def _planes(image: Image.Image) -> Tensor:
    """(C, H, W) float32."""
    pixels = torch.from_numpy(np.array(image, np.float32))
    return pixels.reshape(*pixels.shape[:2], -1).permute(2, 0, 1)


def _small(image: Image.Image) -> Image.Image:
    scale = _SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR)


def _boxed(image: Image.Image, boxes: Any) -> Image.Image:
    small = _small(image)
    draw, scale = ImageDraw.Draw(small), small.width / image.width
    for box in boxes.tolist():
        draw.rectangle([edge * scale for edge in box], outline=_BOX_COLOR if image.mode == "RGB" else 255)
    return small
