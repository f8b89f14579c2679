"""Small pictures of samples, for the report."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from finetune_trainer.data.images import read_image

Box = Sequence[float]
_SIZE = 96
_LARGE = 320
_EXPECTED, _PREDICTED = (46, 160, 67), (219, 68, 55)
_SMALL = 48
"""Images below this many pixels a side are enlarged without smoothing, so that their pixels can be seen."""


def thumbnail(path: str | Path) -> str:
    """The image as a PNG data URI, 96 pixels a side at most."""
    image = read_image(path)
    if max(image.size) < _SMALL:
        scale = _SIZE // max(image.size)
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    image.thumbnail((_SIZE, _SIZE))
    return data_uri(image)


def boxes_thumbnail(path: str | Path, *, expected: Sequence[Box], predicted: Sequence[Box]) -> str:
    """A PNG data URI of the image, 320 pixels a side at most, with boxes: expected ones green, predicted ones red.

    A box is left, top, right and bottom in the image's pixels.
    """
    image = read_image(path)
    scale = _LARGE / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    draw = ImageDraw.Draw(image)
    for boxes, color in ((expected, _EXPECTED), (predicted, _PREDICTED)):
        for left, top, right, bottom in boxes:
            corners = [left * scale, top * scale, max(left, right) * scale, max(top, bottom) * scale]
            draw.rectangle(corners, outline=color, width=2)
    return data_uri(image)


def data_uri(image: Image.Image) -> str:
    """The image as a PNG data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
