"""Division of samples into training, validation and test set.

Invariant: parts are disjoint and complete, a function of (labels, proportions, seed) alone, on every platform. Each
part has its quota to the nearest sample, over all and in each stratum; every stratum has a training sample first.
Quotas are whole-number arithmetic: 0.7 : 0.2 : 0.1 divides exactly as 7 : 2 : 1.
"""

from collections.abc import Mapping
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.errors import DataError

_FIELD = "spec.data.split"
_NEVER_EMPTY = ("train", "validation")


def split_indices(
    count: int, *, proportions: Mapping[str, float], seed: int, strata: NDArray[Any] | None
) -> dict[str, NDArray[np.int64]]:
    """Indices of the samples of each part, ascending: name → (n,) int64.

    ``proportions`` (≥ 0) name the parts, training first; ``strata`` (count,) gives each sample's class, if the classes'
    shares are to be kept. The overall numbers give way where a stratum has but one sample, which goes to training.
    Raises DataError if training or validation would be empty though its proportion is not 0.
    """
    weights = _whole(proportions)
    members, stratum = _strata(count, strata)
    cells = _cells([int(size) for size in members], weights, _targets(count, weights))
    _spare_one(cells, members, weights)
    _check_filled(dict(zip(weights, cells.sum(axis=0), strict=True)), weights, count, stratified=strata is not None)
    order = np.lexsort((_random_keys(count, seed), stratum))
    part_of = np.empty(count, np.int64)
    part_of[order] = np.repeat(np.tile(np.arange(len(weights)), len(members)), cells.ravel())
    return {name: np.flatnonzero(part_of == part) for part, name in enumerate(weights)}


def _whole(proportions: Mapping[str, float]) -> dict[str, int]:
    """The proportions as whole numbers, taken by their decimal digits."""
    exact = {name: Fraction(repr(float(share))) for name, share in proportions.items()}
    scale = lcm(*(share.denominator for share in exact.values()))
    return {name: int(share * scale) for name, share in exact.items()}


def _strata(count: int, strata: NDArray[Any] | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Size of each stratum, and each sample's stratum."""
    if strata is None:
        return np.array([count]), np.zeros(count, np.int64)
    _, stratum, members = np.unique(strata, return_inverse=True, return_counts=True)
    return members, stratum


def _random_keys(count: int, seed: int) -> NDArray[np.uint64]:
    """A random number a sample; raw bits, since numpy keeps only their stream the same over its versions (NEP 19)."""
    keys: NDArray[np.uint64] = np.random.PCG64(seed).random_raw(count)
    return keys


def _targets(count: int, weights: Mapping[str, int]) -> list[int]:
    """Samples of each part over all: by largest remainder, the earlier part first in a tie."""
    total = sum(weights.values())
    targets = [count * weight // total for weight in weights.values()]
    remainders = [count * weight % total for weight in weights.values()]
    for part in sorted(range(len(targets)), key=lambda part: -remainders[part])[: count - sum(targets)]:
        targets[part] += 1
    return targets


def _cells(members: list[int], weights: Mapping[str, int], targets: list[int]) -> NDArray[np.int64]:
    """Samples of each (stratum, part): each is its quota rounded down or up; parts sum to ``targets`` if they can.

    Each stratum is rounded by largest remainder first; then single samples move between parts, along the cheapest
    chain of strata, until the sums are right (a flow through a graph whose nodes are the parts).
    """
    total = sum(weights.values())
    quotas = np.array([[size * weight for weight in weights.values()] for size in members], dtype=object)
    floors, remainders = quotas // total, quotas % total
    raised = np.zeros(quotas.shape, bool)
    for row, left in enumerate(np.array(members, dtype=object) - floors.sum(axis=1)):
        raised[row, _first_raised(floors[row], remainders[row], left)] = True
    held = raised & (floors == 0) & (np.arange(len(weights)) == 0)  # the one training sample of a stratum stays
    while _move(raised, floors.sum(axis=0) + raised.sum(axis=0) - targets, remainders, held):
        pass
    return (floors + raised).astype(np.int64)


def _spare_one(cells: NDArray[np.int64], members: NDArray[np.int64], weights: Mapping[str, int]) -> None:
    """Give validation one sample if it has none but must: from the cell that is most above its quota."""
    parts = list(weights)
    if not weights.get("validation") or cells[:, parts.index("validation")].any():
        return
    shares = np.array([weight / sum(weights.values()) for weight in weights.values()])
    may_give = cells > (np.array(parts) == "train")  # every stratum keeps a training sample
    if may_give.any():
        row, part = np.unravel_index(
            np.argmax(np.where(may_give, cells - np.outer(members, shares), -np.inf)), cells.shape
        )
        cells[row, part] -= 1
        cells[row, parts.index("validation")] += 1


def _first_raised(floors: NDArray[Any], remainders: NDArray[Any], left: int) -> list[int]:
    """The ``left`` parts of one stratum that are rounded up: training if it would have none, then by remainder."""
    order = sorted(range(len(floors)), key=lambda part: (part != 0 or floors[0] > 0, -remainders[part], part))
    return order[:left]


def _move(raised: NDArray[np.bool_], surplus: NDArray[Any], remainders: NDArray[Any], held: NDArray[np.bool_]) -> bool:
    """Move one sample from a part with a surplus towards one that lacks some; False if nothing is left to move."""
    for source in np.flatnonzero(surplus > 0):
        came_from: dict[int, tuple[int, int]] = {}
        queue = [int(source)]
        for part in queue:
            if surplus[part] < 0:
                _shift(raised, came_from, part, int(source))
                return True
            for other in range(len(surplus)):
                rows = np.flatnonzero(raised[:, part] & ~held[:, part] & ~raised[:, other] & (remainders[:, other] > 0))
                if len(rows) and other not in came_from and other != source:
                    losses = remainders[rows, part] - remainders[rows, other]
                    came_from[other] = (part, int(rows[np.argmin(losses)]))
                    queue.append(other)
    return False


def _shift(raised: NDArray[np.bool_], came_from: Mapping[int, tuple[int, int]], part: int, source: int) -> None:
    while part != source:
        before, row = came_from[part]
        raised[row, before], raised[row, part] = False, True
        part = before


def _check_filled(sizes: Mapping[str, int], weights: Mapping[str, int], count: int, *, stratified: bool) -> None:
    for name in _NEVER_EMPTY:
        if weights.get(name) and not sizes[name]:
            samples = f"{count} sample{'s' if count != 1 else ''}"
            reason = ", with one of every class in training" if stratified else ""
            raise DataError(
                f"{_FIELD}.{name}: {samples} cannot be divided{reason}: none is left for {name};"
                " add samples, or bring spec.data.validationSource"
            )
