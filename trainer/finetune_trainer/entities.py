"""Entities in tags of words, as CoNLL counts them: right if first word, last word and type are.

An entity is a run of words of one type. It begins at ``B-type``, and at ``I-type`` after a word of another type or none
(Tjong Kim Sang and De Meulder, 2003, and the script conlleval). A tag that is neither ``O`` nor begins with ``B-`` or
``I-`` (a part of speech, say) is an entity of one word.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune_trainer.data.tags import OUTSIDE
from finetune_trainer.task import IGNORED

ENTITY_SCORES = ("entityPrecision", "entityRecall", "entityF1")


@dataclass(frozen=True)
class Scheme:
    """What tags say, by their ids."""

    types: Tensor
    """(C,) int64: type of the entity that a word is in; -1 for none."""
    begins: Tensor
    """(C,) bool: whether an entity begins, whatever is before it."""


def scheme_of(labels: Sequence[str]) -> Scheme:
    """The scheme of tags with these names, in the order of their ids."""
    names = [label[2:] if label.startswith(("B-", "I-")) else label for label in labels]
    known = {name: number for number, name in enumerate(sorted(set(names)))}
    types = [-1 if label == OUTSIDE else known[name] for label, name in zip(labels, names, strict=True)]
    return Scheme(torch.tensor(types), torch.tensor([not label.startswith("I-") for label in labels]))


def entity_counts(scheme: Scheme, predicted: Tensor, wanted: Tensor) -> Tensor:
    """Entities of each text that are right, expected and predicted: (n, 3) int64.

    Args:
        scheme: What the tags say.
        predicted: (n, T) int64.
        wanted: The same as it should be; where it is IGNORED, both are left out.
    """
    rows, places = (wanted != IGNORED).nonzero(as_tuple=True)
    expected, found = (_entities(scheme, tags[rows, places], rows) for tags in (wanted, predicted))
    right = (expected == found).all(dim=0) & (expected[0] >= 0)
    each = torch.stack([right, expected[0] >= 0, found[0] >= 0], dim=1).long()
    return each.new_zeros(len(wanted), 3).index_add_(0, rows, each)


def _entities(scheme: Scheme, tags: Tensor, rows: Tensor) -> Tensor:
    """Place of the last word, and type, of the entity that begins at each word: (2, W); -1 where none does.

    tags: (W,) of all texts, one after the other; rows: (W,) the text of each.
    """
    types = scheme.types.to(tags.device)[tags]
    is_new = torch.ones_like(tags, dtype=torch.bool)
    is_new[1:] = (rows[1:] != rows[:-1]) | (types[1:] != types[:-1])
    begins = (types >= 0) & (is_new | scheme.begins.to(tags.device)[tags])
    ends = types >= 0
    ends[:-1] &= begins[1:] | is_new[1:]  # what follows is of another entity, or of none
    found = torch.full((2, len(tags)), -1, device=tags.device)
    found[0, begins], found[1, begins] = ends.nonzero().flatten(), types[begins]
    return found


def entity_scores(sums: Tensor) -> dict[str, Tensor]:
    """Each of ``ENTITY_SCORES``, from entities that are right, expected and predicted: (3, …) float64. 0 of none."""
    right, expected, predicted = sums
    shares = (
        right / predicted.clamp(min=1),
        right / expected.clamp(min=1),
        2 * right / (expected + predicted).clamp(min=1),
    )
    return dict(zip(ENTITY_SCORES, shares, strict=True))
