"""Pairs of an image and a text, for models that match the two."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch

from finetune_trainer.data.augment.draws import Stream, generator
from finetune_trainer.data.dataset import Batch, ImagePart, Part, TextPart
from finetune_trainer.data.order import Indices
from finetune_trainer.errors import DataError
from finetune_trainer.task import IGNORED

_DRAWS = 100
"""Draws of a text that does not belong to an image before all are looked through."""


@dataclass(frozen=True, eq=False)
class PairPart(Part):
    """Pairs. Texts are padded to the longest of a pass, and do not decide which pairs share a batch.

    A batch's target is (n, 4) int64: which image, which text (equal ones have one number), the pair's index in the
    part, and its class (IGNORED if there is none). ``wrong_texts`` adds to the n texts of a batch as many that do not
    belong to their image: ``input_ids`` (2n, T). They are drawn by (seed, epoch, index).
    """

    rows: Indices
    images: ImagePart
    """Targets: (N, 3) image, text, class of every row of the source."""
    texts: TextPart
    wrong_texts: bool
    seed: int
    lengths: None = None
    padded_lengths: None = None

    def batch(self, epoch: int, indices: Indices, *, is_counted: bool) -> Batch:
        """``pixel_values``, ``input_ids`` and perhaps ``attention_mask`` of these pairs."""
        images = self.images.batch(epoch, indices, is_counted=is_counted)
        wrong = [self._wrong(epoch, int(index)) for index in indices] if self.wrong_texts else []
        texts = self.texts.batch(epoch, np.array([*indices, *wrong]), is_counted=is_counted)
        inputs = images.inputs | {name: texts.inputs[name] for name in _TEXT_INPUTS if name in texts.inputs}
        image_text, label = images.target[:, :2], images.target[:, 2:]
        target = torch.cat([image_text, torch.from_numpy(indices)[:, None], label], dim=1)
        return Batch(inputs, target, indices, is_counted)

    def _wrong(self, epoch: int, index: int) -> int:
        """Index of a pair whose text does not belong to the image of pair ``index``."""
        random = generator(Stream.WRONG_TEXT, self.seed, epoch, index)
        for _ in range(_DRAWS):
            other = int(random.integers(len(self)))
            if not self._belongs(index, other):
                return other
        return next(other for other in range(len(self)) if not self._belongs(index, other))

    def _belongs(self, index: int, other: int) -> bool:
        """Whether the text of pair ``other`` belongs to the image of pair ``index``: there is a pair of the two."""
        image, text = int(self._ids[index, 0]), int(self._ids[other, 1])
        code = image * self._codes[0] + text
        place = int(np.searchsorted(self._codes[1], code))
        return place < len(self._codes[1]) and int(self._codes[1][place]) == code

    @cached_property
    def _ids(self) -> Indices:
        ids: Indices = self.images.targets[torch.from_numpy(self.rows)].numpy()
        return ids

    @cached_property
    def _codes(self) -> tuple[int, Indices]:
        """A number above every text's, and for all pairs, image times it plus text, sorted."""
        base = int(self._ids[:, 1].max()) + 1
        return base, np.unique(self._ids[:, 0] * base + self._ids[:, 1])

    def require_wrong_texts(self, name: str) -> None:
        """Raise DataError unless every image of this part, called ``name``, has a text that does not belong to it."""
        base, codes = self._codes
        texts = len(np.unique(codes % base))
        if int(np.bincount(codes // base).max()) == texts:
            raise DataError(
                f"spec.data: an image of the {name} set belongs to every text in it ({texts}), and to tell right texts"
                " from wrong ones takes one that does not belong; give more samples with other texts"
            )


_TEXT_INPUTS = ("input_ids", "attention_mask")


def pair_values(table: pa.Table, labels: Indices | None) -> Indices:
    """(N, 3) int64: which image, which text (rows with the same path or the same words have one number), and class."""
    image, text = (np.asarray(row_numbers(table[role])) for role in ("image", "text"))
    label = np.full(len(table), IGNORED) if labels is None else labels
    return np.stack([image, text, label], axis=1).astype(np.int64)


def row_numbers(column: pa.ChunkedArray) -> Indices:
    """(N,) a number for each value, from 0 in the order of appearance; equal ones have one number."""
    numbers: Indices = column.combine_chunks().dictionary_encode().indices.to_numpy()
    return numbers


def pair_parts(
    images: Mapping[str, Part], texts: Mapping[str, Part], *, wrong_texts: bool, seed: int
) -> dict[str, Part]:
    """Parts of pairs, from the parts of their images and of their texts.

    Raises:
        DataError: There are no wrong texts for an image, and there must be.
    """
    parts: dict[str, Part] = {}
    for name, image in images.items():
        text = texts[name]
        assert isinstance(image, ImagePart)
        assert isinstance(text, TextPart)
        parts[name] = part = PairPart(image.rows, image, text, wrong_texts, seed)
        if wrong_texts:
            part.require_wrong_texts(name)
    return parts
