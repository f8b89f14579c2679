"""One pass over all samples: what duplicates are told by goes to files, which stay small beside the samples."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from finetune_api.cleaning import NearDuplicates
from finetune_trainer.cleaning.contents import Contents, texts_of
from finetune_trainer.cleaning.minhash import jaccard, minhash_keys, rows_of_band
from finetune_trainer.cleaning.perceptual import (
    BITS,
    THUMBNAIL,
    bit_keys,
    looks_alike,
    perceptual_hash,
    pixel_digest,
    thumbnail_of,
)
from finetune_trainer.cleaning.text_hashes import Indices, mixed, pairs_of_words, word_hashes
from finetune_trainer.cleaning.twins import Same
from finetune_trainer.data.cache import Beat
from finetune_trainer.data.images import image_readers, read_image
from finetune_trainer.errors import DataError, NotFoundError

_IMAGE_KEYS = 32


@dataclass(frozen=True)
class Looks:
    """What one pass found, in a folder."""

    folder: Path
    contents: Contents
    near: NearDuplicates | None
    bands: tuple[Path, ...]
    broken: dict[int, str]
    """Row → why its image cannot be used."""

    @property
    def digests(self) -> NDArray[np.uint64]:
        """(rows, 2): equal where the content is."""
        return self._mapped("digest", np.uint64, 2)

    @property
    def exact_bands(self) -> tuple[Path, ...]:
        """Keys by which equal contents meet."""
        return (self.folder / "exact",)

    def is_equal(self, first: Indices, second: Indices) -> NDArray[np.bool_]:
        """Whether the contents of two rows are the same."""
        digests = self.digests
        equal: NDArray[np.bool_] = (digests[first] == digests[second]).all(axis=1)
        return equal

    @property
    def is_near(self) -> Same:
        """Whether the contents of two rows are almost the same."""
        return self._images_near if self.contents.has_images else self._texts_near

    def _texts_near(self, first: Indices, second: Indices) -> NDArray[np.bool_]:
        assert self.near is not None
        rows, places = np.unique(np.concatenate([first, second]), return_inverse=True)
        pairs, offsets = pairs_of_words(*word_hashes(self.contents.texts(rows)))
        sets = [np.unique(pairs[start:end]) for start, end in pairwise(offsets.tolist())]
        one, other = places[: len(first)], places[len(first) :]
        measured = [jaccard(sets[a], sets[b]) for a, b in zip(one.tolist(), other.tolist(), strict=True)]
        is_near: NDArray[np.bool_] = np.array(measured) >= self.near.threshold
        return is_near

    def _images_near(self, first: Indices, second: Indices) -> NDArray[np.bool_]:
        assert self.near is not None
        hashes, thumbnails = self._mapped("look", np.uint64, 2), self._mapped("thumbnail", np.uint8, THUMBNAIL**2)
        looks = hashes[first, 0], hashes[second, 0]
        alike = looks_alike(looks, (thumbnails[first], thumbnails[second]), self.near.hamming_distance)
        alike &= hashes[first, 1] == hashes[second, 1]  # the texts beside the images
        return alike

    def _mapped(self, name: str, kind: Any, width: int) -> NDArray[Any]:
        return np.memmap(self.folder / name, kind, "r", shape=(len(self.contents), width))


def look(contents: Contents, near: NearDuplicates | None, folder: Path, *, forgive: bool, beat: Beat) -> Looks:
    """Read every sample once.

    Args:
        contents: The samples.
        near: How near duplicates are told; None if nobody asks.
        folder: Where files may be written.
        forgive: Whether a broken image is noted; else it is an error.
        beat: Called for every chunk.
    """
    broken: dict[int, str] = {}
    bands: tuple[Path, ...] = ()
    row = 0
    with ExitStack() as stack, image_readers() as pool:
        files: dict[str, Any] = {}

        def write(name: str, values: NDArray[Any]) -> None:
            if name not in files:
                files[name] = stack.enter_context((folder / name).open("wb"))
            np.ascontiguousarray(values).tofile(files[name])

        for batch in contents.chunks():
            texts = texts_of(batch)
            said = np.array([_digest(text.encode("utf-8", "surrogatepass")) for text in texts], np.uint64)
            if contents.has_images:
                keys = _look_at_images(batch, row, said, near, broken if forgive else None, pool.map, write)
            else:
                keys = _text_keys(texts, near) if near else None
                write("digest", said)
                write("exact", said[:, 0] | np.uint64(1))
            if keys is not None:
                bands = tuple(folder / f"band-{number}" for number in range(keys.shape[1]))
                for path, column in zip(bands, keys.T, strict=True):
                    write(path.name, column)
            row += len(batch)
            beat()
    return Looks(folder, contents, near, bands, broken)


def _digest(content: bytes) -> tuple[int, int]:
    digest = blake2b(content, digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def _text_keys(texts: list[str], near: NearDuplicates) -> NDArray[np.uint64]:
    return minhash_keys(*pairs_of_words(*word_hashes(texts)), rows_of_band(near.threshold))


def _look_at_images(
    batch: pa.RecordBatch,
    start: int,
    said: NDArray[np.uint64],
    near: NearDuplicates | None,
    broken: dict[int, str] | None,
    parallel: Callable[..., Any],
    write: Callable[[str, NDArray[Any]], None],
) -> NDArray[np.uint64] | None:
    seen = list(parallel(_look_at, batch["image"].to_pylist()))
    for place, one in enumerate(seen):
        if isinstance(one, Exception):
            if broken is None:
                raise one
            broken[start + place] = str(one)
    usable = [one if isinstance(one, tuple) else (b"", 0, np.zeros(THUMBNAIL**2, np.uint8)) for one in seen]
    content = [_digest(pixels + number.tobytes()) for (pixels, _, _), number in zip(usable, said, strict=True)]
    digests = np.array(content, np.uint64)
    write("digest", digests)
    is_there = np.array([bool(pixels) for pixels, _, _ in usable])
    write("exact", np.where(is_there, digests[:, 0] | np.uint64(1), np.uint64(0)))
    looks = np.array([hashed for _, hashed, _ in usable], np.uint64)
    write("look", np.stack([looks, said[:, 0]], axis=1))
    write("thumbnail", np.stack([small for _, _, small in usable]))
    if near is None:
        return None
    keys = bit_keys(looks, rows_of_band(1 - near.hamming_distance / BITS, bands=_IMAGE_KEYS), keys=_IMAGE_KEYS)
    return np.where(is_there[:, None], mixed(keys ^ said[:, :1]) | np.uint64(1), np.uint64(0))


def _look_at(path: str) -> tuple[bytes, int, NDArray[np.uint8]] | Exception:
    """Pixel digest, perceptual hash and thumbnail; or what is wrong with the image."""
    try:
        image = read_image(path)
    except (DataError, NotFoundError) as error:
        return error
    return pixel_digest(image), perceptual_hash(image), thumbnail_of(image)
