"""What follows from the trials' values: means with intervals, differences to the first variant, and a sentence.

Differences are paired: the same seed gives both variants the same order of samples, so what it does to both cancels
out. Intervals are Student's, each at 95 %. Whether a difference is claimed goes by p-values that are corrected for the
number of comparisons by Holm's procedure (S. Holm, A simple sequentially rejective multiple test procedure,
Scandinavian Journal of Statistics 6, 1979): of all variants that equal the first, one is called different with a
probability of at most 5 %. A claimed difference's interval never holds 0; the opposite may happen, for an interval is
not corrected.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune_api.experiment import Difference
from finetune_api.metrics import Mode
from finetune_operator.experiments.student import critical_t, two_sided_p

LEVEL = 0.95
Values = Mapping[int, float]
"""Seed → value."""


@dataclass(frozen=True)
class Summary:
    """The values of one variant."""

    n: int
    mean: float | None = None
    std: float | None = None
    """Of a sample (n - 1); None with fewer than two values."""
    low: float | None = None
    high: float | None = None


def summarize(values: Sequence[float]) -> Summary:
    """Mean, standard deviation and the mean's interval."""
    if not values:
        return Summary(0)
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Summary(1, mean)
    std = statistics.stdev(values)
    half = half_width(std, len(values))
    return Summary(len(values), mean, std, mean - half, mean + half)


def half_width(std: float, n: int) -> float:
    """Half of the interval of a mean of ``n`` ≥ 2 values."""
    return critical_t(LEVEL, n - 1) * std / math.sqrt(n)


def compare(first: Values, other: Values) -> Difference | None:
    """``other`` less ``first`` over the seeds that both have, not corrected yet; None if there is no such seed."""
    gains = [other[seed] - first[seed] for seed in sorted(first.keys() & other.keys())]
    if not gains:
        return None
    mean = statistics.fmean(gains)
    # Equal differences have no spread to judge by: metrics are counted in samples, and two seeds may agree by chance.
    std = statistics.stdev(gains) if len(gains) > 1 else 0.0
    if std <= _ROUNDING * max(abs(mean), _ROUNDING):
        return Difference(seeds=len(gains), mean=mean)
    half = half_width(std, len(gains))
    p = two_sided_p(mean / (std / math.sqrt(len(gains))), len(gains) - 1)
    return Difference(seeds=len(gains), mean=mean, low=mean - half, high=mean + half, p=p)


_ROUNDING = 1e-12


def judge(differences: Sequence[Difference | None], mode: Mode) -> tuple[Difference | None, ...]:
    """The differences with Holm's correction, each with its verdict."""
    corrected = iter(holm([one.p for one in differences if one is not None and one.p is not None]))
    return tuple(one if one is None or one.p is None else _judged(one, next(corrected), mode) for one in differences)


def holm(probabilities: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the order given."""
    order = sorted(range(len(probabilities)), key=lambda index: probabilities[index])
    corrected, greatest = [0.0] * len(probabilities), 0.0
    for rank, index in enumerate(order):
        greatest = max(greatest, min(1.0, (len(probabilities) - rank) * probabilities[index]))
        corrected[index] = greatest
    return corrected


def _judged(difference: Difference, p: float, mode: Mode) -> Difference:
    verdict = "unknown"
    if p < 1 - LEVEL:
        verdict = "better" if (difference.mean > 0) == (mode == "max") else "worse"
    return difference.model_copy(update={"p": p, "verdict": verdict})


def conclude(first: str, others: Sequence[tuple[str, Difference | None]], metric: str) -> str:
    """The answer in a sentence or two, for people.

    Args:
        first: The variant that the others are compared to.
        others: Their names and judged differences.
        metric: What was compared.
    """
    claims = [_claim(first, name, one, metric) for name, one in others if one is not None and one.verdict != "unknown"]
    unknown = [(name, one) for name, one in others if one is None or one.verdict == "unknown"]
    sentences = [*claims, _no_claim(first, unknown, metric)] if unknown else claims
    return ". ".join(sentences)


def _claim(first: str, name: str, difference: Difference, metric: str) -> str:
    better, worse = (name, first) if difference.verdict == "better" else (first, name)
    ends = sorted(abs(end) for end in (difference.low, difference.high) if end is not None)
    interval = " to ".join(f"{end:.3g}" for end in ends)
    told = f"{better} is better than {worse} by {abs(difference.mean):.3g} in {metric}"
    return f"{told} (95 % interval {interval}, n = {difference.seeds} seeds)"


def _no_claim(first: str, unknown: Sequence[tuple[str, Difference | None]], metric: str) -> str:
    names = ", ".join(name for name, _ in unknown)
    counts = sorted({one.seeds if one else 0 for _, one in unknown})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"No difference in {metric} between {first} and {names} can be told at n = {n}"
