"""Student's t distribution: its tail and its quantiles, without scipy (which the operator has no other use for).

The tail is a regularized incomplete beta function, taken as a continued fraction by Lentz's method
(Numerical Recipes, 3rd edition, section 6.4); right to twelve digits.
"""

import functools
import math

_TINY = 1e-300
_ENOUGH = 1e-15
_TERMS = 1000


def two_sided_p(t: float, freedom: int) -> float:
    """Probability of a value at least as far from 0 as ``t`` under ``freedom`` (≥ 1) degrees of freedom."""
    if math.isinf(t):
        return 0.0
    return _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


@functools.cache
def critical_t(level: float, freedom: int) -> float:
    """The t within whose ± a share ``level`` (0 to 1) of the distribution lies, for example 2.776 of 0.95 and 4."""
    low, high = 0.0, 1.0
    while two_sided_p(high, freedom) > 1 - level:
        high *= 2
    while high - low > _ENOUGH * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if two_sided_p(middle, freedom) > 1 - level else (low, middle)
    return high


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularized incomplete beta function I_x(a, b)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast below this
        return 1 - math.exp(scale) * _fraction(1 - x, b, a) / b
    return math.exp(scale) * _fraction(x, a, b) / a


def _fraction(x: float, a: float, b: float) -> float:
    c, d = 1.0, _inverse(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = _inverse(1 + term * d)
            c = _nonzero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < _ENOUGH:
            break
    return value


def _inverse(value: float) -> float:
    return 1 / _nonzero(value)


def _nonzero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
