"""Batches of texts with a text to write for each."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetune_trainer.data.dataset import Batch, Part, TextPart
from finetune_trainer.data.order import Indices


@dataclass(frozen=True, eq=False)
class SequencePart(Part):
    """Texts and targets. A sample is as long as the longer of its two, as fairseq counts it (``num_tokens``)."""

    rows: Indices
    texts: TextPart
    targets: TextPart
    start_id: int
    """Token from which on a text is written."""
    lengths: Indices = field(init=False)
    padded_lengths: Indices = field(init=False)

    def __post_init__(self) -> None:
        for name in ("lengths", "padded_lengths"):
            object.__setattr__(self, name, np.maximum(getattr(self.texts, name), getattr(self.targets, name)))

    @property
    def truncated(self) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """(n,) whether something of text or target was cut off."""
        return self.texts.truncated | self.targets.truncated

    def batch(self, epoch: int, indices: Indices, *, is_counted: bool) -> Batch:
        """``input_ids``, perhaps ``attention_mask`` (n, S); ``decoder_input_ids`` and target (n, T)."""
        texts = self.texts.batch(epoch, indices, is_counted=is_counted)
        targets = self.targets.batch(epoch, indices, is_counted=is_counted)
        before = targets.inputs["input_ids"].roll(1, dims=1)  # what is written when a target's token is next
        before[:, 0] = self.start_id
        return Batch(texts.inputs | {"decoder_input_ids": before}, targets.target, indices, is_counted)
