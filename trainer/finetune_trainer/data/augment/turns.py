"""Which of a text's variants an epoch sees."""

from dataclasses import dataclass

import numpy as np

from finetune_trainer.data.augment.draws import Stream, generator
from finetune_trainer.data.order import Indices


@dataclass(frozen=True)
class Turns:
    """All variants of a sample and its original in turn, one an epoch; each sample starts with another one."""

    seed: int
    samples: int
    versions: int
    """The original and its variants."""

    def rows(self, epoch: int) -> Indices:
        """(samples,) rows of the table that ``variants.vary`` makes."""
        start = generator(Stream.TURN, self.seed).integers(self.versions, size=self.samples)
        return (start + epoch) % self.versions * self.samples + np.arange(self.samples)
