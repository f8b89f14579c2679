"""What an image looks like, in 64 bits: it hardly changes when the image is scaled, compressed or made brighter.

The usual pHash (Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", section 3.2): the
signs, about their median, of the 8 x 8 lowest frequencies of the 32 x 32 grey image. It only proposes pairs of simple
images (digits, scans) that share a shape: thumbnails must agree as well.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune_trainer.cleaning.text_hashes import Hashes

BITS = 64
THUMBNAIL = 16
"""Side of a thumbnail in pixels."""
_SIDE, _LOW = 32, 8
_ALIKE = 0.985
"""Least correlation of two near duplicates' thumbnails. Of scikit-learn's 8 x 8 digits, doubled in size and compressed
to JPEG at quality 60, 99.9 % stay above 0.996 with their originals; of pairs of digits whose hashes differ in up to 4
bits, 93 % stay below."""


def _cosines() -> NDArray[np.float64]:
    """The first rows of the discrete cosine transform (DCT-II), (8, 32)."""
    frequency, place = np.arange(_LOW)[:, None], np.arange(_SIDE)[None, :]
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * _SIDE))


_COSINES = _cosines()


def perceptual_hash(image: Image.Image) -> int:
    """The hash, 0 to 2^64 - 1."""
    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), np.float64)
    low = _COSINES @ grey @ _COSINES.T
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def thumbnail_of(image: Image.Image) -> NDArray[np.uint8]:
    """Grey values, row by row, (256,) uint8."""
    shrinks = min(image.size) >= THUMBNAIL
    small = image.convert("L").resize(
        (THUMBNAIL, THUMBNAIL), Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    )
    return np.asarray(small, np.uint8).ravel()


def pixel_digest(image: Image.Image) -> bytes:
    """16 bytes that two images share if size and pixels are the same, whatever their files."""
    digest = hashlib.blake2b(repr((image.size, image.mode)).encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()


def looks_alike(
    hashes: tuple[Hashes, Hashes], thumbnails: tuple[NDArray[np.uint8], NDArray[np.uint8]], distance: int
) -> NDArray[np.bool_]:
    """Pair by pair: hashes differ in ``distance`` bits at most, and thumbnails (n, 256) agree but for brightness."""
    near = np.bitwise_count(hashes[0] ^ hashes[1]) <= distance
    first, second = (_standard(values) for values in thumbnails)
    alike: NDArray[np.bool_] = near & ((first * second).sum(axis=1) >= _ALIKE)
    return alike


def _standard(thumbnails: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean 0 and length 1; all zero where an image is of one grey."""
    values = thumbnails.astype(np.float64)
    values -= values.mean(axis=1, keepdims=True)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)
    return values


def bit_keys(hashes: Hashes, bits: int, *, keys: int) -> Hashes:
    """(n, ``keys``) uint64: each key is ``bits`` of the hash, drawn at random (Indyk, Motwani 1998); never 0."""
    made = np.empty((len(hashes), keys), np.uint64)
    for key in range(keys):
        order = np.random.Generator(np.random.PCG64([key, bits])).permutation(BITS).tolist()
        chosen, spare = order[: min(bits, BITS - 1)], order[-1]
        made[:, key] = (hashes & np.uint64(sum(1 << bit for bit in chosen))) | np.uint64(1 << spare)
    return made
