"""Confidence intervals of metrics, in one pass over the test set and in memory that does not grow with it.

A resample gives every sample a weight drawn from Poisson(1), which for more than some dozens of samples is as good as
drawing them with replacement, and can be done in a stream (Chamandy et al., "Estimating Uncertainty for Massive Data
Streams", 2012; Hanley and MacGibbon, 2006). Metrics that are functions of sums over the samples are then computed from
the weighted sums of each resample, all resamples at once. The interval is that of percentiles (Efron, 1981). What is
known only when all samples have been seen is resampled then: recall of retrieval, from the rank of each query
(``retrieval``), and average precision, from the match of each box (``box_resamples``).

Invariant: a sample's weights are a function of (seed, index), so the interval depends neither on how the samples are
cut into batches nor on how many processes share them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune_api.intervals import Interval, Intervals

Array = np.ndarray[Any, Any]

MOST_BYTES = 128 * 2**20
"""Of the sums of one family of metrics; with more cells fewer resamples are drawn."""
LEAST_RESAMPLES = 100
"""Below this many, percentiles say nothing, and there is no interval."""
RESAMPLES_AT_ONCE = 4
"""Of one random number: 16 bits for each."""
_ROWS = 4096
"""Cells that are added to at once: they are expanded to all resamples."""
_DIGITS = 6


@dataclass(frozen=True)
class Cells:
    """What samples add to the sums: ``values[i]`` of sample ``samples[i]`` to cell ``cells[i]``; all (m,)."""

    samples: Tensor
    cells: Tensor
    values: Tensor


@dataclass(frozen=True)
class Family:
    """Metrics that are functions of the same sums over the samples."""

    size: int
    """Number of sums, S."""
    add: Callable[[Any, Any], Cells]
    """(predictions, targets) of a batch → what its samples add."""
    values: Mapping[str, Callable[[Tensor], Tensor]]
    """Metric → function of the sums (S, B) float64: (B,)."""
    most: float = math.inf
    """No value is above this."""


def _poisson_table() -> Array:
    """Poisson(1) by the inverse of its distribution at each of 2¹⁶ even steps: (65536,) float64."""
    mass = np.array([math.exp(-1) / math.factorial(count) for count in range(9)])
    return np.searchsorted(mass.cumsum(), (np.arange(2**16) + 0.5) / 2**16).astype(np.float64)


_POISSON = _poisson_table()


def poisson_weights(indices: Array, resamples: int, seed: int, only: range | None = None) -> Array:
    """Weights (n, resamples) float64 of the samples ``indices`` (n,), from the counter-based generator SplitMix64.

    Source: Steele et al., "Fast Splittable Pseudorandom Number Generators", 2014. The table makes Poisson's tail end
    at 8, and its probabilities exact to 2⁻¹⁶. ``only``: these resamples, from a multiple of ``RESAMPLES_AT_ONCE``.
    """
    wanted = only or range(resamples)
    words, first = -(-resamples // RESAMPLES_AT_ONCE), wanted.start // RESAMPLES_AT_ONCE
    chosen = np.arange(first, -(-wanted.stop // RESAMPLES_AT_ONCE), dtype=np.uint64)
    counters = indices.astype(np.uint64)[:, None] * np.uint64(words) + chosen
    bits = _mixed(counters + _mixed(np.array([seed], np.uint64)))
    found: Array = _POISSON[bits.view(np.uint16)[:, : len(wanted)]]
    return found


def _mixed(counters: Array) -> Array:
    mixed = (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


class Resamples:
    """The sums of one family, for every resample and (last column) for the samples as they are."""

    def __init__(self, family: Family, wanted: Intervals) -> None:
        self._family, self._seed = family, wanted.seed
        affordable = MOST_BYTES // (8 * family.size) - 1
        self._resamples = min(wanted.resamples, affordable) if affordable >= LEAST_RESAMPLES else 0
        self.sums = torch.zeros(family.size, self._resamples + 1 if self._resamples else 0, dtype=torch.float64)
        """(S, B + 1); nothing where no resamples can be afforded."""

    def update(self, predictions: Any, targets: Any, indices: Array) -> None:
        """Take in one batch; indices: (n,) of its samples in the part."""
        if not self._resamples:
            return
        weights = torch.ones(len(indices), self._resamples + 1, dtype=torch.float64)
        weights[:, :-1] = torch.from_numpy(poisson_weights(indices, self._resamples, self._seed))
        added = self._family.add(predictions, targets)
        samples, cells, values = added.samples.cpu(), added.cells.cpu(), added.values.cpu().double()
        for start in range(0, len(cells), _ROWS):
            piece = slice(start, start + _ROWS)
            self.sums.index_add_(0, cells[piece], weights[samples[piece]] * values[piece].unsqueeze(1))

    def intervals(self, exact: Mapping[str, float], confidence: float) -> dict[str, Interval]:
        """Of each metric of the family that is in ``exact``: its value, which the interval is moved to.

        (What is computed from coarser bins than the value itself is off by as much in every resample.)
        """
        if not self._resamples:
            return {}
        found = {name: self._family.values[name](self.sums) for name in self._family.values if name in exact}
        return percentiles(found, exact, confidence, most=self._family.most)


def percentiles(
    found: Mapping[str, Tensor], exact: Mapping[str, float], confidence: float, *, most: float = math.inf
) -> dict[str, Interval]:
    """The interval of each metric: its percentiles over resamples, moved to its value.

    Args:
        found: Metric → its value on every resample and (last) on the samples as they are: (B + 1,) float64; NaN where
            it is not defined. One that is not defined on the samples, or on no resample, has no interval.
        exact: Metric → its value.
        confidence: Share of the resamples within.
        most: No value is above this.
    """
    ends = ((1 - confidence) / 2, (1 + confidence) / 2)
    return {
        name: _interval(values[:-1].numpy(), exact[name] - values[-1].item(), ends, most)
        for name, values in found.items()
        if bool(torch.isfinite(values[-1])) and bool(torch.isfinite(values[:-1]).any())
    }


def _interval(values: Array, shift: float, ends: Sequence[float], most: float) -> Interval:
    low, high = np.minimum(np.quantile(values[np.isfinite(values)], ends) + shift, most)
    return Interval(low=_rounded(low), high=_rounded(high))


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
