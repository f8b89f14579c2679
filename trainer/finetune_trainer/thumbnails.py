"""Small pictures of samples, for the report."""

import base64
import io
from pathlib import Path

from PIL import Image

from finetune_trainer.data.images import read_image

_SIZE = 96
_SMALL = 48
"""Images below this many pixels a side are enlarged without smoothing, so that their pixels can be seen."""


def thumbnail(path: str | Path) -> str:
    """The image as a PNG data URI, 96 pixels a side at most."""
    image = read_image(path)
    if max(image.size) < _SMALL:
        scale = _SIZE // max(image.size)
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    image.thumbnail((_SIZE, _SIZE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
