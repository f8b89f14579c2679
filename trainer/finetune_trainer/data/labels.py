"""From labels in their normal form (``label_values``) to ids of classes, or to the numbers of a regression.

Invariant: blanks around a label never count. An empty label is an error, except where a sample may have several
classes: there it says "none of them". Every message about a label begins with the file and line it was read from.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NoReturn, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from finetune_trainer.data.columns import FIELDS, culprit, listing, nearest
from finetune_trainer.errors import DataError

Labels = tuple[str, ...]
Integers = NDArray[np.int64]
IdSets = tuple[Integers, Integers]
"""Classes of each sample: offsets (samples + 1,) and ids, ascending and unique within a sample, both int64."""
Origin = Callable[[int], str]
"""Index of a sample → where it was read, ``reviews.csv:17``."""


@dataclass(frozen=True)
class IdLists:
    """Classes of what a sample has several of (objects, words); sample i has ``ids[offsets[i]:offsets[i + 1]]``."""

    offsets: Integers
    ids: Integers
    """(M,) of all samples, one after the other."""

    def ids_of(self, row: int) -> Integers:
        """Classes (m,) of one sample's parts."""
        return self.ids[int(self.offsets[row]) : int(self.offsets[row + 1])]

    def counts(self, rows: Integers, classes: int) -> Integers:
        """Parts of each class in these samples: (classes,)."""
        found = [self.ids_of(row) for row in rows.tolist()]
        return np.bincount(np.concatenate([*found, np.zeros(0, np.int64)]), minlength=classes)


MOST_LABELS = 10_000
"""Classes at most, as in ``spec.data.labels``."""

_FIELD = FIELDS["label"]
_WHOLE = re.compile(r"[+-]?[0-9]+")

log = logging.getLogger(__name__)


@overload
def find_labels(
    column: pa.ChunkedArray,
    train: Integers | None,
    given: Labels | None,
    origin: Origin,
    *,
    multi: Literal[False],
    separator: str,
) -> tuple[Labels, Integers]: ...
@overload
def find_labels(
    column: pa.ChunkedArray,
    train: Integers | None,
    given: Labels | None,
    origin: Origin,
    *,
    multi: Literal[True],
    separator: str,
) -> tuple[Labels, IdSets]: ...
@overload
def find_labels(
    column: pa.ChunkedArray,
    train: Integers | None,
    given: Labels | None,
    origin: Origin,
    *,
    multi: bool,
    separator: str,
) -> tuple[Labels, Integers | IdSets]: ...
def find_labels(
    column: pa.ChunkedArray,
    train: Integers | None,
    given: Labels | None,
    origin: Origin,
    *,
    multi: bool,
    separator: str,
) -> tuple[Labels, Integers | IdSets]:
    """The classes in the order of their ids, and each sample's: ids (samples,) int64, or with ``multi`` IdSets.

    Classes are those ``given``, else all that ``column`` has, over all samples: sorted by number if all are whole
    numbers, else by code point. ``train`` holds the indices of the training samples; None checks no training set. With
    ``multi``, strings are divided at ``separator``.

    Raises DataError for a label outside the list, an empty one, fewer than two classes in training, or (if none are
    given) a class that no training sample has.
    """
    names, samples = _several(column, separator) if multi else (_single(column, origin), np.arange(len(column)))
    labels, ids = find_classes(names, samples, len(column), train, given, origin, _FIELD)
    return labels, _sets(ids, samples, len(column), len(labels)) if multi else ids


def find_classes(
    names: pa.ChunkedArray,
    samples: Integers,
    count: int,
    train: Integers | None,
    given: Labels | None,
    origin: Origin,
    field: str,
) -> tuple[Labels, Integers]:
    """The classes as ``find_labels`` has them, and the id of each name: (m,).

    ``names`` (m,) are of the samples ``samples`` (m,), of which there are ``count``; messages name ``field``.
    """
    labels = given or _found(names, count, field)
    ids = _encode(names, labels, lambda position: origin(int(samples[position])), field)
    if train is not None:
        in_train = np.zeros(count, bool)
        in_train[train] = True
        counts = np.bincount(ids[in_train[samples]], minlength=len(labels))
        _check_training(labels, counts, field, given=given is not None)
    return labels, ids


