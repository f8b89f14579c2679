"""Images: a file to pixels.

Invariant: what comes back is RGB, upright, decoded whole; anything else is a DataError with the path and the reason.
"""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from finetune_api.cgroups import usable_cores
from finetune_trainer.errors import DataError, Denied, NotFoundError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Suffixes of image files, in lower case."""
WAITING_READERS = 4
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""Decoders that a file may reach, whatever its name says: no others, for they run on what strangers made."""


def image_readers() -> ThreadPoolExecutor:
    """Threads that read and decode images: one a core, and some that wait for the disk meanwhile.

    Not as many as the node has cores, which is Python's default: each holds an image, and the container's memory is not
    the node's.
    """
    return ThreadPoolExecutor(usable_cores() + WAITING_READERS)


def read_image(path: str | Path) -> Image.Image:
    """The image as RGB, turned upright by its EXIF orientation; 16-bit grey is scaled to 8 bits.

    Raises DataError if it is truncated, not an image, empty, or far too large when unpacked (a decompression bomb:
    more than Pillow's ``MAX_IMAGE_PIXELS``, 89 million pixels); NotFoundError or Denied if it cannot be opened.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                return _rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: the image is not there") from error
    except PermissionError as error:
        raise Denied(f"{path}: the image may not be read") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever they stumble upon in a damaged file
        raise DataError(f"{path}: {_reason(Path(path), error)}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _reason(path: Path, error: Exception) -> str:
    if path.is_dir():
        return "is a folder, not an image"
    if not path.stat().st_size:
        return "is empty"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"unpacks to more than {Image.MAX_IMAGE_PIXELS:,} pixels; scale it down"
    if isinstance(error, UnidentifiedImageError):
        return f"is not an image of a known format ({', '.join(_FORMATS)})"
    return f"is damaged: {error or type(error).__name__}"
