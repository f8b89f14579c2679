"""Examples of what a trained model does, for the report: what it was given, what was expected, what it made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

if TYPE_CHECKING:
    from finetune_trainer.data.dataset import Batch, Part
    from finetune_trainer.data.prepare import Slice

MOST_SHOWN = 8


@dataclass(frozen=True)
class Gallery:
    """What examples are made from: the first samples of the part that the model was judged on."""

    model: nn.Module
    """The trained model, unwrapped, in eval mode."""
    part: Part
    """The part."""
    piece: Slice
    """The same before it was encoded."""
    companion: Any
    """Tokenizer or processor."""
    labels: tuple[str, ...] | None
    """The classes."""
    beat: Callable[[], None]
    """Called for every example."""

    @property
    def count(self) -> int:
        """How many are shown."""
        return min(MOST_SHOWN, len(self.part))

    def batch(self, number: int) -> Batch:
        """A batch of one example, on the model's device."""
        self.beat()
        device = next(self.model.parameters()).device
        return self.part.batch(0, np.array([number]), is_counted=True).to(device)

    def cell(self, role: str, number: int) -> str:
        """What the source has of an example."""
        return str(self.piece.samples.table[role][int(self.piece.rows[number])].as_py())

    def origin(self, number: int) -> str:
        """File and line of an example."""
        return self.piece.origin(number)

    def names(self, ids: Tensor) -> list[str]:
        """The classes with these ids."""
        return [self.labels[one] if self.labels else str(one) for one in ids.tolist()]


@dataclass(frozen=True)
class Shown:
    """One example."""

    origin: str
    """File and line."""
    given: str = ""
    """Text that the model was given."""
    image: str | None = None
    """Image that it was given (data URI), perhaps with what was predicted drawn into it."""
    expected: str = ""
    """What the data says."""
    predicted: str = ""
    """What the model says."""


def to_records(shown: Iterable[Shown]) -> list[dict[str, str | None]]:
    """For evaluation.json."""
    return [vars(one) for one in shown]