def find_numbers(column: pa.ChunkedArray, origin: Origin) -> NDArray[np.float64]:
    """Labels as finite numbers: (samples,) float64. Raises DataError for the first that is not one."""
    if pa.types.is_list(column.type):
        raise DataError(f"{origin(0)}: {_FIELD}: is a list, must be a number")
    trimmed = pc.utf8_trim_whitespace(column)

    def numbers(values: pa.ChunkedArray) -> pa.ChunkedArray:
        return pc.cast(values, pa.float64())

    try:
        found: NDArray[np.float64] = numbers(trimmed).to_numpy()
    except pa.ArrowInvalid:
        _refuse_number(trimmed, culprit(numbers, trimmed)[0], origin)
    finite = np.isfinite(found)
    if not finite.all():
        _refuse_number(trimmed, int(np.argmin(finite)), origin)
    return found


def _refuse_number(column: pa.ChunkedArray, index: int, origin: Origin) -> NoReturn:
    value = column[index].as_py()
    found = f'"{value}" is not a finite number' if value else "is empty, must be a number"
    raise DataError(f"{origin(index)}: {_FIELD}: {found}")


def _single(column: pa.ChunkedArray, origin: Origin) -> pa.ChunkedArray:
    """One name a sample."""
    if pa.types.is_list(column.type):
        raise DataError(
            f"{origin(0)}: {_FIELD}: is a list; set spec.data.multiLabel: true if a sample may have several"
        )
    names = pc.utf8_trim_whitespace(column)
    empty = pc.index(names, "").as_py()
    if empty >= 0:
        raise DataError(f"{origin(empty)}: {_FIELD}: is empty; label the sample or remove it")
    return names


def _several(column: pa.ChunkedArray, separator: str) -> tuple[pa.ChunkedArray, Integers]:
    """Names of all samples one after the other, and the index of the sample that has each."""
    lists = column if pa.types.is_list(column.type) else pc.split_pattern(column, separator)
    samples = np.repeat(np.arange(len(column)), pc.list_value_length(lists).to_numpy())
    names = pc.utf8_trim_whitespace(pc.list_flatten(lists))
    named = pc.not_equal(names, "")
    return names.filter(named), samples[named.to_numpy()]


def _found(names: pa.ChunkedArray, samples: int, field: str) -> Labels:
    distinct: list[str] = pc.unique(names).to_pylist()
    if len(distinct) > MOST_LABELS:
        raise DataError(
            f"{field}: has {len(distinct):,} different values in {samples:,} samples, more than {MOST_LABELS:,}"
            " classes; is it the right column? To predict a number, use task text-regression"
        )
    if all(_WHOLE.fullmatch(name) for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))


def _encode(names: pa.ChunkedArray, labels: Labels, origin: Origin, field: str) -> Integers:
    ids = pc.index_in(names, value_set=pa.array(labels, pa.string()))
    if ids.null_count:
        outside = pc.index(ids.is_null(), value=True).as_py()
        name = names[outside].as_py()
        hint = f"({listing(labels)}){nearest(name, labels)}"
        raise DataError(f'{origin(outside)}: {field}: "{name}" is not in spec.data.labels {hint}')
    encoded: Integers = ids.to_numpy().astype(np.int64)
    return encoded


def _check_training(labels: Labels, counts: Integers, field: str, *, given: bool) -> None:
    """``counts``: training samples of each class, (classes,)."""
    present = np.flatnonzero(counts)
    if len(present) == 0:
        raise DataError(f"{field}: no training sample has any class; is it the right column?")
    if len(present) == 1:
        only = present[0]
        raise DataError(
            f'{field}: all {counts[only]:,} labels of the training samples are "{labels[only]}"; there must be two'
            " classes at least: add samples of another, or check that the column is the right one"
        )
    absent = [label for label, count in zip(labels, counts, strict=True) if count == 0]
    if absent and given:
        log.warning("spec.data.labels: no training sample has %s", listing(absent))
    elif absent:
        raise DataError(
            f"{field}: no training sample has {listing(absent)}, yet others have; add training samples of it, remove"
            " the others, or list the class in spec.data.labels"
        )


def _sets(ids: Integers, samples: Integers, count: int, classes: int) -> IdSets:
    pairs = np.unique(samples * classes + ids)
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(pairs // classes, minlength=count), out=offsets[1:])
    return offsets, pairs % classes
