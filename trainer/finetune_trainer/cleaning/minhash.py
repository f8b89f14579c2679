"""MinHash of sets of hashes, and how many of its values make a key so that near duplicates meet.

Broder 1997, "On the resemblance and containment of documents"; banding: Leskovec, Rajaraman, Ullman, "Mining of Massive
Datasets", chapter 3. Keys only propose pairs: each is then measured exactly.
"""

import numpy as np

from finetune_trainer.cleaning.text_hashes import Hashes, Indices, mixed

VALUES = 64
"""MinHash values of a set."""
_MISSED = 0.003
"""Share of pairs exactly at the threshold that no key may propose, at most."""


def rows_of_band(similarity: float, *, bands: int | None = None) -> int:
    """Most values a key such that two sets of ``similarity`` share a key with probability 1 - ``_MISSED``.

    ``bands`` keys are made whatever their size; None: as many as ``VALUES`` is enough for.
    """
    fits = [rows for rows in range(1, VALUES + 1) if (1 - similarity**rows) ** (bands or VALUES // rows) <= _MISSED]
    return max(fits, default=1)


def minhash_keys(hashes: Hashes, offsets: Indices, rows: int) -> Hashes:
    """Keys of each set, (n, VALUES // rows) uint64; 0 for an empty set."""
    filled = np.flatnonzero(np.diff(offsets))
    keys = np.zeros((len(offsets) - 1, VALUES // rows), np.uint64)
    if not len(filled):
        return keys
    starts, factors = offsets[:-1][filled], _factors()
    for band in range(keys.shape[1]):
        key = np.full(len(filled), band + 1, np.uint64)
        for factor in factors[band * rows : (band + 1) * rows]:
            key = mixed(key ^ np.minimum.reduceat(hashes * factor, starts))
        keys[filled, band] = key
    return keys


def _factors() -> Hashes:
    """Odd numbers, by which a product modulo 2^64 is a permutation of the hashes."""
    factors: Hashes = np.random.PCG64(0).random_raw(VALUES) | np.uint64(1)
    return factors


def jaccard(first: Hashes, second: Hashes) -> float:
    """|A ∩ B| / |A ∪ B| of the sets of two arrays' values; 0 if both are empty."""
    one, other = np.unique(first), np.unique(second)
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)
