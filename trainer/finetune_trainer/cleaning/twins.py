"""Which sample duplicates which: keys propose pairs, an exact measure confirms them, the first of a group stays.

Invariant: memory holds some numbers a sample and the pairs found, never the samples; keys lie in files, a band a file.
Everything is a function of the samples and their order.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.cleaning.text_hashes import Hashes, Indices
from finetune_trainer.data.cache import Beat

Same = Callable[[Indices, Indices], NDArray[np.bool_]]
"""(rows, rows) → whether each pair is one of duplicates."""
_PAIRS = 8192
"""Pairs that are measured at once."""
_SORTED = 4_000_000
"""Keys that are sorted at once."""


def find_pairs(bands: Sequence[Path], count: int, is_asked: NDArray[np.bool_], same: Same, beat: Beat) -> Indices:
    """Pairs of duplicates, (m, 2) int64, earlier row first, sorted by the later row.

    Args:
        bands: Files of ``count`` uint64 keys each; two rows that share a key in one of them are measured. Of a key that
            many share each is measured beside the first and beside the one before it. Key 0 is none.
        count: Rows.
        is_asked: (count,) rows that take part.
        same: The measure.
        beat: Called for every chunk.
    """
    seen = np.zeros(0, np.int64)
    found = []
    for band in bands:
        keys: Hashes = np.memmap(band, np.uint64, "r", shape=(count,)) if count else np.zeros(0, np.uint64)
        for first, second in _proposed(keys, is_asked):
            new = np.setdiff1d(first * count + second, seen, assume_unique=False)
            seen = np.union1d(seen, new)
            for start in range(0, len(new), _PAIRS):
                some = new[start : start + _PAIRS]
                found.append(some[same(some // count, some % count)])
                beat()
        beat()
    pairs = np.concatenate([*found, np.zeros(0, np.int64)])
    pairs = pairs[np.lexsort((pairs // max(1, count), pairs % max(1, count)))]
    return np.stack([pairs // max(1, count), pairs % max(1, count)], axis=1)


def _proposed(keys: Hashes, is_asked: NDArray[np.bool_]) -> Iterator[tuple[Indices, Indices]]:
    parts = 1 + len(keys) // _SORTED
    for part in range(parts):
        rows = np.flatnonzero(is_asked & (keys != 0) & (keys % np.uint64(parts) == part))
        rows = rows[np.argsort(keys[rows], kind="stable")]
        mine = keys[rows]
        is_new = np.concatenate([[True], mine[1:] != mine[:-1]]) if len(rows) else np.zeros(0, bool)
        group = np.maximum.accumulate(np.where(is_new, np.arange(len(rows)), 0)) if len(rows) else np.zeros(0, int)
        later = np.flatnonzero(~is_new)
        yield (
            np.concatenate([rows[group[later]], rows[later - 1]]),
            np.concatenate([rows[later], rows[later]]),
        )


def choose_twins(pairs: Indices, count: int, leaves: Callable[[int, int], bool], same: Same) -> Indices:
    """(count,) int64: the row that each one duplicates, which itself stays; -1 for those that duplicate none.

    ``leaves(earlier, later)`` says whether a duplicate no longer counts as one that others can be like.
    """
    twins = np.full(count, -1, np.int64)
    is_gone = np.zeros(count, bool)
    known = set(map(tuple, pairs.tolist()))
    for earlier, later in pairs.tolist():
        if is_gone[later]:
            continue
        first = int(twins[earlier]) if is_gone[earlier] else earlier
        if first != earlier and (first, later) not in known and not _is_same(same, first, later):
            continue
        if twins[later] < 0 or leaves(first, later):
            twins[later] = first
        is_gone[later] = leaves(first, later)
    return twins


def _is_same(same: Same, first: int, second: int) -> bool:
    answer: Any = same(np.array([first]), np.array([second]))
    return bool(answer[0])
