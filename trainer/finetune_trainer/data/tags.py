"""Tags of words: from their names, or the numbers that stand for them, to ids of classes."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetune_trainer.data.columns import FIELDS, listing
from finetune_trainer.data.labels import IdLists, Integers, Labels, Origin, find_classes
from finetune_trainer.errors import DataError

OUTSIDE = "O"
"""The tag of a word that is in no entity."""
_FIELD = FIELDS["tags"]
_FOREIGN = ("S-", "E-", "L-", "U-")
"""What tags of other schemes begin with (IOBES, BILOU), whose entities would be counted wrongly."""


def find_tags(
    column: pa.ChunkedArray, train: Integers | None, given: Labels | None, origin: Origin
) -> tuple[Labels, IdLists]:
    """The classes in the order of their ids, as ``find_labels`` has them, and those of every sample's words.

    ``column``: list<string>, a tag a word. A number is the place of a tag in ``given``, unless a tag is called so.

    Raises:
        DataError: See ``find_labels``; or the tags are numbers without names, or of another scheme than IOB2.
    """
    lengths = pc.list_value_length(column).to_numpy().astype(np.int64)
    names = pc.utf8_trim_whitespace(pc.list_flatten(column))
    samples = np.repeat(np.arange(len(column)), lengths)
    names = names if given is None else _by_place(names, given)
    labels, ids = find_classes(names, samples, len(column), train, given, origin, _FIELD)
    if given is None and all(label.isdecimal() for label in labels):
        raise DataError(f"{_FIELD}: are numbers; name the tags in spec.data.labels, in the order of these numbers")
    _check_scheme(labels)
    return labels, IdLists(np.concatenate([[0], np.cumsum(lengths)]), ids)


def tagged_words(words: Iterable[str], tags: Iterable[str]) -> list[str]:
    """The words that are in an entity, each with its tag: ``["Ada B-PER"]``. Words beyond the last tag are left out."""
    return [f"{word} {tag}" for word, tag in zip(words, tags, strict=False) if tag != OUTSIDE]


def _by_place(names: pa.ChunkedArray, labels: Labels) -> pa.ChunkedArray:
    places = pc.index_in(names, value_set=pa.array([str(place) for place in range(len(labels))]))
    named = pc.is_in(names, value_set=pa.array(labels, pa.string()))
    return pc.if_else(named, names, pc.coalesce(pc.take(pa.array(labels, pa.string()), places), names))


def _check_scheme(labels: Labels) -> None:
    foreign = [label for label in labels if label.startswith(_FOREIGN)]
    if foreign and any(label.startswith(("B-", "I-")) for label in labels):
        raise DataError(
            f"{_FIELD}: {listing(foreign)}: not of IOB2; write B- at an entity's first word, I- at the others"
        )
